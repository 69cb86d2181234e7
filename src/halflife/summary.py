"""The end of a run: predictions, baselines, metrics.json, decay.json and the last table."""

import json
import math
import platform
import resource
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars
import torch
from numpy.typing import NDArray
from rich.table import Table

from halflife import losses, metrics
from halflife.curves import ages, curve, decay_curve, half_lives, short, tell
from halflife.loggers import log_results
from halflife.ranges import ranges
from halflife.recommender import Recommender
from halflife.store import Store
from halflife.tables import DAY_S
from halflife.tracking import Speed, write_table

Array = NDArray[Any]

GROUPS_SHOWN = 16  # half-lives of groups in the last table; decay.json has all

SHOWN = {
    "AUC": "test/auc",
    "gAUC by impression": "test/gauc",
    "gAUC by user": "test/gauc_user",
    "MRR": "test/mrr",
    "nDCG@5": "test/ndcg@5",
    "nDCG@10": "test/ndcg@10",
    "log-loss": "test/logloss",
}


def finish(
    found: dict[str, Any],
    run_dir: Path,
    module: Recommender,
    store: Store,
    rows: Array,
    scores: Array,
    fitted: dict[str, Any],
    speed: Speed,
) -> dict[str, Any]:
    """Write predictions, metrics, decay and their pictures, and print the last table.

    Returns:
        Everything in `metrics.json`.
    """
    frame = predictions_table(store, rows, scores)
    if store.has_rates and getattr(module.loss, "func", None) is losses.bce:
        frame = frame.with_columns(click_probability=click_probability(store, rows, scores))
    users = np.repeat(store.impression_user[rows], np.diff(store.candidate_start)[rows])
    found = dict(found)
    found |= compare(frame, users)
    found |= {f"params/{k}": v for k, v in module.trainable().items()}
    found |= speed.metrics()
    planted, note = store.about["planted"], store.about["note"]
    data = module.trainer.datamodule  # type: ignore[attr-defined]
    split, most = data.split, data.max_history
    fitted = {**fitted, "split": split.name} | ({"note": note} if note else {})
    own = planted.get("half_lives") if planted else None
    if own and fitted.get("half_lives", {}).keys() == own.keys():
        fitted["half_lives_planted"] = own
    if split.leaks:
        found["data/split_leaks"] = 1
    key = f"half_life_{fitted['unit']}"
    found |= {
        f"decay/{key}": fitted[key],
        f"decay/{key}_low": fitted["low"],
        f"decay/{key}_high": fitted["high"],
        "decay/planted_half_life_days": planted.get("half_life_days") if planted else None,
        "data/fingerprint": store.about["fingerprint"],
        "data/split": split.name,
        "data/test_impressions": len(rows),
        "data/note": note,
        "decay/note": noted(module, fitted, store),
        "memory/peak_mib": peak_mib(),
    }
    found = {k: v for k, v in found.items() if v is not None and not k.startswith("train/")}
    frame.drop("popularity", "probability", strict=False).write_parquet(
        run_dir / "predictions.parquet", metadata={"split": split.name}
    )

    drawn = curve(module, fitted[key], ages(store, rows, fitted["unit"], most))
    figure = decay_curve(drawn, fitted, planted)
    tell(figure, caveats([found]))
    figure.savefig(run_dir / "decay_curve.png")
    if "half_lives" in fitted:
        groups = half_lives(fitted)
        tell(groups, caveats([found]))
        groups.savefig(run_dir / "half_lives.png")
    write_json(run_dir / "decay.json", fitted)
    write_json(run_dir / "decay_curve.json", drawn)
    write_json(run_dir / "versions.json", versions())
    log_results(module.trainer, found, drawn, figure)
    write_json(run_dir / "metrics.json", found)
    write_table(run_dir / "summary.txt", [last_table(found, fitted, run_dir)])
    return found


def predictions_table(store: Store, rows: Array, scores: Array) -> polars.DataFrame:
    """One row a test candidate: impression_id, user_id, item_id, timestamp_s, label, score, history (clicks
    before the impression), last_age_days (of the newest of them, where there is one and clicks have times),
    popularity, and the true probability where it is known."""
    start = store.candidate_start
    end = store.history_end[rows]
    history = store.past_clicks[rows].astype(np.int64)
    last = (store.impression_time[rows] - store.event_time[np.maximum(end - 1, 0)]) / DAY_S
    last = np.where((history > 0) & store.about["has_click_times"], last, np.nan)
    length = start[rows + 1] - start[rows]
    index, mask = ranges(start[rows], length)
    place, owner = index[mask], np.repeat(rows, length)
    frame = polars.DataFrame(
        {
            "impression_id": store.impression_ids.gather(owner),
            "user_id": store.users["user_id"].gather(store.impression_user[owner]),
            "item_id": store.items["item_id"].gather(store.candidate_item[place]),
            "timestamp_s": store.impression_time[owner],
            "label": store.candidate_label[place],
            "score": scores,
            "history": np.repeat(history, length),
            "last_age_days": polars.Series(np.repeat(last, length)).fill_nan(None),
            "popularity": store.candidate_popularity[place],
        }
    )
    if store.has_truth:
        frame = frame.with_columns(probability=polars.Series(store.candidate_probability[place]))
    return frame


