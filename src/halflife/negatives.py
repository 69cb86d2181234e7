"""Impressions for logs that have none: each basket's items against seeded negatives of the same moment."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halflife.errors import choice, flag, number, whole
from halflife.pools import Pool
from halflife.tables import DAY_S

Array = NDArray[Any]

TRIES = 20  # rounds of redrawing a negative that turned out to be a positive, a repeat or already seen


@dataclass(frozen=True)
class Negatives:
    """Which negatives a positive is told from, and how they are drawn.

    Without impressions, negatives are drawn when the Store is built, for every split: `popularity` in
    proportion to an item's events in the window before the moment, so that AUC does not merely measure
    popularity; `alive` alike among the items with an event in that window; `uniform` alike among all that had
    one before the moment. With impressions negatives are what was shown and not clicked; `in_view` takes a
    random part of them in training, and all of them in val and test.

    Args:
        per_positive: negatives drawn for each clicked item, at least 1; of `in_view` so many on average.
        by: `popularity`, `alive`, `uniform` or `in_view`.
        seed: the same seed draws the same negatives.
        fresh: draw those of training anew in every epoch.
        window_days: an item is alive at a moment when it had an event in this many days before it; with what
            follows not read by `in_view`.
        exclude_seen: leave out what the user had before, for logs in which nobody takes an item twice.
        max_positives: a larger basket is split into several impressions of the same moment.

    Raises:
        InputError: for a value out of range.
    """

    per_positive: int
    by: str
    seed: int
    fresh: bool = False
    window_days: float = 0.0  # these three have no meaning, and no place in the yaml, for in_view
    exclude_seen: bool = False
    max_positives: int = 0

    def __post_init__(self) -> None:
        choice("data.negatives.by", self.by, ["popularity", "alive", "uniform", "in_view"])
        drawn = self.by != "in_view"
        for name, unit, least in (
            ("per_positive", "items", 1),
            ("max_positives", "items", int(drawn)),
            ("seed", "integer", 0),
        ):
            value = whole(f"data.negatives.{name}", getattr(self, name), unit, at_least=least)
            object.__setattr__(self, name, value)  # frozen, and 4.0 has become 4
        if drawn:
            number("data.negatives.window_days", self.window_days, "days", above=0)
        flag("data.negatives.exclude_seen", self.exclude_seen)
        flag("data.negatives.fresh", self.fresh)

    @property
    def window_s(self) -> int:
        """The window in seconds."""
        return max(1, int(self.window_days * DAY_S))


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
    pool = Pool(settings.by, settings.window_s, item, time)
    # the first time each user met each item, to find what had been seen before a moment
    pair, pair_first = np.unique(user.astype(np.int64) * n_items + item, return_index=True)
    pair_time = time[pair_first]  # events are in time order within a user, so the first index is the earliest

    def attempt(_: int, todo: Array) -> tuple[Array, Array]:
        draw = pool.draw(rng.random(len(todo)), moment[todo])
        # what another part of a split basket holds was clicked in this very second: no negative either
        bad = contains(in_basket, basket[owner[todo]].astype(np.int64) * n_items + draw)
        if settings.exclude_seen:
            own = basket_user[owner[todo]].astype(np.int64) * n_items + draw
            at = np.minimum(np.searchsorted(pair, own), len(pair) - 1)
            bad |= (pair[at] == own) & (pair_time[at] < moment[todo])
        return draw, bad

    negative, _ = draw_distinct(owner, n_items, attempt)
    real = negative >= 0
    imp = np.r_[impression, owner[real]]
    items = np.r_[positive, negative[real]]
    label = np.r_[np.ones(len(positive), np.int8), np.zeros(int(real.sum()), np.int8)]
    order = np.lexsort((rng.random(len(imp)), imp))  # shuffled within: place says nothing about the label
    offsets = np.r_[0, np.cumsum(np.bincount(imp, minlength=len(first)))]
    return basket_user, when[first], offsets, items[order], label[order], int((~real).sum())


def draw_distinct(
    owner: Array, n_items: int, attempt: Callable[[int, Array], tuple[Array, Array]]
) -> tuple[Array, Array]:
    """Draw an item for each place, no item twice for one owner; what is refused is drawn again.

    Args:
        owner: of each place, for whom an item is drawn once.
        n_items: size of the catalogue.
        attempt: the try, from 0, and the places that are still empty, to an item for each (−1: none there)
            and whether it is refused.

    Returns:
        item: of each place, −1 where every try was refused.
        taken: owner · n_items + item of all that was drawn, ascending.

    Shape: owner (places,) → item (places,), taken (drawn,).
    """
    found, taken = np.full(len(owner), -1, np.int64), np.zeros(0, np.int64)
    todo = np.arange(len(owner))
    for turn in range(TRIES):
        if len(todo) == 0:
            break
        item, refused = attempt(turn, todo)
        key = owner[todo].astype(np.int64) * n_items + item
        bad = (item < 0) | refused | contains(taken, key)
        fresh, where = np.unique(np.where(bad, -1, key), return_index=True)
        keep = where[fresh >= 0]  # one draw of an item per owner, the rest try again
        found[todo[keep]] = item[keep]
        taken = np.sort(np.r_[taken, key[keep]])  # none of them in both: union1d hashes, 50 times slower here
        todo = np.delete(todo, keep)
    return found, taken


def log_rate(
    settings: Negatives, pool: Pool, user: Array, time: Array, offsets: Array, item: Array, label: Array
) -> Array:
    """How likely each candidate was to be drawn, had it not been clicked: the log of π.

    A model that learns from positives and drawn negatives learns the odds of the sample. Those of a click,
    among all items of the pool, are smaller by the share of the others that was drawn:

        P(clicked | drawn) / (1 − P(clicked | drawn)) = p / ((1 − p) π), so p = σ(score + log π).

    For `alive` and `uniform` π = n q / (1 − Q), with n negatives of the impression, q = 1 / size of the pool
    and Q what the basket, which is never drawn, takes of it: the intercept moves by the log of the sampling
    ratio. For `popularity` π = 1 − (1 − q / (1 − Q))ⁿ, with q an item's share of the events in the window:
    the score is corrected by about log q. p is the chance that a user who takes something at this moment
    takes this item.

    Args:
        settings: how negatives were drawn; what `exclude_seen` leaves out is not known here.
        pool: they were drawn from.
        user, time, offsets, item, label: from `sample`.

    Shape: as item; −∞ for a positive that could not have been drawn.

    Source: King & Zeng, Logistic Regression in Rare Events Data (Political Analysis 2001), section 4.1, prior
    correction; Yi et al., Sampling-Bias-Corrected Neural Modeling (RecSys 2019), section 3.2, for log q.
    """
    length = np.diff(offsets)
    owner = np.repeat(np.arange(len(user)), length)
    basket, _ = baskets(user, time, len(user))
    chance = pool.chance(item, time[owner])
    own = np.bincount(basket, np.bincount(owner, chance * label, minlength=len(user)))[basket]
    drawn = np.bincount(owner, label == 0, minlength=len(user))
    share = np.minimum(chance / np.maximum(1 - own, 1e-12)[owner], 1.0)
    n = drawn[owner]
    rate = 1 - (1 - share) ** n if settings.by == "popularity" else np.minimum(n * share, 1.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(rate), np.float32)


def contains(sorted_keys: Array, keys: Array) -> Array:
    """Which of the keys occur in a sorted array."""
    if len(sorted_keys) == 0:
        return np.zeros(len(keys), bool)
    at = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return np.asarray(sorted_keys[at] == keys)
