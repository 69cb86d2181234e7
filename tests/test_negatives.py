"""Sampled negatives are fair: alive at the moment, no click of the same second, drawn as the settings say."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st

from halflife import recommender
from halflife.arrays import build
from halflife.batches import Impressions
from halflife.cli import CONFIG_DIR
from halflife.datamodule import DataModule
from halflife.draws import Fresh, InView
from halflife.errors import InputError
from halflife.negatives import Negatives, baskets, log_rate, sample
from halflife.pools import Pool
from halflife.store import Store
from halflife.tables import DAY_S, Tables

DEFAULTS = {
    "per_positive": 2,
    "by": "popularity",
    "window_days": 10.0,
    "exclude_seen": False,
    "max_positives": 3,
    "seed": 0,
}
BY = pytest.mark.parametrize("by", ["popularity", "alive", "uniform"])
SEEN = pytest.mark.parametrize("exclude_seen", [False, True])
EVENT = st.tuples(st.integers(0, 3), st.integers(0, 12), st.integers(0, 9))  # user, day, item
LOG = st.lists(EVENT, min_size=1, max_size=60)
MANY_ITEMS = 10


@dataclass(frozen=True)
class Shown:
    """One sampled impression, as plain Python."""

    user: int
    time: int
    positives: list[int]
    negatives: list[int]


def log_of(events: list[tuple[int, int, int]]) -> tuple[Any, Any, Any]:
    """User, item and time arrays, sorted as the Store sorts them; a stable sort keeps ties in their order."""
    rows = sorted(((u, d * DAY_S, i) for u, d, i in events), key=lambda row: row[:2])
    user, time, item = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    return user.astype(np.int32), item.astype(np.int32), time


def drawn(
    user: Any, item: Any, time: Any, n_items: int = MANY_ITEMS, **changes: Any
) -> tuple[list[Shown], int]:
    given = Negatives(**(DEFAULTS | changes))
    who, when, offsets, candidates, label, given_up = sample(given, user, item, time, n_items)
    assert len(candidates) == len(label) == offsets[-1]
    shown = []
    for r in range(len(who)):
        here = slice(offsets[r], offsets[r + 1])
        clicked = candidates[here][label[here] == 1].tolist()
        shown.append(Shown(int(who[r]), int(when[r]), clicked, candidates[here][label[here] == 0].tolist()))
    return shown, given_up


# --- baskets


@given(events=LOG, most=st.integers(1, 5))
def test_a_basket_is_one_user_and_second_split_when_too_large(
    events: list[tuple[int, int, int]], most: int
) -> None:
    user, _, time = log_of(events)
    impression, first = baskets(user, time, most)
    expected: list[int] = []
    size: Counter[int] = Counter()
    for r in range(len(user)):
        same = r > 0 and (user[r], time[r]) == (user[r - 1], time[r - 1]) and size[expected[-1]] < most
        expected.append(expected[-1] if same else (expected[-1] + 1 if r else 0))
        size[expected[-1]] += 1
    assert impression.tolist() == expected
    assert first.tolist() == [expected.index(i) for i in range(expected[-1] + 1)]


# --- against brute force


@BY
@SEEN
@settings(max_examples=60)
@given(
    events=LOG, most=st.integers(1, 4), per=st.integers(1, 4), window=st.sampled_from([0.5, 1.0, 4.0, 99.0])
)
def test_every_impression_is_what_the_settings_say(
    by: str, exclude_seen: bool, events: list[tuple[int, int, int]], most: int, per: int, window: float
) -> None:
    user, item, time = log_of(events)
    log = list(zip(user.tolist(), time.tolist(), item.tolist(), strict=True))
    shown, given_up = drawn(
        user,
        item,
        time,
        by=by,
        exclude_seen=exclude_seen,
        max_positives=most,
        per_positive=per,
        window_days=window,
    )
    positives: dict[tuple[int, int], list[int]] = {}
    missing = 0
    for one in shown:
        basket = {i for u, t, i in log if (u, t) == (one.user, one.time)}
        positives.setdefault((one.user, one.time), []).extend(one.positives)
        assert 1 <= len(one.positives) <= most
        assert set(one.positives) <= basket
        # no click of the same second, no item twice, none that had not been there strictly before
        assert not set(one.negatives) & basket
        assert len(set(one.negatives)) == len(one.negatives) <= per * len(one.positives)
        low = one.time - int(window * DAY_S) if by != "uniform" else -1
        before = [i for _, t, i in log if low <= t < one.time]
        pool = before if by == "popularity" else sorted(set(before))
        assert set(one.negatives) <= set(pool)
        allowed = set(pool) - basket
        if exclude_seen:
            seen = {i for u, t, i in log if u == one.user and t < one.time}
            assert not set(one.negatives) & seen
            allowed -= seen
        missing += per * len(one.positives) - len(one.negatives)
        if 2 * sum(i in allowed for i in pool) > len(pool):
            assert one.negatives, "at even odds or better, twenty draws find one"
    assert given_up == missing
    assert {key: sorted(got) for key, got in positives.items()} == {
        (u, t): sorted({i for v, s, i in log if (v, s) == (u, t)}) for u, t, _ in log
    }


def test_another_part_of_a_split_basket_gives_no_negatives() -> None:
    # 40 items were bought in one second, by four impressions of 10; the only other item is number 40
    user = np.array([0] * 41 + [1] * 40, np.int32)
    item = np.array([*range(41), *range(40)], np.int32)
    time = np.array([*range(41), *[100] * 40], np.int64)
    shown, _ = drawn(user, item, time, n_items=41, per_positive=1, max_positives=10)
    parts = [one for one in shown if one.time == 100]
    assert [len(one.positives) for one in parts] == [10] * 4
    assert [one.negatives for one in parts] == [[40]] * 4


def test_an_item_named_twice_in_a_second_is_one_positive_even_where_the_basket_is_split() -> None:
    user, item, time = np.zeros(6, np.int32), np.array([0, 1, 2, 0, 1, 2], np.int32), np.full(6, 50)
    shown, _ = drawn(user, item, time, max_positives=2)
    assert [one.positives for one in shown] in ([[0, 1], [2]], [[1, 0], [2]])


# --- how often


def ample_log(seed: int, readers: int = 400) -> tuple[Any, Any, Any]:
    """Twenty items with known counts on day 0, and then one click of item 20 by each of many readers."""
    counts = np.arange(1, 21) ** 2
    item = np.random.default_rng(seed).permutation(np.repeat(np.arange(20), counts))
    user = np.r_[np.zeros(len(item), np.int64), np.arange(1, readers + 1)]
    time = np.r_[np.arange(len(item)), np.full(readers, DAY_S)]
    return user.astype(np.int32), np.r_[item, np.full(readers, 20)].astype(np.int32), time


def test_where_the_pool_is_ample_every_positive_has_its_number() -> None:
    shown, _ = drawn(*ample_log(0), n_items=21, per_positive=4)
    assert {len(one.negatives) for one in shown if one.time == DAY_S} == {4}


def chi_square(seed: int, by: str, expected: Any) -> float:
    shown, _ = drawn(*ample_log(seed), n_items=21, per_positive=1, by=by, window_days=2.0, seed=seed)
    got = np.bincount([i for one in shown if one.time == DAY_S for i in one.negatives], minlength=21)
    assert got[20] == 0
    assert got.sum() == 400
    return float(((got[:20] - expected) ** 2 / expected).sum())


def test_popularity_draws_in_proportion_to_events_in_the_window() -> None:
    expected = 400 * np.arange(1, 21) ** 2 / (np.arange(1, 21) ** 2).sum()
    statistic = np.mean([chi_square(seed, "popularity", expected) for seed in range(10)])
    assert statistic == pytest.approx(19, abs=6)  # mean of χ² with 19 degrees of freedom over 10 draws, ± 3 σ


def test_uniform_draws_every_item_alike() -> None:
    statistic = np.mean([chi_square(seed, "uniform", np.full(20, 20.0)) for seed in range(10)])
    assert statistic == pytest.approx(19, abs=6)
    assert chi_square(0, "popularity", np.full(20, 20.0)) > 100  # the test can tell the two apart


def test_popularity_forgets_what_lies_before_the_window() -> None:
    user, item = np.array([0, 0, 1, 2], np.int32), np.array([0, 0, 1, 2], np.int32)
    time = np.array([0, 1, 9 * DAY_S, 10 * DAY_S])
    assert drawn(user, item, time, window_days=2.0, per_positive=1)[0][-1].negatives == [1]
    assert set(drawn(user, item, time, window_days=11.0, per_positive=2)[0][-1].negatives) == {0, 1}


# --- the draw


@BY
def test_the_same_seed_draws_the_same_and_another_does_not(by: str) -> None:
    log = ample_log(0)
    first = sample(Negatives(**(DEFAULTS | {"by": by})), *log, 21)
    again = sample(Negatives(**(DEFAULTS | {"by": by})), *log, 21)
    other = sample(Negatives(**(DEFAULTS | {"by": by, "seed": 1})), *log, 21)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[3], other[3])


def test_the_place_of_a_candidate_says_nothing_about_its_label() -> None:
    log = ample_log(0)
    _, when, offsets, _, label, _ = sample(Negatives(**(DEFAULTS | {"per_positive": 3})), *log, 21)
    rows = np.flatnonzero(when == DAY_S)
    by_place = np.array([label[offsets[r] : offsets[r + 1]] for r in rows]).mean(0)
    assert by_place == pytest.approx(np.full(4, 0.25), abs=4 * np.sqrt(0.25 * 0.75 / 400))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("per_positive", 0),
        ("window_days", 0.0),
        ("max_positives", 0),
        ("by", "popular"),
        ("seed", -1),
        ("per_positive", 2.5),
        ("max_positives", "10"),
        ("seed", 1.5),
        ("exclude_seen", "maybe"),
        ("fresh", "maybe"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^data\.negatives\.{name} must be .*, got {value}; "):
        Negatives(**(DEFAULTS | {name: value}))


# --- alive at that time


ALIVE_EVENT = st.tuples(st.integers(0, 5), st.integers(0, 60))  # item, second


@settings(max_examples=80)
@given(
    events=st.lists(ALIVE_EVENT, min_size=1, max_size=40),
    window=st.integers(1, 25),
    by=st.sampled_from(["popularity", "alive", "uniform"]),
    moments=st.lists(st.integers(-5, 70), min_size=1, max_size=5),
)
def test_a_pool_is_what_a_loop_over_the_events_finds(
    events: list[tuple[int, int]], window: int, by: str, moments: list[int]
) -> None:
    item, time = (np.array(column, np.int64) for column in zip(*events, strict=True))
    pool = Pool(by, window, item, time)
    grid = (np.arange(4000) + 0.5) / 4000
    for now in moments:
        low = now - window if by != "uniform" else -(10**6)
        inside = [i for i, t in events if low <= t < now]
        weight = Counter(inside) if by == "popularity" else Counter(set(inside))
        got = pool.draw(grid, np.full(len(grid), now))
        assert set(got[got >= 0].tolist()) == set(weight)
        chance = pool.chance(np.arange(6), np.full(6, now))
        expected = [weight[i] / max(sum(weight.values()), 1) for i in range(6)]
        assert chance == pytest.approx(expected)
        if weight:  # what is not refused is drawn by its weight
            drawn = np.bincount(got[got >= 0], minlength=6) / (got >= 0).sum()
            assert drawn == pytest.approx(expected, abs=0.02)


def test_hardly_any_draw_of_the_items_alive_is_refused() -> None:
    rng = np.random.default_rng(0)
    item, time = rng.integers(0, 500, 20_000), rng.integers(0, 100 * DAY_S, 20_000)
    pool = Pool("alive", 3 * DAY_S, item, time)
    got = pool.draw(rng.random(5000), rng.integers(5 * DAY_S, 100 * DAY_S, 5000))
    assert (got >= 0).mean() > 0.75


# --- calibration


ITEMS_TAKEN = 150


def simulated(seed: int, moments: int) -> tuple[Any, Any, Any, Any]:
    """A log in which at every second another user takes one item, by known shares, behind one of each."""
    share = 1 / (np.arange(ITEMS_TAKEN) + 10)
    share /= share.sum()
    rng = np.random.default_rng(seed)
    item = np.r_[np.arange(ITEMS_TAKEN), rng.choice(ITEMS_TAKEN, moments, p=share)].astype(np.int32)
    return np.arange(len(item), dtype=np.int32), item, np.arange(len(item), dtype=np.int64), share


@pytest.mark.parametrize("by", ["popularity", "alive", "uniform"])
def test_a_model_of_the_sample_corrected_by_the_rate_tells_the_true_chances(by: str) -> None:
    user, item, time, share = simulated(seed=5, moments=60_000)
    drawing = Negatives(
        **(DEFAULTS | {"by": by, "per_positive": 3, "window_days": 5000 / DAY_S, "max_positives": 1})
    )
    who, when, offsets, shown, label, given_up = sample(drawing, user, item, time, ITEMS_TAKEN)
    rate = log_rate(drawing, Pool(by, 5000, item, time), who, when, offsets, shown, label)
    late = (np.repeat(when, np.diff(offsets)) > 6000) & np.isfinite(rate)
    shown, label, rate = shown[late], label[late], rate[late]
    assert given_up < 0.001 * len(shown)
    clicks, others = (np.bincount(shown, label == y, minlength=ITEMS_TAKEN) for y in (1, 0))
    score = np.log(clicks / others)  # the best model of the sample: it knows every item's odds there
    found = np.bincount(shown, 1 / (1 + np.exp(-score[shown] - rate))) / np.bincount(shown)
    for part in np.array_split(np.arange(ITEMS_TAKEN), 6):  # a sixth of the items: 3,000 clicks or more
        assert found[part].sum() == pytest.approx(share[part].sum(), rel=0.06)
    assert found.sum() == pytest.approx(1, abs=0.03)  # somebody takes one item at every moment
    assert (1 / (1 + np.exp(-score))).sum() > 20  # the sample's own rates are far from it


def test_a_positive_that_could_not_have_been_drawn_has_no_rate() -> None:
    user, item, time = np.arange(4, dtype=np.int32), np.array([0, 1, 1, 2], np.int32), np.arange(4) * DAY_S
    drawing = Negatives(**(DEFAULTS | {"by": "uniform", "per_positive": 1}))
    who, when, offsets, shown, label, _ = sample(drawing, user, item, time, 3)
    rate = log_rate(drawing, Pool("uniform", DAY_S, item, time), who, when, offsets, shown, label)
    found = {
        (int(t), int(i)): r
        for t, i, r in zip(np.repeat(when, np.diff(offsets)) // DAY_S, shown, rate, strict=True)
    }
    assert found[3, 2] == -np.inf  # nobody had taken item 2 before
    assert found[2, 0] == 0  # the basket holds item 1, so item 0 is the only one left and always drawn
    assert found[2, 1] == 0
    assert [r for (t, _), r in found.items() if t == 3 and r > -np.inf] == pytest.approx([np.log(1 / 2)])


# --- of a training batch


@pytest.fixture(scope="module")
def drawn_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    rng = np.random.default_rng(2)
    n = 900
    moment = 1_700_000_000 + np.sort(rng.integers(0, 20 * DAY_S, n))
    moment[1::3] = moment[::3]  # baskets
    events = pl.DataFrame(
        {
            "user_id": [f"u{i}" for i in np.repeat(rng.integers(0, 25, n // 3), 3)],
            "item_id": [f"i{i}" for i in rng.integers(0, 30, n)],
            "timestamp_s": moment,
        }
    ).with_columns(kind=pl.lit("click"), value=pl.lit(1.0))
    items = pl.DataFrame({"item_id": [f"i{i}" for i in range(30)]}).with_columns(
        text=pl.lit("t"), category=pl.lit("c")
    )
    directory = tmp_path_factory.mktemp("store")
    build(Tables(items, events, None, True), Negatives(**(DEFAULTS | {"per_positive": 3})), directory)
    return Store(directory)


@BY
@SEEN
def test_fresh_negatives_keep_every_rule_and_change_with_the_epoch_alone(
    by: str, exclude_seen: bool, drawn_store: Store
) -> None:
    changes = {"by": by, "exclude_seen": exclude_seen, "fresh": True, "window_days": 6.0}
    draws, s = Fresh(Negatives(**(DEFAULTS | changes)), drawn_store), drawn_store
    rows = np.arange(200, len(s.impression_time))
    data = Impressions(s, 20, "days", None, draws)
    first, again, later = data[0, rows], data[0, rows], data[1, rows]
    assert torch.equal(first.item[first.candidates], again.item[again.candidates])
    assert torch.equal(first.label, later.label)
    one, two = ((b.item[b.candidates] * b.candidate_mask).numpy() for b in (first, later))
    negative = (first.candidate_mask & (first.label == 0)).numpy()
    assert (one[negative] != two[negative]).mean() > 0.5
    assert (one[~negative] == two[~negative]).all()
    split = np.array_split(rows, 7)  # whatever the batch
    parts = [data[0, part] for part in split]
    assert [b.item[b.candidates][b.candidate_mask].tolist() for b in parts] == [
        one[np.isin(rows, part)][first.candidate_mask.numpy()[np.isin(rows, part)]].tolist() for part in split
    ]
    kept = 0
    for r, row in enumerate(rows):
        user, now = s.impression_user[row], s.impression_time[row]
        own = slice(int(s.user_start[user]), int(s.user_start[user + 1]))
        basket = set(s.event_item[own][s.event_time[own] == now].tolist())
        seen = set(s.event_item[own][s.event_time[own] < now].tolist())
        pool = (s.event_time < now) & (s.event_time >= now - (6 * DAY_S if by != "uniform" else 10**9))
        old = s.candidate_item[int(s.candidate_start[row]) : int(s.candidate_start[row + 1])]
        got = one[r][negative[r]].tolist()
        assert len(set(got)) == len(got)
        assert not set(got) & basket
        allowed = set(s.event_item[pool].tolist()) - (seen if exclude_seen else set())
        kept += len(set(got) - allowed)
        assert set(got) <= allowed | set(old.tolist())  # where nothing is found, the Store's stays
    assert kept == 0 or exclude_seen


def test_a_part_of_what_was_shown_keeps_every_click_and_the_odds_are_corrected(
    make_log: Callable[..., DataModule],
) -> None:
    shown = Negatives(**(DEFAULTS | {"by": "in_view", "per_positive": 2, "fresh": True}))
    data = make_log(negatives=shown, source={"candidates": 12, "users": 300})
    rows = data.rows("train")
    draws = InView(shown, data.store, rows)
    whole, part = data.impressions()[rows], Impressions(data.store, 20, "days", None, draws)[0, rows]
    assert part.label.sum() == whole.label.sum()
    assert 0 < draws.share < 1
    assert part.candidate_mask.sum() / part.label.sum() == pytest.approx(3, rel=0.05)
    others = [(b.candidate_mask & (b.label == 0)).sum() for b in (whole, part)]
    assert others[1] / others[0] == pytest.approx(draws.share, rel=0.05)
    assert part.log_rate is not None
    # an intercept alone: fitted on the part, with the correction, it is that of the whole
    click = part.label.sum() / part.candidate_mask.sum()
    intercept = torch.logit(click) + part.log_rate
    assert torch.sigmoid(intercept) == pytest.approx(
        float(whole.label.sum() / whole.candidate_mask.sum()), rel=0.05
    )
    for r in (0, 7, 31):  # what is kept was shown, in front, with its label
        items = dict(
            zip(
                whole.item[whole.candidates[r]][whole.candidate_mask[r]].tolist(),
                whole.label[r][whole.candidate_mask[r]].tolist(),
                strict=True,
            )
        )
        mask = part.candidate_mask[r]
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)
        for item, y in zip(
            part.item[part.candidates[r]][mask].tolist(), part.label[r][mask].tolist(), strict=True
        ):
            assert items[item] == y


def test_the_loader_draws_anew_in_every_epoch_and_val_keeps_all(make_log: Callable[..., DataModule]) -> None:
    shown = Negatives(**(DEFAULTS | {"by": "in_view", "per_positive": 1, "fresh": True}))
    data = make_log(negatives=shown)
    loader = data.train_dataloader()
    seen = []
    for epoch in (0, 0, 1):
        loader.sampler.set_epoch(epoch)
        batch = min(loader, key=lambda b: int(b.impression.min()))
        order = batch.impression.argsort()
        rows = zip(batch.candidates[order], batch.candidate_mask[order], strict=True)
        seen.append([batch.item[c][m].tolist() for c, m in rows])
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]
    assert all(batch.log_rate is None for batch in data.val_dataloader())
    fixed = make_log(negatives=replace(shown, fresh=False))
    draws = InView(fixed.negatives, fixed.store, fixed.rows("train"))
    rows = fixed.rows("train")[:50]
    both = [Impressions(fixed.store, 20, "days", None, draws)[epoch, rows] for epoch in (0, 5)]
    assert torch.equal(both[0].candidates, both[1].candidates)


def test_the_loss_of_a_part_is_that_of_scores_less_the_log_of_its_share(
    make_log: Callable[..., DataModule],
) -> None:
    shown = Negatives(**(DEFAULTS | {"by": "in_view", "per_positive": 1}))
    data = make_log(negatives=shown)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("train", overrides=["model=id_embedding", f"cache_dir={data.cache_dir}"])
    module = recommender.build(cfg, data)
    batch = next(iter(data.train_dataloader()))
    taken = []
    module.loss = lambda score, label, mask: taken.append(score) or score.sum() * float("nan")
    with pytest.raises(InputError, match="train/loss must stay finite"):
        module.training_step(batch, 0)
    assert torch.allclose(taken[0], module(batch) - batch.log_rate)


def test_a_mode_that_makes_no_sense_for_a_log_is_refused(
    make_log: Callable[..., DataModule], tmp_path: Path, drawn_store: Store
) -> None:
    data = make_log(negatives=Negatives(**(DEFAULTS | {"fresh": True})))
    with pytest.raises(InputError, match=r"^data\.negatives\.fresh must be false for a log with impressions"):
        data.train_dataloader()
    log = Tables(
        pl.DataFrame({"item_id": ["a"], "text": ["a"], "category": ["c"]}),
        pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp_s": [9], "kind": ["k"], "value": [1.0]}),
        None,
        True,
    )
    with pytest.raises(InputError, match=r"^data\.negatives\.by must be .* got in_view; choose one of them"):
        build(log, Negatives(**(DEFAULTS | {"by": "in_view"})), tmp_path)


def test_in_view_needs_no_window_and_no_baskets_and_the_others_do() -> None:
    needed = {"per_positive": 2, "seed": 0}
    assert Negatives(**needed, by="in_view").by == "in_view"
    with pytest.raises(
        InputError, match=r"^data\.negatives\.max_positives must be a whole number .*, got 0; "
    ):
        Negatives(**needed, by="alive", window_days=1.0)
    with pytest.raises(InputError, match=r"^data\.negatives\.window_days must be a number above 0 .*, got 0"):
        Negatives(**needed, by="alive", max_positives=1)
