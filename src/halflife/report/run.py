"""One run → a page: what a click's half-life is, how sure that is, and how well the run predicts."""

import json
import shlex
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from halflife.cli import CONFIG_DIR
from halflife.errors import InputError
from halflife.report import predictions, run_plots
from halflife.report.page import Page, Section, Table
from halflife.summary import SHOWN, caveats

NEEDED = ["metrics.json", "decay.json", "decay_curve.json", "predictions.parquet", ".hydra/config.yaml"]
NOT_SHOWN = ("logger.", "cache_dir", "callbacks.")  # settings that do not change what a run finds


def read(run_dir: Path, name: str) -> Any:
    """A JSON file of a run."""
    return json.loads((run_dir / name).read_text())


def check(run_dir: Path) -> None:
    """Raise the InputError for a run that did not reach its end."""
    for name in NEEDED:
        if not (run_dir / name).is_file():
            raise InputError(
                f"PATH must hold finished runs, got {run_dir} without {name}; run it again to its end with "
                "this version"
            )
    if "status" not in read(run_dir, "decay.json"):
        raise InputError(
            f"PATH must hold runs of this version, got {run_dir} whose decay.json has no status; run it again"
        )


def page(run_dir: Path) -> Page:
    """The page of one run.

    Args:
        run_dir: a directory that train.py wrote.

    Raises:
        InputError: for a run that did not reach its end.
    """
    check(run_dir)
    found, decay = read(run_dir, "metrics.json"), read(run_dir, "decay.json")
    config = OmegaConf.load(run_dir / ".hydra" / "config.yaml")
    if not isinstance(config, DictConfig):
        raise InputError(f"PATH must hold a run's configuration, got {run_dir} with a list; give another one")
    frame = predictions.read(run_dir)
    planted = found.get("decay/planted_half_life_days")
    listwise = str(config.loss["_target_"]).endswith("softmax")
    bins, error = predictions.reliability(
        predictions.probability(frame, listwise), frame["label"].to_numpy(), frame["user"].to_numpy()
    )
    fading = [run_plots.decay(read(run_dir, "decay_curve.json"), decay, planted)]
    if "half_lives" in decay:
        fading.append(run_plots.half_lives(decay))
    if (run_dir / "profile.json").is_file():
        fading.append(run_plots.profile(read(run_dir, "profile.json")))
    sections = [
        Section("How a click fades", [how(decay, found)], fading, parameters(decay)),
        Section("How well it predicts", [], [], [metrics_table(found)]),
        Section("Is a predicted chance a chance?", [], [run_plots.calibration(bins, error, listwise)], []),
        Section("For whom it predicts well", *slices(frame, found["test/auc"])),
        Section("What differs from the defaults", [], [], [differences(config, choices(run_dir))]),
        provenance(run_dir, config, found),
    ]
    return Page(
        title=f"Halflife: {run_dir.resolve().name}",
        headline=headline(decay, found),
        lead=lead(decay, found, frame["user"].n_unique(), choices(run_dir)),
        figures=figures(found, decay),
        sections=sections,
        caveats=caveats([found]),
    )


def span(low: float | None, high: float | None, digits: str = ".3g") -> str:
    """An interval, or nothing where there is none.

    >>> span(4.62, 5.03), span(None, None)
    ('[4.62, 5.03]', '')
    """
    return "" if low is None or high is None else f"[{low:{digits}}, {high:{digits}}]"


def headline(decay: dict[str, Any], found: dict[str, Any]) -> str:
    """The answer in one sentence.

    Args:
        decay: of `decay.json`.
        found: of `metrics.json`.

    >>> decay = {"unit": "days", "half_life_days": 4.82, "low": 4.62, "high": 5.03, "status": "estimated"}
    >>> headline(decay, {})
    'A click loses half its weight in 4.82 days [4.62, 5.03].'
    """
    unit, status = decay["unit"], decay["status"]
    half_life = decay[f"half_life_{unit}"]
    if status == "not_identified":
        return f"The half-life of a click is {decay['how']}."
    if status == "no_half_life":
        auc = f"{found['test/auc']:.4f} {span(found['test/auc_low'], found['test/auc_high'], '.4f')}"
        return f"With {decay['kernel']} decay, which has no half-life, the AUC is {auc}."
    when = f"in {half_life:.3g} days" if unit == "days" else f"after {half_life:.3g} newer clicks"
    if status == "fixed":
        return f"A click is made to lose half its weight {when}."
    if status == "not_refitted":
        return f"A click loses half its weight {when}, an estimate without an interval."
    return f"A click loses half its weight {when} {span(decay['low'], decay['high'])}."