def click_probability(store: Store, rows: Array, scores: Array) -> polars.Series:
    """The chance of a click among all items that negatives were drawn from: σ(score + log π), with log π the
    Store's `candidate_log_rate`; null for a positive that could not have been drawn."""
    start = store.candidate_start
    index, mask = ranges(start[rows], start[rows + 1] - start[rows])
    logit = scores.astype(np.float64) + store.candidate_log_rate[index[mask]]
    return polars.Series(np.where(np.isfinite(logit), 1 / (1 + np.exp(-logit)), np.nan)).fill_nan(None)


def compare(frame: polars.DataFrame, rows_user: Array) -> dict[str, float]:
    """The same test rows scored by popularity and, where known, by the true probability; and AUC intervals.

    Args:
        frame: from `predictions_table`.
        rows_user: a user number for each row, the clusters of the interval.
    """
    label = torch.from_numpy(frame["label"].to_numpy().astype(np.int64))
    group = torch.from_numpy(frame["impression_id"].rank("dense").to_numpy().astype(np.int64))
    score = torch.from_numpy(frame["score"].to_numpy().copy())
    popularity = torch.from_numpy(frame["popularity"].to_numpy().astype(np.float32))
    user = torch.from_numpy(rows_user.astype(np.int64))
    low, high = metrics.auc_interval(score, label, user)
    found = {
        "test/auc_low": low,
        "test/auc_high": high,
        "baseline/popularity/auc": float(metrics.auc(popularity, label)),
        "baseline/popularity/gauc": float(metrics.grouped_auc(popularity, label, group)),
        "baseline/popularity/mrr": float(metrics.mrr(popularity, label, group)),
        "baseline/popularity/ndcg@5": float(metrics.ndcg(popularity, label, group, 5)),
        "baseline/popularity/ndcg@10": float(metrics.ndcg(popularity, label, group, 10)),
    }
    if "probability" in frame.columns:
        found["data/bayes_auc"] = float(
            metrics.auc(torch.from_numpy(frame["probability"].to_numpy().copy()), label)
        )
    return found


