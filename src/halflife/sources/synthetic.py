"""A newsroom that needs no download, with a planted kernel and half-life.

Readers arrive in bursts and drift between topics. Some of their reading is their own choice (kind `read`);
the rest comes from impressions, whose candidates they click with a probability that depends on nothing but
their past clicks, faded by the planted kernel:

    share_c = Σ_i w(age_i) · [topic_i = topic_c] / (Σ_i w(age_i) + 1)
    P(click c) = σ(bias + strength · share_c − ln 2 · age of c / news_half_life)

Clicks on a topic may fade with a half-life of their own. The last term is there only where news are planted
to die, too. The 1 in the denominator is the sink: it lets interest fade with absence (docs/compositions.md).
Since the probability is known, so is the best AUC that any model can reach on these impressions.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from halflife.errors import InputError, choice, number, whole
from halflife.sources.newsroom import TAILS, TOPICS
from halflife.tables import DAY_S, Tables

START_S = 1_704_067_200  # 2024-01-01T00:00Z
LIFETIME_DAYS = 7.0  # an article is shown for a week

Array = NDArray[Any]


def read(
    files: list[Path],
    users: int,
    items: int,
    days: float,
    sessions_per_day: float,
    candidates: int,
    kernel: str,
    half_life_days: float,
    half_life_sd: float,
    composition: str,
    strength: float,
    bias: float,
    drift_days: float,
    seed: int,
    news_half_life_days: float | None = None,
    half_life_days_by_topic: Mapping[str, float] | None = None,
) -> Tables:
    """Simulate the newsroom.

    Args:
        files: none; the log is made here.
        users, items: how many readers and articles, at least 2 and 24.
        days: length of the log.
        sessions_per_day: visits per reader and day, of a geometric number of page views each.
        candidates: articles in an impression, 2 to 12, each on a topic of its own.
        kernel: the planted family: `none`, `exponential`, `power` (α = 1), `weibull` (k = ½) or `gaussian`.
        half_life_days: the planted half-life; the median one where readers differ.
        half_life_sd: standard deviation of the log half-life over readers, 0 where all are alike.
        composition: `sink`, `normalised` (without the 1) or `sum` (without the denominator).
        strength: logit gained when every past click was on the candidate's topic.
        bias: logit of a click without any matching past.
        drift_days: mean time until a reader turns to other topics.
        seed: the same seed gives the same log, byte for byte.
        news_half_life_days: time in which an article's age halves the odds of a click on it; None leaves
            articles as fresh as on their first day.
        half_life_days_by_topic: planted half-lives of the clicks on some topics, for example
            `{football: 1, cooking: 30}`; the other topics, and all where None, keep `half_life_days`.

    Raises:
        InputError: for a setting out of range.
    """
    choice("data.source.kernel", kernel, ["none", "exponential", "power", "weibull", "gaussian"])
    choice("data.source.composition", composition, ["sink", "normalised", "sum"])
    number("data.source.half_life_days", half_life_days, "days", above=0)
    number("data.source.half_life_sd", half_life_sd, "of the logarithm", at_least=0)
    users = whole("data.source.users", users, "readers", at_least=2)
    items = whole("data.source.items", items, "articles", at_least=2 * len(TOPICS))
    number("data.source.days", days, "days", above=0)
    number("data.source.sessions_per_day", sessions_per_day, "sessions", above=0)
    candidates = whole("data.source.candidates", candidates, "articles", at_least=2, at_most=len(TOPICS))
    number("data.source.strength", strength, "logit")
    number("data.source.bias", bias, "logit")
    number("data.source.drift_days", drift_days, "days", above=0)
    seed = whole("data.source.seed", seed, "integer", at_least=0)
    if news_half_life_days is not None:
        number("data.source.news_half_life_days", news_half_life_days, "days", above=0)
    topics_half_life = _by_topic(half_life_days, half_life_days_by_topic or {})
    rng = np.random.default_rng(seed)

    catalogue = _articles(rng, items, days)
    times, interest = _visits(rng, users, days, sessions_per_day, drift_days)
    is_impression = rng.random(times.shape) < 0.6
    # readers who are all alike leave the generator where it was
    spread = rng.normal(0.0, half_life_sd, users) if half_life_sd else np.zeros(users)
    reader = np.exp(spread)
    half_life_of = np.array([*topics_half_life.values()])

    width = times.shape[1]
    past_topic = np.full((users, width * candidates), -1, np.int16)
    past_time = np.zeros((users, width * candidates), np.int64)
    n_past = np.zeros(users, np.int64)
    events: list[tuple[Array, Array, Array, Array]] = []
    shown: list[tuple[Array, Array, Array, Array, Array]] = []

    for step in range(width):  # one page view of every reader at a time: clicks feed later probabilities
        live = np.flatnonzero(times[:, step] >= 0)
        if len(live) == 0:
            break
        own = live[~is_impression[live, step]]
        topic = interest[own, step, rng.integers(0, 2, len(own))]
        item = _pick(rng, catalogue, topic, times[own, step])
        events.append((own, item, times[own, step], np.zeros(len(own), np.int8)))
        _remember(past_topic, past_time, n_past, own, topic, times[own, step])

        asked = live[is_impression[live, step]]
        topics = _candidate_topics(rng, interest[asked, step], candidates)
        item = _pick(rng, catalogue, topics.ravel(), np.repeat(times[asked, step], candidates))
        item = item.reshape(topics.shape)
        longest = int(n_past[asked].max(initial=0))
        age = (times[asked, step][:, None] - past_time[asked, :longest]) / DAY_S
        real = np.arange(longest) < n_past[asked][:, None]
        past = past_topic[asked, :longest]
        half_life = (
            reader[asked, None] * half_life_of[past]
        )  # that of −1, which is no click, counts for nothing
        weight = np.where(real, np.exp(log_weight(kernel, np.maximum(age, 0.0), half_life)), 0.0)
        match = past[:, None, :] == topics[:, :, None]
        share = np.einsum("uh,uch->uc", weight, match)
        if composition != "sum":
            share /= np.maximum(weight.sum(1) + (composition == "sink"), 1e-300)[:, None]
        logit = bias + strength * share
        if news_half_life_days is not None:
            article_days = (times[asked, step][:, None] - catalogue["published"][item]) / DAY_S
            logit -= np.log(2.0) * article_days / news_half_life_days
        probability = 1.0 / (1.0 + np.exp(-logit))
        label = rng.random(probability.shape) < probability
        shown.append((asked, times[asked, step], item, label.astype(np.int8), probability))
        for c in range(candidates):
            hit = label[:, c]
            events.append((asked[hit], item[hit, c], times[asked, step][hit], np.ones(hit.sum(), np.int8)))
            _remember(past_topic, past_time, n_past, asked[hit], topics[hit, c], times[asked, step][hit])

    if sum(len(who) for who, *_ in shown) == 0:
        raise InputError(
            f"data.source.days must be long enough for a visit (days), got {days} in which {users} readers "
            "saw no impression; raise it, data.source.users or data.source.sessions_per_day"
        )
    planted = {
        "kernel": kernel,
        "half_life_days": half_life_days,
        "composition": composition,
        "strength": strength,
    }
    planted = planted if kernel != "none" else {"kernel": "none"}
    if news_half_life_days is not None:
        planted["news_half_life_days"] = news_half_life_days
    if half_life_days_by_topic and kernel != "none":
        planted["half_lives"] = topics_half_life
    return _tables(catalogue, events, shown, candidates, planted)


def _by_topic(half_life_days: float, given: Mapping[str, float]) -> dict[str, float]:
    """The planted half-life of every topic."""
    if not isinstance(given, Mapping):
        raise InputError(
            f"data.source.half_life_days_by_topic must be half-lives by topic (days), got {given}; write "
            "them as {football: 1, cooking: 30}"
        )
    for topic, days in given.items():
        choice("data.source.half_life_days_by_topic", topic, list(TOPICS))
        number(f"data.source.half_life_days_by_topic.{topic}", days, "days", above=0)
    return {topic: float(given.get(topic, half_life_days)) for topic in TOPICS}


def log_weight(kernel: str, age_days: Array, half_life_days: Array | float) -> Array:
    """The planted kernels in closed form, written apart from `halflife.decay` so that recovery is no circle.

    >>> np.exp(log_weight("exponential", np.array([0.0, 5.0]), 5.0))
    array([1. , 0.5])
    """
    relative = age_days / half_life_days
    if kernel == "exponential":
        return np.asarray(-np.log(2.0) * relative)
    if kernel == "power":
        return np.asarray(-np.log1p(relative))
    if kernel == "weibull":
        return np.asarray(-np.log(2.0) * np.sqrt(relative))
    if kernel == "gaussian":
        return np.asarray(-np.log(2.0) * relative**2)
    return np.zeros_like(relative)


def _articles(rng: np.random.Generator, items: int, days: float) -> dict[str, Array]:
    """Articles in order of topic, then publication, so that the living ones of a topic are one range."""
    topic = np.sort(np.arange(items) % len(TOPICS))
    published = START_S + (rng.uniform(-LIFETIME_DAYS, days, items) * DAY_S).astype(np.int64)
    published = published[np.lexsort((published, topic))]
    oldest = np.r_[True, topic[1:] != topic[:-1]]
    published[oldest] = np.minimum(published[oldest], START_S)  # every topic has something to show at once
    names = list(TOPICS)
    titles: list[str] = []
    for t in topic:
        subjects, verbs, objects = TOPICS[names[t]]
        words = (subjects, verbs, objects, TAILS)
        titles.append(" ".join(w[int(rng.integers(len(w)))] for w in words).capitalize())
    first = np.searchsorted(topic, np.arange(len(TOPICS) + 1))
    return {
        "topic": topic,
        "published": published,
        "first": first,
        "title": np.array(titles),
        "category": np.array(names)[topic],
    }


def _visits(
    rng: np.random.Generator, users: int, days: float, sessions_per_day: float, drift_days: float
) -> tuple[Array, Array]:
    """Page views in bursts (log-normal gaps between sessions, minutes within one), and the topics of the day.

    Returns:
        times (users, views) in seconds, −1 behind a reader's last view; interest (users, views, 2).
    """
    sessions = max(4, int(days * sessions_per_day * 3))
    rate = sessions_per_day * rng.gamma(4.0, 0.25, users)[:, None]
    gap_days = rng.lognormal(-0.5, 1.0, (users, sessions)) / rate  # mean 1/rate, heavy right tail
    session_day = rng.uniform(0, 1, (users, 1)) / rate + np.cumsum(gap_days, 1) - gap_days[:, :1]
    views = 4
    stays = np.cumprod(rng.random((users, sessions, views)) < 0.6, axis=2).astype(bool)
    stays[:, :, 0] = True
    within_s = np.cumsum(rng.exponential(90.0, (users, sessions, views)) + 1.0, 2)
    time = session_day[:, :, None] * DAY_S + within_s
    time = np.where(stays & (time < days * DAY_S), time, np.inf).reshape(users, -1)
    time.sort(axis=1)
    width = int(np.isfinite(time).sum(1).max())
    time = time[:, :width]

    switches = np.cumsum(rng.exponential(drift_days * DAY_S, (users, int(4 * days / drift_days) + 8)), 1)
    phase = (switches[:, None, :] < np.where(np.isfinite(time), time, 0.0)[:, :, None]).sum(2)
    tastes = np.argsort(rng.random((users, switches.shape[1] + 1, len(TOPICS))), 2)[:, :, :2]
    interest = np.take_along_axis(tastes, phase[:, :, None], 1)
    whole = np.where(np.isfinite(time), time, 0).astype(np.int64) + START_S
    return np.where(np.isfinite(time), whole, -1), interest


def _candidate_topics(rng: np.random.Generator, interest: Array, candidates: int) -> Array:
    """Distinct topics for an impression; those of the day are likelier, as any recommender would have it."""
    favour = np.zeros((len(interest), len(TOPICS)))
    np.put_along_axis(favour, interest, 1.0, 1)
    return np.argsort(rng.gumbel(size=favour.shape) + favour, 1)[:, ::-1][:, :candidates]


def _pick(rng: np.random.Generator, catalogue: dict[str, Array], topic: Array, time: Array) -> Array:
    """A living article of each topic, at random; the newest older one where none lives."""
    key = catalogue["topic"].astype(np.int64) * (1 << 40) + catalogue["published"]
    low = np.searchsorted(key, topic.astype(np.int64) * (1 << 40) + time - int(LIFETIME_DAYS * DAY_S))
    high = np.searchsorted(key, topic.astype(np.int64) * (1 << 40) + time, side="right")
    low = np.clip(np.minimum(low, high - 1), catalogue["first"][topic], None)
    return np.asarray(low + (rng.random(len(topic)) * np.maximum(high - low, 1)).astype(np.int64))


def _remember(
    past_topic: Array, past_time: Array, n_past: Array, who: Array, topic: Array, time: Array
) -> None:
    """Append one click to the past of each reader in `who` (each at most once)."""
    past_topic[who, n_past[who]] = topic
    past_time[who, n_past[who]] = time
    n_past[who] += 1


def _tables(
    catalogue: dict[str, Array],
    events: list[tuple[Array, Array, Array, Array]],
    shown: list[tuple[Array, Array, Array, Array, Array]],
    candidates: int,
    planted: dict[str, Any],
) -> Tables:
    """The simulation's arrays as the three frames of the contract."""
    user, item, time, clicked = (np.concatenate(column) for column in zip(*events, strict=True))
    item_ids = np.array([f"N{i:05d}" for i in range(len(catalogue["topic"]))])
    event_frame = pl.DataFrame(
        {
            "user_id": [f"U{u:05d}" for u in user],
            "item_id": item_ids[item],
            "timestamp_s": time,
            "kind": np.where(clicked == 1, "click", "read"),
            "value": np.ones(len(user), np.float32),
        }
    )
    user, time, items, label, probability = (np.concatenate(column) for column in zip(*shown, strict=True))
    order = np.lexsort((user, time))
    impressions = pl.DataFrame(
        {
            "impression_id": [f"I{i:07d}" for i in range(len(user))],
            "user_id": [f"U{u:05d}" for u in user[order]],
            "timestamp_s": time[order],
            "candidates": pl.Series(item_ids[items[order]], dtype=pl.Array(pl.String, candidates)).cast(
                pl.List(pl.String)
            ),
            "labels": pl.Series(label[order], dtype=pl.Array(pl.Int8, candidates)).cast(pl.List(pl.Int8)),
        }
    )
    truth = pl.DataFrame(
        {
            "impression_id": impressions["impression_id"],
            "probabilities": pl.Series(probability[order], dtype=pl.Array(pl.Float64, candidates)).cast(
                pl.List(pl.Float64)
            ),
        }
    )
    article_frame = pl.DataFrame(
        {
            "item_id": item_ids,
            "text": catalogue["title"],
            "category": catalogue["category"],
            "published_s": catalogue["published"],
        }
    )
    return Tables(
        items=article_frame,
        events=event_frame,
        impressions=impressions,
        has_click_times=True,
        truth={**planted, "probabilities": truth},
    )