def lead(decay: dict[str, Any], found: dict[str, Any], users: int, chosen: dict[str, str]) -> str:
    """What the answer rests on."""
    text = (
        f"{decay['kernel'].capitalize()} decay through {chosen.get('model', 'a model')} on "
        f"{chosen.get('data', 'a log')}, tested on {found['data/test_impressions']:,} later impressions of "
        f"{users:,} users: AUC {found['test/auc']:.4f} "
        f"{span(found['test/auc_low'], found['test/auc_high'], '.4f')}, against "
        f"{found['baseline/popularity/auc']:.4f} for popularity alone."
    )
    gain = decay.get("log_likelihood_over_no_decay")
    if gain is not None:
        text += f" Fading explains the training clicks better than no fading by {gain:,.1f} nats."
    return text


def how(decay: dict[str, Any], found: dict[str, Any]) -> str:
    """How the half-life was made, and what was planted where that is known."""
    text = f"How it was made: {decay['how']}."
    if (other := decay.get("held_out")) is not None:
        told = "is not identified"
        if other["status"] == "estimated":
            unit = "days" if decay["unit"] == "days" else "newer clicks"
            value = other[f"half_life_{decay['unit']}"]
            told = f"is {value:.3g} {unit} {span(other['low'], other['high'])}"
        text += f" By validation clicks alone, from which item vectors have not learned, it {told}."
    planted = found.get("decay/planted_half_life_days")
    if planted is not None:
        text += f" The log is simulated, with a planted half-life of {planted:g} days"
        if decay["low"] is not None:
            inside = decay["low"] <= planted <= decay["high"]
            text += f", which the interval {'holds' if inside else 'does not hold'}"
        text += "."
    return text


