"""Impressions for logs that have none: each basket's items against seeded negatives of the same moment."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halflife.errors import choice, flag, number, whole
from halflife.tables import DAY_S

Array = NDArray[Any]

TRIES = 20  # rounds of redrawing a negative that turned out to be a positive, a repeat or already seen


@dataclass(frozen=True)
class Negatives:
    """How negatives are drawn for a log without impressions.

    Args:
        per_positive: negatives drawn for each clicked item, at least 1.
        by: `popularity` draws in proportion to an item's events in the window before the moment, so that AUC
            does not merely measure popularity; `uniform` draws alike every item that had an event before it.
        window_days: an item is alive at a moment when it had an event in this many days before it.
        exclude_seen: leave out what the user had before, for logs in which nobody takes an item twice.
        max_positives: a larger basket is split into several impressions of the same moment.
        seed: the same seed draws the same negatives.

    Raises:
        InputError: for a value out of range.
    """

    per_positive: int
    by: str
    window_days: float
    exclude_seen: bool
    max_positives: int
    seed: int

    def __post_init__(self) -> None:
        for name, unit, least in (
            ("per_positive", "items", 1),
            ("max_positives", "items", 1),
            ("seed", "integer", 0),
        ):
            value = whole(f"data.negatives.{name}", getattr(self, name), unit, at_least=least)
            object.__setattr__(self, name, value)  # frozen, and 4.0 has become 4
        number("data.negatives.window_days", self.window_days, "days", above=0)
        flag("data.negatives.exclude_seen", self.exclude_seen)
        choice("data.negatives.by", self.by, ["popularity", "uniform"])


def baskets(user: Array, time: Array, max_positives: int) -> tuple[Array, Array]:
    """Number the impressions of events sorted by (user, time): one per user and second, split when too large.

    Returns:
        impression: for each event, its impression, 0, 1, 2 …
        first: for each impression, the row of its first event.

    >>> baskets(np.array([0, 0, 0, 1]), np.array([5, 5, 9, 9]), max_positives=10)
    (array([0, 0, 1, 2]), array([0, 2, 3]))
    """
    starts = np.r_[True, (user[1:] != user[:-1]) | (time[1:] != time[:-1])]
    position = np.arange(len(user)) - np.maximum.accumulate(np.where(starts, np.arange(len(user)), 0))
    starts |= position % max_positives == 0
    return np.cumsum(starts) - 1, np.flatnonzero(starts)


def sample(
    settings: Negatives, user: Array, item: Array, time: Array, n_items: int
) -> tuple[Array, Array, Array, Array, Array, int]:
    """Make impressions with candidates and labels out of events sorted by (user, time).

    Only events strictly before a moment decide what may be drawn for it.

    Args:
        settings: how to draw.
        user, item, time: events as integer arrays; time in seconds.
        n_items: size of the catalogue.

    Returns:
        user and time of each impression, offsets into the candidates (one more than impressions), candidates,
        labels, and how many negatives were given up on after repeated draws.
    """
    rng = np.random.default_rng(settings.seed)
    basket, _ = baskets(user, time, len(user))
    # a basket may name an item twice in one second; it is one positive
    in_basket, once = np.unique(basket.astype(np.int64) * n_items + item, return_index=True)
    once.sort()
    positive, when = item[once], time[once]
    impression, first = baskets(user[once], when, settings.max_positives)
    basket, basket_user = basket[once][first], user[once][first]  # of each impression

    owner = np.repeat(impression, settings.per_positive)
    moment = when[first][owner]
    by_time = np.argsort(time, kind="stable")
    taken = np.zeros(0, np.int64)
    # the first time each user met each item, to find what had been seen before a moment
    pair, pair_first = np.unique(user.astype(np.int64) * n_items + item, return_index=True)
    pair_time = time[pair_first]  # events are in time order within a user, so the first index is the earliest

    negative = np.full(len(owner), -1, np.int64)
    todo = np.arange(len(owner))
    for _ in range(TRIES):
        draw = _draw(rng, settings, item, time, by_time, moment[todo], n_items)
        key = owner[todo].astype(np.int64) * n_items + draw
        # what another part of a split basket holds was clicked in this very second: no negative either
        bad = (draw < 0) | _contains(taken, key)
        bad |= _contains(in_basket, basket[owner[todo]].astype(np.int64) * n_items + draw)
        if settings.exclude_seen:
            own = basket_user[owner[todo]].astype(np.int64) * n_items + draw
            at = np.minimum(np.searchsorted(pair, own), len(pair) - 1)
            bad |= (pair[at] == own) & (pair_time[at] < moment[todo])
        fresh, where = np.unique(np.where(bad, -1, key), return_index=True)
        keep = where[fresh >= 0]  # one draw of an item per impression, the rest try again
        negative[todo[keep]] = draw[keep]
        taken = np.sort(np.r_[taken, key[keep]])  # none of them in both: union1d hashes, 50 times slower here
        todo = np.delete(todo, keep)
        if len(todo) == 0:
            break

    real = negative >= 0
    imp = np.r_[impression, owner[real]]
    items = np.r_[positive, negative[real]]
    label = np.r_[np.ones(len(positive), np.int8), np.zeros(int(real.sum()), np.int8)]
    order = np.lexsort((rng.random(len(imp)), imp))  # shuffled within: place says nothing about the label
    offsets = np.r_[0, np.cumsum(np.bincount(imp, minlength=len(first)))]
    return basket_user, when[first], offsets, items[order], label[order], int((~real).sum())


def _draw(
    rng: np.random.Generator,
    settings: Negatives,
    item: Array,
    time: Array,
    by_time: Array,
    moment: Array,
    n_items: int,
) -> Array:
    """One item for each moment, −1 where nothing was alive."""
    uniform = rng.random(len(moment))
    if settings.by == "popularity":
        sorted_time = time[by_time]
        low = np.searchsorted(sorted_time, moment - int(settings.window_days * DAY_S))
        high = np.searchsorted(sorted_time, moment)
        at = low + (uniform * (high - low)).astype(np.int64)
        return np.where(high > low, item[by_time[np.minimum(at, len(item) - 1)]], -1)
    _, first = np.unique(item[by_time], return_index=True)
    first_time = time[by_time[first]]
    order = np.argsort(first_time, kind="stable")
    born = np.unique(item)[order]
    alive = np.searchsorted(first_time[order], moment)
    return np.where(alive > 0, born[np.minimum((uniform * alive).astype(np.int64), len(born) - 1)], -1)


def _contains(sorted_keys: Array, keys: Array) -> Array:
    """Which of the keys occur in a sorted array."""
    if len(sorted_keys) == 0:
        return np.zeros(len(keys), bool)
    at = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return np.asarray(sorted_keys[at] == keys)