def peak_mib() -> float:
    """Most memory held: of the GPU where one is used, else of the process, in MiB."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count what the process that started this one held
        [line] = [x for x in status.read_text().splitlines() if x.startswith("VmHWM")]
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def caveats(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """What every output of these runs says of them: that times are reconstructed, that a split leaks, that
    item vectors had hardly learned.

    Args:
        found: `metrics.json` of each run.

    >>> caveats([{"data/split": "last leaks", "data/split_leaks": 1}, {"data/note": "no times"}])
    ['last leaks', 'no times']
    """
    told = [
        text
        for each in found
        for text in (
            each.get("data/note"),
            each["data/split"] if "data/split_leaks" in each else None,
            each.get("decay/note"),
        )
    ]
    return list(dict.fromkeys(filter(None, told)))


def noted(module: Recommender, fitted: dict[str, Any], store: Store) -> str | None:
    """What to say of a half-life that is stated, in one line; None where there is nothing."""
    if fitted["status"] != "estimated":
        return None
    notes = [unsettled(module) or bent(fitted), beyond(fitted, store)]
    return "; ".join(filter(None, notes)) or None


def beyond(fitted: dict[str, Any], store: Store) -> str | None:
    """What to say of a half-life that is longer than the log: no click in it has faded to a half."""
    half_life = fitted.get("half_life_days")
    # impressions are in order, so that most logs need no pass over their events
    shown = (store.impression_time[-1] - store.impression_time[0]) / DAY_S
    if half_life is None or half_life <= shown:
        return None
    span_days = float(store.event_time.max() - store.event_time.min()) / DAY_S
    if half_life <= span_days:
        return None
    return f"the half-life is longer than the log ({span_days:.3g} days): it rests on the shape of the kernel"


def unsettled(module: Recommender) -> str | None:
    """What to say of a half-life whose item vectors have learned from less than the whole training split.

    Its interval holds them fixed, and they are far from where they go (experiments/recovery measures it).
    """
    trainer = module.trainer
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    done, whole = trainer.fit_loop.total_batch_idx + 1, len(data.train_dataloader())
    if done >= whole or not module.learns_vectors:
        return None
    return f"item vectors learned from {done:,} of {whole:,} batches: the half-life may move as they learn on"


def bent(fitted: dict[str, Any]) -> str | None:
    """What to say where a split that item vectors have not learned from tells another half-life.

    Vectors that know the training clicks by heart bend the half-life that those clicks tell. It is said where
    |log h − log h'| > √(ln(high / low)² + ln(high' / low')²) / 2, with h' of the held-out split: further
    apart than chance would have them in 19 of 20.

    Args:
        fitted: of `estimate`.
    """
    unit, other = fitted["unit"], fitted.get("held_out")
    if other is None or other["status"] != "estimated":
        return None
    here, there = fitted[f"half_life_{unit}"], other[f"half_life_{unit}"]
    spread = (math.log(each["high"] / each["low"]) / 2 for each in (fitted, other))
    if abs(math.log(here / there)) <= math.hypot(*spread):
        return None
    return (
        f"the validation split, from which item vectors have not learned, tells {there:.3g} "
        f"[{other['low']:.3g}, {other['high']:.3g}] ({unit}): vectors may know the training clicks by heart"
    )


def versions() -> dict[str, str]:
    """Releases of what a result depends on, for whoever wants it again."""
    names = ["halflife-rec", "torch", "lightning", "transformers", "peft", "polars", "numpy"]
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def last_table(found: dict[str, Any], estimate: dict[str, Any], run_dir: Path) -> Table:
    """The last table of a run: each figure beside what to compare it with."""
    title = f"Test, {found['data/test_impressions']:,} impressions · {run_dir}"
    table = Table(title=title, caption="\n".join(caveats([found])) or None)
    for column in ("", "this run", "95 % interval", "popularity", "best possible"):
        table.add_column(column, justify="left" if not column else "right")

    def text(key: str) -> str:
        return f"{found[key]:.4f}" if found.get(key) is not None else ""

    for label, key in SHOWN.items():
        if key in found:
            interval = f"{found['test/auc_low']:.4f} – {found['test/auc_high']:.4f}" if label == "AUC" else ""
            best = text("data/bayes_auc") if label == "AUC" else ""
            table.add_row(
                label, text(key), interval, text(key.replace("test/", "baseline/popularity/")), best
            )
    table.add_section()
    unit = estimate["unit"]
    half_life = estimate[f"half_life_{unit}"]
    name = f"half-life ({unit}), {estimate['kernel']}"
    without = {"fixed": "fixed", "not_refitted": "not estimated"}
    if half_life is not None:
        name += short(half_life, unit)
        interval = without.get(estimate["status"]) or _span(estimate["low"], estimate["high"])
        table.add_row(name, f"{half_life:.3g}", interval, "", "")
    elif estimate["status"] == "not_identified":
        table.add_row(name, "not identified", "", "", "")
    if (other := estimate.get("held_out")) is not None:
        value, low, high = (other[key] for key in (f"half_life_{unit}", "low", "high"))
        told = ["not identified", ""] if low is None else [f"{value:.3g}", _span(low, high)]
        table.add_row("  by validation clicks alone", *told, "", "")
    groups, own = estimate.get("half_lives", {}), estimate.get("half_lives_planted", {})
    for group, value in list(groups.items())[:GROUPS_SHOWN]:
        ends = estimate.get("half_lives_intervals", {}).get(group)
        interval = _span(*ends) if ends else ""
        name = f"  {group}, planted {own[group]:.3g}" if group in own else f"  {group}"
        table.add_row(name, f"{value:.3g}", interval, "", "")
    if len(groups) > GROUPS_SHOWN:
        table.add_row(f"  and {len(groups) - GROUPS_SHOWN} more in decay.json", "", "", "", "")
    if groups:
        table.add_row("  sd of its logarithm between groups", f"{estimate['half_lives_sd']:.3g}", "", "", "")
    if "candidate_half_life_days" in estimate:
        value = estimate["candidate_half_life_days"]
        low, high = (estimate.get(f"candidate_{end}") for end in ("low", "high"))
        interval = without.get(estimate["candidate_status"], "")
        if low is not None and high is not None:
            interval = _span(low, high)
        table.add_row(
            "half-life (days) of candidates",
            "not identified" if value is None else f"{value:.3g}",
            interval,
            "",
            "",
        )
    if found.get("decay/planted_half_life_days") is not None:
        table.add_row("half-life (days), planted", f"{found['decay/planted_half_life_days']:.3g}", "", "", "")
    table.add_section()
    for label, key in (
        ("train impressions/s", "speed/train_impressions_per_s"),
        ("train tokens/s", "speed/train_tokens_per_s"),
        ("peak memory (MiB)", "memory/peak_mib"),
        ("parameters that train", "params/trainable"),
    ):
        if key in found:
            table.add_row(label, f"{found[key]:,.0f}", "", "", "")
    return table


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    temporary.replace(path)


def _span(low: float, high: float) -> str:
    return f"{low:.3g} – {high:.3g}"