def figures(found: dict[str, Any], decay: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The few numbers on top."""
    unit = decay["unit"]
    half_life = decay[f"half_life_{unit}"]
    without = {
        "not_identified": "not identified",
        "no_half_life": "none",
        "fixed": "fixed",
        "not_refitted": "no interval",
    }.get(decay["status"], "")
    best = found.get("data/bayes_auc")
    beside = f"popularity {found['baseline/popularity/auc']:.4f}"
    return [
        (
            "half-life" if unit == "days" else "half-life (newer clicks)",
            without if half_life is None else f"{half_life:.3g} {unit if unit == 'days' else ''}".strip(),
            span(decay["low"], decay["high"]) or ("" if half_life is None else without),
        ),
        ("AUC", f"{found['test/auc']:.4f}", span(found["test/auc_low"], found["test/auc_high"], ".4f")),
        ("AUC over popularity", f"{found['test/auc'] - found['baseline/popularity/auc']:+.4f}", beside),
        (
            "log-loss" if best is None else "of the best possible AUC",
            f"{found['test/logloss']:.4f}" if best is None else f"{found['test/auc'] / best:.1%}",
            "" if best is None else f"best possible {best:.4f}",
        ),
    ]


def parameters(decay: dict[str, Any]) -> list[Table]:
    """The kernel's fitted parameters, and half-lives of groups where there are some."""
    tables = []
    single = {k: v for k, v in decay["parameters"].items() if isinstance(v, float)}
    if single:
        rows = [[name, f"{value:.4g}"] for name, value in single.items()]
        tables.append(Table(["parameter of the kernel", "fitted"], rows))
    if groups := decay.get("half_lives"):
        ends, planted = decay.get("half_lives_intervals", {}), decay.get("half_lives_planted", {})
        rows = [
            [group, f"{value:.3g}", span(*ends.get(group, (None, None)))]
            + ([f"{planted[group]:.3g}"] if planted else [])
            for group, value in groups.items()
        ][:50]
        left = f"The first 50 of {len(groups)}; decay.json has all." if len(groups) > 50 else ""
        columns = ["group", f"half-life ({decay['unit']})", "95 % interval", "planted"]
        tables.append(Table(columns[: 4 if planted else 3], rows, left))
    return tables


def metrics_table(found: dict[str, Any]) -> Table:
    """Each metric beside the baselines that are known."""
    rows = []
    for label, key in SHOWN.items():
        if key in found:
            is_auc = label == "AUC"
            baseline = found.get(key.replace("test/", "baseline/popularity/"))
            best = found.get("data/bayes_auc") if is_auc else None
            rows.append(
                [
                    label,
                    f"{found[key]:.4f}",
                    span(found["test/auc_low"], found["test/auc_high"], ".4f") if is_auc else "",
                    *("" if value is None else f"{value:.4f}" for value in (baseline, best)),
                ]
            )
    columns = ["", "this run", "95 % interval", "popularity", "best possible"]
    empty = {i for i in range(2, 5) if not any(row[i] for row in rows)}
    rows = [[cell for i, cell in enumerate(row) if i not in empty] for row in rows]
    caption = "Test split, the newest impressions. The interval is a bootstrap over users."
    return Table([c for i, c in enumerate(columns) if i not in empty], rows, caption)


def slices(frame: Any, overall: float) -> tuple[list[str], list[Any]]:
    """AUC by age of the last click and by length of the history: pictures, or why there is none."""
    text, pictures = [], []
    for column, label in (
        ("last_age_days", "age of the last click"),
        ("history", "clicks before the impression"),
    ):
        if column not in frame.columns or not (found := predictions.auc_by(frame, column)):
            text.append(f"This run's predictions cannot tell the AUC by {label}.")
        else:
            pictures.append(run_plots.by_history(found, column, label, overall))
    return text, pictures


def choices(run_dir: Path) -> dict[str, str]:
    """The choice of each group of the configuration, for example `decay` → `exponential`."""
    hydra = OmegaConf.load(run_dir / ".hydra" / "hydra.yaml")
    chosen = OmegaConf.select(hydra, "hydra.runtime.choices")
    return {str(k): str(v) for k, v in chosen.items() if not str(k).startswith("hydra") and v is not None}


def overrides(run_dir: Path) -> list[str]:
    """What the command line of a run said."""
    return [str(word) for word in OmegaConf.load(run_dir / ".hydra" / "overrides.yaml")]


def flat(config: Any, prefix: str = "") -> dict[str, str]:
    """A configuration with dotted keys, without what only wires it together."""
    out: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{key}.")
        elif str(key)[0] != "_":
            out[prefix + str(key)] = "null" if value is None else str(value)
    return out


def differences(config: DictConfig, chosen: dict[str, str]) -> Table:
    """Groups and settings that are not those of conf/train.yaml as it is now."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        default = compose("train", return_hydra_config=True)
    usual = {str(k): str(v) for k, v in default.hydra.runtime.choices.items()}
    rows = [
        [g, c, usual.get(g, "")] for g, c in sorted(chosen.items()) if c != usual.get(g) and g != "logger"
    ]
    now, before = (flat(OmegaConf.to_container(c, resolve=False)) for c in (config, default))
    for key, value in now.items():
        group = key.partition(".")[0]
        given = before.get(key, "")
        swapped = key not in before and any(g == group for g, *_ in rows)  # comes with another choice
        if value != given and not swapped and not key.startswith(NOT_SHOWN):
            rows.append([key, value, given])
    return Table(["setting", "this run", "default"], rows, "" if rows else "Everything is as given.")


def provenance(run_dir: Path, config: DictConfig, found: dict[str, Any]) -> Section:
    """What is needed to get the same again."""
    rows = [
        ["log's fingerprint", str(found["data/fingerprint"])],
        ["seed", str(config.seed)],
        ["trained parameters", f"{found['params/trainable']:,} of {found['params/total']:,}"],
    ]
    speed = found.get("speed/train_impressions_per_s")
    if speed is not None:
        rows.append(["training speed", f"{speed:,.0f} impressions/s"])
    rows.append(["peak memory", f"{found['memory/peak_mib']:,.0f} MiB"])
    if (run_dir / "versions.json").is_file():
        rows += [[name, release] for name, release in read(run_dir, "versions.json").items()]
    rows.append(["directory", run_dir.resolve().name])
    return Section(
        "Where it comes from",
        ["The same command on the same log gives the same numbers:"],
        tables=[Table(["", ""], rows)],
        code=shlex.join(["python", "train.py", *overrides(run_dir)]),
    )
