"""The newsroom clicks with the probability it says, and that is the planted kernel's, by brute force."""

import math
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest

from halflife.errors import InputError
from halflife.sources import synthetic
from halflife.sources.newsroom import TAILS, TOPICS
from halflife.tables import DAY_S, EVENT_COLUMNS, IMPRESSION_COLUMNS, ITEM_COLUMNS, Tables, check_columns

SETTINGS: dict[str, Any] = {
    "users": 30,
    "items": 48,
    "days": 20.0,
    "sessions_per_day": 0.8,
    "candidates": 4,
    "kernel": "exponential",
    "half_life_days": 3.0,
    "half_life_sd": 0.0,
    "composition": "sink",
    "strength": 7.0,
    "bias": -3.0,
    "drift_days": 12.0,
    "seed": 1,
}
KERNELS = ["none", "exponential", "power", "weibull", "gaussian"]
COMPOSITIONS = ["sink", "normalised", "sum"]

WEIGHTS = {  # of an age in half-lives, written out once more
    "none": lambda r: 1.0,
    "exponential": lambda r: 0.5**r,
    "power": lambda r: 1 / (1 + r),
    "weibull": lambda r: 0.5 ** math.sqrt(r),
    "gaussian": lambda r: 0.5 ** (r * r),
}


@lru_cache(maxsize=32)
def _made(changes: frozenset[tuple[str, Any]]) -> Tables:
    return synthetic.read([], **(SETTINGS | dict(changes)))


def newsroom(**changes: Any) -> Tables:
    return _made(frozenset(changes.items()))


def shown(log: Tables) -> Iterator[tuple[str, int, list[str], list[int], list[float]]]:
    """User, second, candidates, labels and true probabilities of every impression."""
    assert log.truth is not None
    frame = log.impressions.join(log.truth["probabilities"], on="impression_id", validate="1:1")
    assert len(frame) == len(log.impressions)
    yield from frame.select("user_id", "timestamp_s", "candidates", "labels", "probabilities").iter_rows()


def by_hand(log: Tables, user: str, now: int, candidate: str, given: dict[str, Any]) -> float:
    """P(click) from the events strictly before, one at a time."""
    topic = dict(log.items.select("item_id", "category").iter_rows())
    total = matching = 0.0
    for item, then in past_of(log).get(user, []):
        if then < now:
            half_life = given.get("half_life_days_by_topic", {}).get(topic[item], given["half_life_days"])
            weight = WEIGHTS[given["kernel"]]((now - then) / DAY_S / half_life)
            total += weight
            matching += weight * (topic[item] == topic[candidate])
    if given["composition"] == "sink":
        share = matching / (total + 1)
    elif given["composition"] == "normalised":
        share = matching / total if total else 0.0
    else:
        share = matching
    logit = given["bias"] + given["strength"] * share
    if "news_half_life_days" in given:
        published = dict(log.items.select("item_id", "published_s").iter_rows())
        logit -= math.log(2) * (now - published[candidate]) / DAY_S / given["news_half_life_days"]
    return 1 / (1 + math.exp(-logit))


def past_of(log: Tables) -> dict[str, list[tuple[str, int]]]:
    past: dict[str, list[tuple[str, int]]] = {}
    for user, item, then in log.events.select("user_id", "item_id", "timestamp_s").iter_rows():
        past.setdefault(user, []).append((item, then))
    return past


