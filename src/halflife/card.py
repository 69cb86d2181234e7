"""A Store's data card: what a log holds, what was left out, and what a half-life fitted on it can mean."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halflife.datamodule import DataModule
from halflife.quality import Finding
from halflife.store import Store
from halflife.tables import DAY_S

Array = NDArray[Any]

CHUNK = 4_000_000  # events looked at together
SITTING_S = 1_800  # a longer pause ends a sitting
SPLITS = ("train", "val", "test")
SAMPLE = 20_000  # impressions whose histories are looked into, spread over the training split
PER_DECADE = 200  # bins of a tally: a quantile read from it is right to 1 %
LARGEST = 10.0**11


@dataclass
class Tally:
    """Counts of positive numbers in bins of equal ratio, so that a log of any size needs no more memory.

    Args:
        zeros: how many were 0.
        counts: of the bins from 1 up, `PER_DECADE` to a factor of ten.
    """

    zeros: int = 0
    counts: Array = field(default_factory=lambda: np.zeros(int(PER_DECADE * np.log10(LARGEST)) + 1, np.int64))

    def add(self, values: Array) -> None:
        """Count more values, each at least 0."""
        real = values[values > 0]
        self.zeros += len(values) - len(real)
        at = np.log10(np.clip(real, 1.0, LARGEST)) * PER_DECADE
        self.counts += np.bincount(at.astype(np.int64), minlength=len(self.counts))[: len(self.counts)]

    @property
    def total(self) -> int:
        """How many values were counted."""
        return self.zeros + int(self.counts.sum())

    def quantile(self, share: float) -> float | None:
        """The value below which this share lies, as the middle of its bin; None of nothing."""
        if self.total == 0:
            return None
        at = int(np.searchsorted(np.cumsum(np.r_[self.zeros, self.counts]), share * self.total))
        return 0.0 if at == 0 else float(10 ** ((at - 0.5) / PER_DECADE))

    def facts(self, unit: float = 1.0) -> dict[str, Any]:
        """Quantiles and a histogram, in another unit (seconds to days: 86,400)."""
        each = PER_DECADE // 5  # five bars to a factor of ten
        bars = np.add.reduceat(self.counts, np.arange(0, len(self.counts), each))
        used = np.flatnonzero(bars)
        low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
        edges = 10 ** (np.arange(low, high + 1) * each / PER_DECADE) / unit
        quantiles = {f"p{round(q * 100)}": self.quantile(q) for q in (0.05, 0.25, 0.5, 0.75, 0.95)}
        return {
            "count": self.total,
            "zeros": self.zeros,
            **{name: None if value is None else value / unit for name, value in quantiles.items()},
            "edges": edges.tolist(),
            "bars": bars[low:high].tolist(),
        }


def describe(data: DataModule, pretrained: str | None, max_tokens: int) -> dict[str, Any]:
    """Every fact of the card, as it is written to `card.json`.

    Args:
        data: of the log; its Store is built where there is none yet.
        pretrained: whose tokens texts are counted in; None leaves lengths out.
        max_tokens: texts are cut there, as in training.
    """
    store = data.store
    about = store.about
    source = f"{data.source.func.__module__}.{data.source.func.__qualname__}"
    found: dict[str, Any] = {
        "source": source,
        "fingerprint": about["fingerprint"],
        "holds": {k: about[k] for k in ("has_click_times", "has_impressions", "has_dwell")},
        "counts": {
            k: about[k] for k in ("users", "items", "events", "impressions", "candidates", "positives")
        },
        "pseudonymous": about["pseudonymous"],
        "kinds": about["kinds"],
        "categories": len(about["categories"]),
        "planted": about["planted"],
        "best_auc": about["bayes_auc"],
        "dropped": about["dropped"],
        "quality": [dict(zip(Finding._fields, row, strict=True)) for row in about["quality"]],
        "age": data.unit,
    }
    if about["vectors"] is not None:
        found["vectors"] = about["vectors"] | {"share": about["vectors"]["items"] / about["items"]}
    found["events"], first_seen = _events(store)
    found["history_ages"] = _history_ages(data)
    found["split"] = _splits(data, first_seen)
    found["split_rule"] = {"name": data.split.name, "leaks": data.split.leaks}
    found["timeline"] = _timeline(store, found["split"])
    if pretrained is not None:
        found["text"] = _texts(store, pretrained, max_tokens)
    found["leakage"] = about["leakage"]
    found["warnings"] = _warnings(found)
    return found


def _chunks(store: Store) -> Iterator[tuple[int, int, int, int]]:
    """Users and their events, a few million events at a time: first and last user, first and last event."""
    start = store.user_start
    low = 0
    while low < len(start) - 1:
        high = int(np.searchsorted(start, start[low] + CHUNK, side="right")) - 1
        high = max(high, low + 1)
        yield low, high, int(start[low]), int(start[high])
        low = high


def _events(store: Store) -> tuple[dict[str, Any], Array]:
    """What the events say: how many a user has, over how long, how far apart, and how often again.

    Returns:
        The facts, and the first event of every item in seconds (the largest int64 where there is none).
    """
    timed = store.about["has_click_times"]
    per_user, gaps, spans = Tally(), Tally(), Tally()
    again = one_sitting = several = together = 0
    hours = np.zeros(24, np.int64)
    popularity = np.zeros(store.n_items, np.int64)
    first_seen = np.full(store.n_items, np.iinfo(np.int64).max)
    for low, high, begin, end in _chunks(store):
        start = np.asarray(store.user_start[low : high + 1]) - begin
        item, moment = np.asarray(store.event_item[begin:end]), np.asarray(store.event_time[begin:end])
        size = np.diff(start)
        owner = np.repeat(np.arange(high - low, dtype=np.int64), size)
        per_user.add(size)
        again += len(item) - len(np.unique(owner * store.n_items + item))
        popularity += np.bincount(item, minlength=store.n_items)
        np.minimum.at(first_seen, item, moment)
        if not timed:
            continue
        gap, inside = np.diff(moment), owner[1:] == owner[:-1]
        gaps.add(gap[inside & (gap > 0)])
        together += int((inside & (gap == 0)).sum())
        many = size > 1
        spans.add(moment[start[1:][many] - 1] - moment[start[:-1][many]])
        pauses = np.bincount(owner[1:][inside & (gap > SITTING_S)], minlength=high - low)
        several += int(many.sum())
        one_sitting += int((many & (pauses == 0)).sum())
        hours += np.bincount(moment % DAY_S // 3600, minlength=24)
    n = int(popularity.sum())
    top = np.sort(popularity)[::-1][: max(1, store.n_items // 100)]
    facts: dict[str, Any] = {
        "per_user": per_user.facts(),
        "repeat_share": again / n,
        "top_percent_share": int(top.sum()) / n,
        "items_without_event": int((popularity == 0).sum()),
    }
    if timed:
        facts |= {
            "gap_days": gaps.facts(DAY_S),
            "same_second_share": together / max(together + gaps.total, 1),
            "user_span_days": spans.facts(DAY_S),
            "one_sitting_share": one_sitting / several if several else None,
            "users_of_several_events": several,
            "by_hour_utc": hours.tolist(),
        }
    return facts, first_seen


def _history_ages(data: DataModule) -> dict[str, Any]:
    """Ages of the clicks in training histories: where a kernel can be told from another."""
    rows = data.rows("train")
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), SAMPLE)).astype(np.int64)]
    dataset = data.impressions(with_tokens=False)
    ages, lengths = Tally(), Tally()
    unit = DAY_S if data.unit == "days" else 1
    for at in range(0, len(rows), 2_000):
        batch = dataset[rows[at : at + 2_000]]
        ages.add(batch.age[batch.history_mask].numpy().astype(np.float64) * unit)
        lengths.add(batch.history_mask.sum(1).numpy())
    return {"sampled": len(rows), "unit": data.unit, "age": ages.facts(unit), "clicks": lengths.facts()}


def _splits(data: DataModule, first_seen: Array) -> dict[str, Any]:
    """Of each split: its size and time, how often a candidate was clicked, and what it meets for the first
    time: users and items without any event before the split began."""
    store, found = data.store, {}
    start = store.user_start
    for split in SPLITS:
        rows = data.rows(split)
        when = np.asarray(store.impression_time[rows])
        begins, candidates, positives, cold = int(when.min()), 0, 0, 0
        cold_items = np.zeros(store.n_items, bool)
        for part in np.array_split(rows, max(1, len(rows) // 100_000)):
            length = store.candidate_start[part + 1] - store.candidate_start[part]
            offset = np.repeat(store.candidate_start[part] - (np.cumsum(length) - length), length)
            place = offset + np.arange(len(offset))
            shown = store.candidate_item[place]
            new = first_seen[shown] >= begins
            cold_items[shown[new]] = True
            candidates, cold = candidates + len(shown), cold + int(new.sum())
            positives += int(store.candidate_label[place].sum(dtype=np.int64))
        user = np.asarray(store.impression_user[rows])
        first_event = store.event_time[np.minimum(start[user], len(store.event_time) - 1)]
        cold_user = (start[user] == start[user + 1]) | (first_event >= begins)
        found[split] = {
            "impressions": len(rows),
            "first_s": begins,
            "last_s": int(when.max()),
            "users": len(np.unique(user)),
            "candidates": candidates,
            "positive_rate": positives / candidates,
        }
        if split != "train":  # where everything is new at first
            found[split] |= {
                "cold_users": len(np.unique(user[cold_user])),
                "cold_user_impressions": float(cold_user.mean()),
                "cold_items": int(cold_items.sum()),
                "cold_item_candidates": cold / candidates,
            }
    return found


def _timeline(store: Store, splits: dict[str, Any], bars: int = 60) -> dict[str, Any]:
    """Events (where they have times) and impressions in equal steps of time, and where the splits begin."""
    when = store.impression_time
    timed = store.about["has_click_times"]
    moments = [when] + ([store.event_time] if timed else [])
    first, last = min(int(m.min()) for m in moments), max(int(m.max()) for m in moments)
    step = max(1, -(-(last - first + 1) // bars))

    def tally(moment: Array) -> list[int]:
        counts = np.zeros(bars, np.int64)
        for at in range(0, len(moment), CHUNK):
            counts += np.bincount((moment[at : at + CHUNK] - first) // step, minlength=bars)
        return [int(c) for c in counts[: (last - first) // step + 1]]

    return {
        "first_s": first,
        "last_s": last,
        "step_s": step,
        "events": tally(store.event_time) if timed else None,
        "impressions": tally(when),
        "starts_s": {split: splits[split]["first_s"] for split in SPLITS},
    }


def _texts(store: Store, pretrained: str, max_tokens: int) -> dict[str, Any]:
    """Lengths of the items' texts in tokens, special ones included, as they are cut for training."""
    _, start = store.tokens(pretrained, max_tokens)
    length = np.diff(start)
    empty = store.items["text"].fill_null("").str.strip_chars().str.len_chars() == 0
    counts = np.bincount(length, minlength=max_tokens + 1)
    return {
        "tokenizer": pretrained,
        "max_tokens": max_tokens,
        "median": float(np.median(length)),
        "mean": float(length.mean()),
        "at_the_cut": float((length >= max_tokens).mean()),
        "without_text": int(empty.sum()),
        "bars": counts.tolist(),
    }


