"""The end of a run: predictions, baselines, the decay curve, metrics.json and the last table."""

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
from halflife.loggers import log_results
from halflife.ranges import ranges
from halflife.recommender import Recommender
from halflife.splits import duration
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
        "decay/note": (unsettled(module) or bent(fitted)) if fitted["status"] == "estimated" else None,
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


def ages(store: Store, rows: Array, unit: str, max_history: int) -> Array:
    """Ages of the clicks that a model reads, in the histories of at most a thousand rows, evenly spread over
    them.

    Args:
        store: of the log.
        rows: impressions.
        unit: `days` or `rank`.
        max_history: a longer history keeps its newest clicks.
    """
    some = rows[np.linspace(0, len(rows) - 1, min(len(rows), 1000)).astype(np.int64)]
    end = store.history_end[some]
    length = np.minimum(store.past_clicks[some], max_history)
    index, mask = ranges(end - length, length)
    if unit == "rank":
        return (length[:, None] - 1 - np.arange(index.shape[1]))[mask].astype(np.float64)
    index = np.clip(index, 0, len(store.event_time) - 1)
    return np.asarray((store.impression_time[some][:, None] - store.event_time[index])[mask] / DAY_S)


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


def curve(module: Recommender, half_life: float | None, ages: Array) -> dict[str, list[float]]:
    """The fitted weight over ages, to eight half-lives or nearly the oldest click.

    Args:
        module: after the fit.
        half_life: in the module's unit; None where there is none.
        ages: a sample of ages in test histories.

    Returns:
        `age` (days, or newer clicks), `weight` at each, and `clicks`, how many ages lie between every
        fourth age and the next.
    """
    most = float(np.quantile(ages, 0.98)) if len(ages) else 1.0
    most = min(most, 8 * half_life) if half_life else most
    age = np.linspace(0, max(most, 1e-3), 241)
    with torch.no_grad():
        weight = module.decay(torch.from_numpy(age).float().to(module.device)).exp().cpu().numpy()
    clicks, _ = np.histogram(ages, bins=age[::4])
    return {"age": age.tolist(), "weight": weight.tolist(), "clicks": clicks.tolist()}


def decay_curve(
    drawn: dict[str, list[float]], estimate: dict[str, Any], planted: dict[str, Any] | None
) -> Any:
    """Picture of the fitted weight over age, above a histogram of the ages that histories hold.

    Args:
        drawn: from `curve`.
        estimate: from `estimate.estimate`; its interval is shaded.
        planted: kernel and half-life of a simulated log, drawn beside the fitted one.
    """
    from matplotlib.figure import Figure

    unit = estimate["unit"]
    half_life = estimate[f"half_life_{unit}"]
    age = drawn["age"]
    figure = Figure(
        figsize=(7, 5), layout="constrained", dpi=120
    )  # pyplot would keep it: a sweep has hundreds
    top, low = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    top.plot(age, drawn["weight"], color="tab:blue", label=f"fitted: {estimate['kernel']}")
    if half_life is not None:
        text = f"half-life {half_life:.3g} {unit}{_short(half_life, unit)}"
        if estimate["low"] is not None:
            text += f" [{estimate['low']:.3g}, {estimate['high']:.3g}]"
            top.axvspan(
                estimate["low"], estimate["high"], color="tab:blue", alpha=0.15, lw=0, label="95 % interval"
            )
        top.axvline(half_life, color="tab:blue", lw=1, ls="--", label=text)
    if planted and planted.get("half_life_days") and unit == "days":
        top.axvline(
            planted["half_life_days"],
            color="tab:orange",
            lw=1.5,
            ls=":",
            label=f"planted: {planted['kernel']}, {planted['half_life_days']:g} days",
        )
    top.set(ylabel="weight of a past click", ylim=(0, 1.05), xlim=(0, age[-1]))
    top.legend(frameon=False)
    low.stairs(drawn["clicks"], age[::4], fill=True, color="0.6")
    low.set(
        xlabel="age of the click (days)" if unit == "days" else "age of the click (newer clicks)",
        ylabel="clicks",
    )
    return figure


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


def tell(figure: Any, caveats: list[str]) -> None:
    """Write caveats below a picture."""
    if caveats:
        figure.supxlabel("\n".join(caveats), fontsize=7, color="tab:red")


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
    if half_life is not None:
        name += _short(half_life, unit)
        without = {"fixed": "fixed", "not_refitted": "not estimated"}
        interval = without.get(estimate["status"]) or _span(estimate["low"], estimate["high"])
        table.add_row(name, f"{half_life:.3g}", interval, "", "")
    elif estimate["status"] == "not_identified":
        table.add_row(name, "not identified", "", "", "")
    if (other := estimate.get("held_out")) is not None:
        value, low, high = (other[key] for key in (f"half_life_{unit}", "low", "high"))
        told = ["not identified", ""] if low is None else [f"{value:.3g}", _span(low, high)]
        table.add_row("  by validation clicks alone", *told, "", "")
    groups = estimate.get("half_lives", {})
    for group, value in list(groups.items())[:GROUPS_SHOWN]:
        ends = estimate.get("half_lives_intervals", {}).get(group)
        interval = _span(*ends) if ends else ""
        table.add_row(f"  {group}", f"{value:.3g}", interval, "", "")
    if len(groups) > GROUPS_SHOWN:
        table.add_row(f"  and {len(groups) - GROUPS_SHOWN} more in decay.json", "", "", "", "")
    if "candidate_half_life_days" in estimate:
        table.add_row(
            "half-life (days) of candidates", f"{estimate['candidate_half_life_days']:.3g}", "", "", ""
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


def _short(half_life: float, unit: str) -> str:
    """A half-life far below a day in its natural unit, in brackets; nothing for others.

    >>> _short(0.00035, "days"), _short(5.0, "days")
    (' (30.2 s)', '')
    """
    return f" ({duration(half_life)})" if unit == "days" and half_life < 0.1 else ""