# --- the planted truth


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_the_probability_is_that_of_the_planted_kernel_over_the_past(kernel: str, composition: str) -> None:
    given = SETTINGS | {"kernel": kernel, "composition": composition}
    log = newsroom(kernel=kernel, composition=composition)
    rows = list(shown(log))
    some = rows[:: max(1, len(rows) // 60)]
    with_a_past = 0
    for user, now, candidates, _, probabilities in some:
        for candidate, stored in zip(candidates, probabilities, strict=True):
            expected = by_hand(log, user, now, candidate, given)
            assert stored == pytest.approx(expected, rel=1e-9, abs=1e-12)
            with_a_past += expected > 1 / (1 + math.exp(-given["bias"])) + 1e-6
    assert with_a_past > 20  # else nothing was tested


def test_news_die_where_that_is_planted() -> None:
    log = newsroom(news_half_life_days=1.5)
    assert log.truth is not None
    assert log.truth["news_half_life_days"] == 1.5
    odds = []
    for user, now, candidates, _, probabilities in list(shown(log))[::5]:
        for candidate, stored in zip(candidates, probabilities, strict=True):
            given = SETTINGS | {"news_half_life_days": 1.5}
            assert stored == pytest.approx(by_hand(log, user, now, candidate, given), rel=1e-9)
            odds.append(stored / by_hand(log, user, now, candidate, SETTINGS))
    assert max(odds) <= 1 + 1e-9  # an article is as fresh as ever on the moment it appears, and never fresher
    assert min(odds) < 0.3
    assert "news_half_life_days" not in newsroom().truth


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_topics_fade_with_half_lives_of_their_own_where_that_is_planted(composition: str) -> None:
    alike = SETTINGS | {"composition": composition}
    given = alike | {"half_life_days_by_topic": {"football": 0.2, "cooking": 40.0}}
    log = synthetic.read([], **given)
    assert log.truth is not None
    assert log.truth["half_lives"] == {t: 3.0 for t in TOPICS} | {"football": 0.2, "cooking": 40.0}
    apart = 0
    for user, now, candidates, _, probabilities in list(shown(log))[::5]:
        for candidate, stored in zip(candidates, probabilities, strict=True):
            assert stored == pytest.approx(by_hand(log, user, now, candidate, given), rel=1e-9)
            apart += abs(stored - by_hand(log, user, now, candidate, alike)) > 0.01
    assert apart > 5  # else nothing was tested


def test_topics_that_are_all_alike_leave_the_log_as_it_was() -> None:
    alike = synthetic.read([], **SETTINGS, half_life_days_by_topic={"football": 3.0})
    assert alike.events.equals(newsroom().events)
    assert alike.impressions.equals(newsroom().impressions)
    assert newsroom().truth is not None
    assert "half_lives" not in newsroom().truth


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"footbal": 1}, r"half_life_days_by_topic must be one of .*, got footbal; did you mean football"),
        ({"football": 0}, r"half_life_days_by_topic\.football must be a number above 0 \(days\), got 0"),
        ({"football": "soon"}, r"half_life_days_by_topic\.football must be a number .*, got soon"),
        (3.0, r"half_life_days_by_topic must be half-lives by topic \(days\), got 3.0; write them as"),
    ],
)
def test_half_lives_of_topics_that_will_not_do_are_refused(given: Any, said: str) -> None:
    with pytest.raises(InputError, match=rf"^data\.source\.{said}"):
        synthetic.read([], **SETTINGS, half_life_days_by_topic=given)


def test_another_half_life_does_not_explain_the_probabilities() -> None:
    log = newsroom()
    off = [
        abs(p - by_hand(log, user, now, candidate, SETTINGS | {"half_life_days": 3.3}))
        for user, now, candidates, _, probabilities in list(shown(log))[-40:]
        for candidate, p in zip(candidates, probabilities, strict=True)
    ]
    assert max(off) > 1e-3


def test_labels_are_as_frequent_as_their_probability_says() -> None:
    log = newsroom(users=1000, days=30.0, items=240)
    rows = list(shown(log))
    p = np.array([p for *_, probabilities in rows for p in probabilities])
    label = np.array([y for *_, labels, _ in rows for y in labels])
    assert len(p) > 60_000
    edges = [0, 0.05, 0.08, 0.12, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0]
    score = []
    for low, high in pairwise(edges):
        here = (p > low) & (p <= high)
        assert here.sum() > 200
        score.append((label[here] - p[here]).sum() / np.sqrt((p[here] * (1 - p[here])).sum()))
    assert np.abs(score).max() < 3.5
    assert np.square(score).sum() < 25  # χ² with 9 degrees of freedom, beyond 1 in 300