def _warnings(found: dict[str, Any]) -> list[str]:
    """What a reader of results on this log has to know, in one sentence each."""
    out, events = [], found["events"]
    if found["split_rule"]["leaks"]:
        out.append(f"{found['split_rule']['name'].capitalize()} on the global timeline.")
    if not found["holds"]["has_click_times"]:
        out.append(
            "This log has no click times: histories have an order, and a half-life is counted in clicks, "
            "not days."
        )
    if not found["holds"]["has_impressions"]:
        out.append(
            "This log has no impressions: negatives were drawn, so AUC and click rates are those of the draw."
        )
    share = events.get("one_sitting_share")
    if share is not None and share >= 0.5:
        out.append(
            f"{share:.0%} of the users with several events never paused for {SITTING_S // 60} minutes: most "
            "live in one sitting, so a half-life fitted here measures minutes of a visit, not interest."
        )
    cut = found.get("text", {}).get("at_the_cut", 0.0)
    if cut >= 0.2:
        out.append(f"{cut:.0%} of the texts fill {found['text']['max_tokens']} tokens, where they are cut.")
    for split in ("val", "test"):
        cold = found["split"][split]["cold_user_impressions"]
        if cold >= 0.5:
            out.append(
                f"{cold:.0%} of the impressions in {split} are of users without an event before it began."
            )
    return out
