"""What is worked out for one shard of a build, a stretch of users or of time: arrays in, arrays out.

Nothing but NumPy is imported here, so that Ray can send this code along with the arrays (engines.py).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

WINDOW = 50_000  # events that are counted together: their index stays in the processor's cache


def events(rows: Array, code: Array) -> tuple[Array, Array]:
    """Events of a stretch of users in the order of user, time, item and kind.

    A reader's joins and groups come in any order, so the item settles ties within a second, then the kind.

    Args:
        rows: `user, item, time, kind`, in any order.
        code: of each kind, from the order they came to that of the alphabet.

    Returns:
        The rows in order, with the new codes; and which of them repeat the one before in every column.
    """
    rows = rows[_order(_keys(rows["user"], rows["time"]), rows["item"], code[rows["kind"]])]
    rows["kind"] = code[rows["kind"]]
    return rows, np.flatnonzero(rows[1:] == rows[:-1]) + 1


def history_ends(start: Array, past: Array, user: Array, now: Array) -> Array:
    """The end of every history, strictly before its impression, proved not to look ahead.

    Args:
        start: where the events of each user of a stretch begin, one more than users.
        past: time of each event (seconds), ascending for each user.
        user: of each impression, counted from the first of the stretch.
        now: time of each impression (seconds).

    Shape: as `user`.

    >>> history_ends(np.array([0, 2, 3]), np.array([5, 9, 1]), np.array([0, 0, 1]), np.array([9, 10, 1]))
    array([1, 2, 2])
    """
    owner = np.repeat(np.arange(len(start) - 1, dtype=np.int32), np.diff(start))
    keys = _keys(np.r_[owner, user], np.r_[past, now])
    end = np.searchsorted(keys[: len(past)], keys[len(past) :])
    _prove_no_leak(
        {
            "history_end": end,
            "impression_user": user,
            "impression_time": now,
            "user_start": start,
            "event_time": past if len(past) else np.zeros(1, np.int64),
        }
    )
    return np.asarray(end)


def popularity(count: Array, seen: Array, now: Array, length: Array, candidate: Array) -> Array:
    """Events of each candidate's item strictly before its impression.

    Args:
        count: events of each item before this stretch of time.
        seen: `time, item` of the stretch's events, in any order.
        now: time of each of its impressions (seconds), ascending.
        length: candidates of each impression.
        candidate: items of all impressions on end.

    Shape: as `candidate`.
    """
    seen = seen[np.argsort(seen["time"], kind="stable")]
    time, item = seen["time"], seen["item"]
    before = np.searchsorted(time, now)  # events of the stretch strictly before each impression
    start = np.r_[0, np.cumsum(length)]
    found = np.empty(len(candidate), np.int32)
    for low in range(0, max(len(time), 1), WINDOW):
        high = low + WINDOW if low + WINDOW < len(time) else len(time) + 1
        rows = np.searchsorted(before, [low, high])
        here = slice(start[rows[0]], start[rows[1]])
        shown, window = candidate[here], item[low : low + WINDOW]
        inside = np.bincount(window, minlength=len(count))
        found[here] = count[shown]
        if len(window):
            met = np.flatnonzero(inside[shown])  # most candidates have no event in so short a time
            place = np.repeat(before[rows[0] : rows[1]] - low, length[rows[0] : rows[1]])[met]
            order = np.argsort(window, kind="stable")
            keys = window[order].astype(np.int64) * (WINDOW + 1) + order
            first = np.cumsum(inside) - inside
            needle = shown[met].astype(np.int64) * (WINDOW + 1) + place
            found[here][met] += (np.searchsorted(keys, needle) - first[shown[met]]).astype(np.int32)
        count = count + inside  # not in place: it is another shard's too
    return found


def _keys(group: Array, moment: Array) -> Array:
    """(group, time) as one sortable int64."""
    if len(moment) == 0:
        return np.zeros(0, np.int64)
    first = moment.min()
    return np.asarray(group.astype(np.int64) * (moment.max() - first + 1) + (moment - first))


def _order(key: Array, item: Array, kind: Array) -> Array:
    """Rows by key, and by item and kind where a key occurs twice.

    >>> _order(np.array([7, 5, 7]), np.array([2, 9, 1]), np.array([0, 0, 0]))
    array([1, 2, 0])
    """
    order = np.argsort(key, kind="stable")
    same = key[order[1:]] == key[order[:-1]]
    at = np.flatnonzero(np.r_[False, same] | np.r_[same, False])
    tied = order[at]
    order[at] = tied[np.lexsort((kind[tied], item[tied], key[tied]))]
    return order


def _prove_no_leak(arrays: dict[str, Array]) -> int:
    """Check on the data itself that no history holds an event of its impression's own second or later.

    Returns:
        How many histories were checked.

    Raises:
        AssertionError: a defect of the build; never the user's doing.
    """
    end, who, when = arrays["history_end"], arrays["impression_user"], arrays["impression_time"]
    low, high = arrays["user_start"][who], arrays["user_start"][who + 1]
    inside = (low <= end) & (end <= high)
    last = arrays["event_time"][np.maximum(end - 1, 0)]
    after = arrays["event_time"][np.minimum(end, len(arrays["event_time"]) - 1)]
    past = (end == low) | (last < when)
    whole = (end == high) | (after >= when)
    if not (inside & past & whole).all():
        raise AssertionError("a history holds an event that is not strictly before its impression")
    return len(end)