def test_clicks_are_independent_given_their_probability() -> None:
    rows = list(shown(newsroom(users=1000, days=30.0, items=240)))
    miss = np.array([np.array(y) - np.array(p) for *_, y, p in rows])
    pairs = (miss.sum(1) ** 2 - (miss**2).sum(1)) / 2  # Σ over pairs within an impression, mean 0
    assert abs(pairs.mean()) < 4 * pairs.std() / math.sqrt(len(pairs))


def test_every_click_is_an_event_and_every_event_a_click_or_a_read() -> None:
    log = newsroom()
    clicks = {
        (u, i, t) for u, t, items, labels, _ in shown(log) for i, y in zip(items, labels, strict=True) if y
    }
    kinds = log.events.select("user_id", "item_id", "timestamp_s", "kind").rows()
    assert {row[:3] for row in kinds if row[3] == "click"} == clicks
    assert {row[3] for row in kinds} == {"click", "read"}


def test_the_truth_names_what_was_planted() -> None:
    truth = newsroom().truth
    assert truth is not None
    assert {k: v for k, v in truth.items() if k != "probabilities"} == {
        "kernel": "exponential",
        "half_life_days": 3.0,
        "composition": "sink",
        "strength": 7.0,
    }
    nothing = newsroom(kernel="none").truth
    assert nothing is not None
    assert set(nothing) == {"kernel", "probabilities"}  # where nothing fades there is no half-life


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_planted_kernel_starts_at_one_and_has_halved_at_its_half_life(kernel: str) -> None:
    weight = np.exp(synthetic.log_weight(kernel, np.array([0.0, 4.0, 40.0]), 4.0))
    assert weight[0] == 1.0
    assert weight[1] == pytest.approx(1.0 if kernel == "none" else 0.5)
    assert weight[2] == pytest.approx(WEIGHTS[kernel](10.0))


# --- the log


def test_the_same_seed_gives_the_same_log_and_another_does_not() -> None:
    first, again, other = (synthetic.read([], **(SETTINGS | {"seed": seed})) for seed in (1, 1, 2))
    for name in ("items", "events", "impressions"):
        assert getattr(first, name).equals(getattr(again, name))
        assert not getattr(first, name).equals(getattr(other, name))
    assert first.truth is not None
    assert again.truth is not None
    assert first.truth["probabilities"].equals(again.truth["probabilities"])


def test_the_log_keeps_the_contract() -> None:
    log = newsroom()
    assert log.has_click_times
    assert log.has_impressions
    for name, columns in (
        ("items", ITEM_COLUMNS),
        ("events", EVENT_COLUMNS),
        ("impressions", IMPRESSION_COLUMNS),
    ):
        frame = check_columns(name, getattr(log, name), columns).collect()
        assert sum(frame.null_count().row(0)) == 0
    assert log.impressions["impression_id"].is_unique().all()
    assert log.impressions["timestamp_s"].is_sorted()
    last = synthetic.START_S + SETTINGS["days"] * DAY_S
    assert log.events["timestamp_s"].is_between(synthetic.START_S, last, closed="left").all()
    assert set(log.events["item_id"]) <= set(log.items["item_id"])


def test_readers_have_no_two_page_views_in_one_second() -> None:
    # else the probability would know of a click that no history holds
    log = newsroom(users=1000, days=30.0, items=240)
    views = pl.concat(
        [
            log.impressions.select("user_id", "timestamp_s"),
            log.events.filter(pl.col("kind") == "read").select("user_id", "timestamp_s"),
        ]
    )
    assert views.is_unique().all()


def test_candidates_are_as_many_as_asked_and_each_on_a_topic_of_its_own() -> None:
    for wanted in (2, 12):
        log = newsroom(candidates=wanted)
        topic = dict(log.items.select("item_id", "category").iter_rows())
        for _, _, candidates, labels, _ in shown(log):
            assert len(candidates) == len(labels) == len({topic[c] for c in candidates}) == wanted


@pytest.mark.parametrize("seed", range(4))
def test_an_article_is_shown_and_read_only_after_it_appeared(seed: int) -> None:
    log = newsroom(seed=seed, items=24 if seed % 2 else 240)
    published = dict(log.items.select("item_id", "published_s").iter_rows())
    views = [(c, now) for _, now, candidates, _, _ in shown(log) for c in candidates]
    views += list(log.events.select("item_id", "timestamp_s").iter_rows())
    assert min(now - published[item] for item, now in views) >= 0


def test_an_article_older_than_its_life_is_shown_only_where_its_topic_has_none_younger() -> None:
    log = newsroom(items=120)
    topic, published = (
        dict(log.items.select("item_id", column).iter_rows()) for column in ("category", "published_s")
    )
    life = synthetic.LIFETIME_DAYS * DAY_S
    old = 0
    for _, now, candidates, _, _ in shown(log):
        for c in candidates:
            if published[c] < now - life:
                old += 1
                others = [t for i, t in published.items() if topic[i] == topic[c] and t <= now]
                assert published[c] == max(others)
    assert old > 0


def test_readers_come_in_bursts_with_a_heavy_tail_between() -> None:
    log = newsroom(users=1000, days=30.0, items=240)
    gaps = (
        log.impressions.sort("user_id", "timestamp_s")
        .select(pl.col("timestamp_s").diff().over("user_id") / DAY_S)["timestamp_s"]
        .drop_nulls()
    )
    assert (gaps < 0.02).mean() > 0.15
    assert gaps.max() > 5 * gaps.mean()


# --- the articles


def test_a_title_is_a_sentence_of_its_topics_words() -> None:
    for text, category in newsroom(items=240).items.select("text", "category").iter_rows():
        assert re.fullmatch(r"[A-Z][A-Za-z' -]+", text)
        subjects, verbs, objects = TOPICS[category]
        words = text.lower()
        assert any(
            words == f"{s} {v} {o} {t}".lower()
            for s in subjects
            for v in verbs
            for o in objects
            for t in TAILS
            if words.startswith(s.lower())
        )


def test_every_topic_has_as_many_articles_and_words_that_no_other_has() -> None:
    counts = newsroom(items=240).items["category"].value_counts()
    assert set(counts["category"]) == set(TOPICS)
    assert set(counts["count"]) == {20}
    phrases = [phrase for parts in TOPICS.values() for phrases in parts for phrase in phrases]
    assert len(set(phrases)) == len(phrases)


# --- the settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kernel", "exponentail"),
        ("composition", "mean"),
        ("half_life_days", 0),
        ("users", 1),
        ("items", 23),
        ("days", 0),
        ("sessions_per_day", 0),
        ("candidates", 1),
        ("candidates", 13),
        ("drift_days", 0),
        ("strength", math.nan),
        ("bias", math.inf),
        ("seed", -1),
        ("news_half_life_days", 0),
    ],
)
def test_a_setting_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^data\.source\.{name} must be .*, got {value}; ") as caught:
        synthetic.read([], **(SETTINGS | {name: value}))
    assert "\n" not in str(caught.value)


def test_a_log_too_short_for_any_visit_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"^data\.source\.days must be long enough for a visit \(days\), got"
    ):
        synthetic.read([], **(SETTINGS | {"days": 0.0001, "users": 2}))


@pytest.mark.parametrize("seed", range(3))
def test_the_smallest_newsroom_works(seed: int) -> None:
    smallest = {"users": 2, "items": 24, "candidates": 2, "days": 5.0, "seed": seed}
    assert len(list(shown(newsroom(**smallest)))) > 0


@pytest.mark.parametrize("half_life", [1e-9, 1e9])
@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_extreme_half_lives_give_finite_probabilities(half_life: float, composition: str) -> None:
    for kernel in KERNELS:
        log = newsroom(kernel=kernel, half_life_days=half_life, composition=composition)
        p = np.array([p for *_, probabilities in shown(log) for p in probabilities])
        assert np.isfinite(p).all()
        assert ((p >= 0) & (p <= 1)).all()
