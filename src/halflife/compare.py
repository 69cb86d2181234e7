"""Which kernel a log asks for: each refitted to the vectors of finished runs, and tested against no decay.

python -m halflife.compare RUN_DIR [RUN_DIR …]
"""

import argparse
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from halflife import metrics
from halflife.cli import CONFIG_DIR, stop
from halflife.curves import tell
from halflife.decay.configured import kernels
from halflife.decay.grouped import Grouped
from halflife.decay.kernel import LARGEST, Kernel
from halflife.errors import InputError, choice
from halflife.estimate import Z, estimate, fit_likelihood, put
from halflife.heterogeneity import by_user
from halflife.likelihood import Likelihood
from halflife.profile import configuration, load
from halflife.progress import bar
from halflife.recommender import Recommender
from halflife.store import Store
from halflife.summary import caveats

RESAMPLES = 400  # draws of users behind an interval of the AUC
CURVES = 8  # in the picture
CLICK = ["impression_id", "user_id", "item_id", "timestamp_s"]  # what tells a click of predictions.parquet
KEPT = ("low", "high", "identified", "status", "how", "parameters", "parameters_effective")  # of decay.json
AGAINST = "none"
HEAVY = ["power", "hyperbolic", "weibull", "general", "logarithmic"]  # tails heavier than an exponential's
SHUFFLED = "exponential, ages shuffled"


@dataclass(frozen=True)
class Outcome:
    """A kernel refitted on one run's training split, on its test split.

    Args:
        about: half-life, its interval, nats over no decay and AIC, as `compare.json` has them.
        loss: of each impression, (impressions,).
        user: of each impression.
        auc: of the test split.
        auc_draws: of the same users drawn again and again, (RESAMPLES,).
        weight: the fitted kernel over `age`, where it is a curve over ages alone.
    """

    about: dict[str, Any]
    loss: Tensor
    user: list[str]
    auc: float
    auc_draws: Tensor
    weight: list[float] | None


def choices() -> list[str]:
    """The kernels of conf/decay."""
    return sorted(file.stem for file in (CONFIG_DIR / "decay").glob("*.yaml"))


def configured(name: str, *overrides: str) -> Kernel:
    """A kernel as `decay=NAME` configures it, alone or with further overrides."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return kernels(compose("train", overrides=[f"decay={name}", *overrides]).decay)[0]


def fits(kernel: Kernel, module: Recommender) -> str:
    """Why a run cannot take a kernel, bound to its log, or nothing where it can."""
    if kernel.signed and not module.interest.signed:
        return "its weights have a sign, which this interest model does not read"
    if isinstance(kernel, Grouped) and not 1 < len(kernel.names) <= LARGEST:
        return f"this log has {len(kernel.names):,} groups, and a refit takes 2 to {LARGEST}"
    return ""


def outcome(
    module: Recommender, unit: str, kernel: Kernel, train: Likelihood, test: Likelihood, ids: list[str]
) -> Outcome:
    """Refit a kernel with scale, bias and sink, vectors held, and score the test split by it."""
    train, test = train.with_decay(kernel), test.with_decay(kernel)
    fit = fit_likelihood(train)
    module.decay, module.unit = kernel, "rank" if kernel.ranks else unit
    put(module, fit)
    found = estimate(module, fit)
    theta = fit.point.theta
    score, label, impression = test.scored(theta)
    user = test.user[impression]
    age = torch.logspace(-2, 3, 101)
    with torch.no_grad():
        plain = not (kernel.ranks or kernel.clicks_only or kernel.signed) and not isinstance(kernel, Grouped)
        weight = kernel.cpu()(age).exp().tolist() if plain else None
    return Outcome(
        about={
            "half_life": found[f"half_life_{module.unit}"],
            "unit": module.unit,
            **{k: found[k] for k in KEPT},
            "log_likelihood": -train.loss(theta),
        },
        loss=test.per_impression(theta),
        user=[ids[int(u)] for u in test.user],
        auc=float(metrics.auc(score, label)),
        auc_draws=metrics.auc_draws(score, label, user, RESAMPLES),
        weight=weight,
    )


def one_run(run_dir: Path, names: list[str] | None, seed: int, users: bool) -> dict[str, Outcome]:
    """Every kernel on one finished run, by name, and the exponential on ages dealt out anew.

    Args:
        run_dir: that train.py wrote.
        names: of kernels; None takes each that the run can take.
        seed: of the dealing.
        users: whether to fit users who differ beside a heavy tail (slow).

    Raises:
        InputError: for no finished run, or a kernel named that it cannot take.
    """
    module, data = load(run_dir, "compare kernels")
    if module.interest.own_time:
        raise InputError(
            f"interest must read a kernel to compare kernels, got {type(module.interest).__name__} in "
            f"{run_dir}; give a run with another interest"
        )
    vectors = module.encoder.catalogue()
    train = Likelihood(module, data.sample("train"), vectors)  # what the run's own refit saw
    test = Likelihood(module, data.sample("test", candidates=10**9), vectors)
    ids = data.store.users["user_id"].cast(str).to_list()
    found = {}
    for name in bar([*dict.fromkeys([AGAINST, *(names or choices())])], "kernels"):
        kernel = configured(name)
        kernel.bind(data.store)
        if why := fits(kernel, module):
            if names is not None:
                raise InputError(f"--kernels must suit the run, got {name}: {why}; leave it out")
            continue
        found[name] = outcome(module, data.unit, kernel, train, test, ids)
    if users and (alone := heavier(found)):
        found[alone].about["by_user"] = per_user(train, data.store)
    shuffled = train.shuffled(seed), test.shuffled(seed)
    found[SHUFFLED] = outcome(module, data.unit, configured("exponential"), *shuffled, ids)
    return found


def heavier(found: dict[str, Outcome]) -> str | None:
    """The kernel of a heavy tail that explains the training clicks best, where it beats the exponential.

    An average over users who forget exponentially, each at a rate of their own, has a heavy tail too.
    """
    tails = [name for name in HEAVY if name in found]
    if not tails or "exponential" not in found:
        return None
    best = min(tails, key=lambda name: akaike(found[name].about))
    return best if akaike(found[best].about) < akaike(found["exponential"].about) else None


def per_user(train: Likelihood, store: Store) -> dict[str, float]:
    """An exponential with a half-life for each user, log-normal around a shared one: spread and AIC."""
    kernel = configured("exponential")
    kernel.bind(store)
    own = train.with_decay(kernel)
    spread = by_user(own, own.best())
    return {"sd": spread.sd, "aic": spread.aic}


def told_of_users(run: dict[str, Outcome]) -> list[str]:
    """A heavy tail beside its alternative, in words, where a run has one."""
    none, told = akaike(run[AGAINST].about), []
    for name, outcome in run.items():
        if (alone := outcome.about.get("by_user")) is not None:
            tail, users = akaike(outcome.about) - none, alone["aic"] - none
            verdict = (
                "users who differ explain the tail" if users < tail else "users who differ do not explain it"
            )
            told.append(
                f"{name}: AIC {tail:+.1f}; exponential with a half-life for each user (sd of its logarithm "
                f"{alone['sd']:.2g}): {users:+.1f}; {verdict}"
            )
    return told


def akaike(about: dict[str, Any]) -> float:
    """AIC = 2 (parameters − log L) of a refit; those that a prior holds count as far as the data move them.

    Source: Akaike, A New Look at the Statistical Model Identification (1974); see `parameters_effective`.
    """
    return float(2 * (about["parameters_effective"] - about["log_likelihood"]))


def against_none(runs: list[dict[str, Outcome]], name: str) -> dict[str, Any]:
    """A kernel's differences from no decay over all runs, clustered by user.

    Δ = Σ_u d_u / Σ_u n_u with d_u the summed differences of user u's impressions in every run, n_u how many;
    se² = Σ_u (d_u − Δ n_u)² / (Σ_u n_u)². The AUC's interval is that of its differences over the
    same draws of users.

    Source: Cochran, Sampling Techniques (1977), section 6.4, the ratio estimate; Field & Welsh (JRSS B 2007).
    """
    difference = torch.cat([run[name].loss - run[AGAINST].loss for run in runs])
    users = np.array([u for run in runs for u in run[name].user])
    _, owner = np.unique(users, return_inverse=True)
    d = np.bincount(owner, weights=difference.numpy())
    n = np.bincount(owner)
    delta = d.sum() / n.sum()
    se = np.sqrt(((d - delta * n) ** 2).sum()) / n.sum()
    auc = torch.stack([run[name].auc_draws - run[AGAINST].auc_draws for run in runs]).mean(0)
    low, high = torch.nanquantile(auc, auc.new_tensor([0.025, 0.975])).tolist()
    aic, flat = ([akaike(run[kernel].about) for run in runs] for kernel in (name, AGAINST))
    return {
        "runs": [run[name].about for run in runs],
        "auc": float(np.mean([run[name].auc for run in runs])),
        "auc_difference": float(np.mean([run[name].auc - run[AGAINST].auc for run in runs])),
        "auc_difference_low": low,
        "auc_difference_high": high,
        "loss": float(torch.cat([run[name].loss for run in runs]).mean()),
        "loss_difference": float(delta),
        "loss_difference_low": float(delta - Z * se),
        "loss_difference_high": float(delta + Z * se),
        "aic_over_none": float(np.mean(np.subtract(aic, flat))),
    }


def check_alike(run_dirs: list[Path]) -> None:
    """Raise the InputError for runs that do not predict the same clicks, by one split and one kind of ages.

    Negatives may be drawn by another seed in each run, so it is the clicks that have to agree, not the log's
    fingerprint, which covers what was drawn too.
    """
    first: dict[str, str] = {}
    for run_dir in run_dirs:
        cfg = configuration(run_dir)
        rows = polars.scan_parquet(run_dir / "predictions.parquet").filter(polars.col("label") == 1)
        clicks = rows.select(CLICK).sort(CLICK).collect().write_csv()
        found = {
            "data.split": str(json.loads((run_dir / "metrics.json").read_text()).get("data/split")),
            "data.age": str(cfg.data.age),
            "the clicks of the test split": hashlib.sha256(clicks.encode()).hexdigest()[:8],
        }
        first = first or found
        for name, value in found.items():
            if value != first[name]:
                raise InputError(
                    f"RUN_DIR must be runs of one log, split and age, got {run_dirs[0]} and {run_dir}, which "
                    f"differ in {name} ({first[name]} and {value}); compare each alone"
                )


def half_life_text(about: list[dict[str, Any]], unit: str) -> str:
    """The half-lives of the runs: one with its interval, several as their range; with their unit where it is
    not that of the ages.
    """
    told = [a for a in about if a["half_life"] is not None]
    if not told:
        unidentified = any(a["status"] == "not_identified" for a in about)
        return "not identified" if unidentified else ""
    unit = "" if told[0]["unit"] == unit else f" {told[0]['unit']}"
    if len(about) == 1:
        low, high = told[0]["low"], told[0]["high"]
        return f"{told[0]['half_life']:.3g}{unit}" + (f" [{low:.3g}, {high:.3g}]" if low is not None else "")
    values = [a["half_life"] for a in told]
    missing = f", {len(about) - len(told)} not identified" if len(told) < len(about) else ""
    spread = f" to {max(values):.3g}" if len(values) > 1 else ""
    return f"{min(values):.3g}{spread}{unit}{missing}"


def unit_of(found: dict[str, Any]) -> str:
    """The unit of the ages: that of no decay, which has no order of its own to count in."""
    return str(found[AGAINST]["runs"][0]["unit"])


def table(found: dict[str, Any], runs: int, impressions: int, told: list[str]) -> Any:
    """Kernels by their loss on the test split, each beside no decay; caveats below."""
    from rich.table import Table

    title = f"{runs} run{'s' if runs > 1 else ''}, {impressions:,} test impressions · {AGAINST}: no decay"
    out = Table(title=title, caption="\n".join(told) or None)
    unit = unit_of(found)
    out.add_column("decay")
    for column in (
        f"half-life ({unit})",
        "AIC − none's",
        "AUC",
        "AUC − none's [95 %]",
        "loss − none's [95 %]",
    ):
        out.add_column(column, justify="right")
    for name, row in found.items():
        plain = name == AGAINST
        auc = "{auc_difference:+.4f} [{auc_difference_low:+.4f}, {auc_difference_high:+.4f}]"
        loss = "{loss_difference:+.5f} [{loss_difference_low:+.5f}, {loss_difference_high:+.5f}]"
        out.add_row(
            name,
            half_life_text(row["runs"], unit),
            "" if plain else f"{row['aic_over_none']:+.1f}",
            f"{row['auc']:.4f}",
            "" if plain else auc.format(**row),
            "" if plain else loss.format(**row),
        )
    return out


def picture(found: dict[str, Any], weights: dict[str, list[float]], told: list[str], path: Path) -> None:
    """Left, the loss of each kernel against no decay with its interval; right, the fitted curves; caveats."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = {name: row for name, row in found.items() if name != AGAINST}
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, max(4.5, 0.3 * len(rows) + 1)), layout="constrained", dpi=120
    )
    for at, row in enumerate(reversed(rows.values())):
        low, high = row["loss_difference_low"], row["loss_difference_high"]
        color = "tab:green" if high < 0 else "tab:red" if low > 0 else "0.5"
        left.plot([low, high], [at, at], color=color, lw=2)
        left.plot(row["loss_difference"], at, "o", color=color, ms=5)
    left.axvline(0, color="0.3", lw=1, ls=":")
    left.set_yticks(range(len(rows)), list(reversed(rows)))
    left.set(xlabel="test loss against no decay, and 95 % by user (left is better)")
    for name, weight in list(weights.items())[:CURVES]:
        right.plot(np.logspace(-2, 3, 101), weight, label=name)
    age = "days" if unit_of(found) == "days" else "newer clicks"
    right.set(xscale="log", xlabel=f"age of a click ({age})", ylabel="weight", ylim=(0, 1.05))
    right.xaxis.set_major_formatter("{x:g}")
    some = f", {CURVES} of {len(weights)} curves" if len(weights) > CURVES else ""
    right.legend(frameon=False, title=f"lowest loss first{some}")
    tell(figure, told)
    figure.savefig(path)
    plt.close(figure)


def run(run_dirs: list[Path], names: list[str] | None, seed: int, out: Path) -> dict[str, Any]:
    """Compare, write `compare.json` and `compare.png` into `out`, and print the table."""
    from halflife.tracking import console, quiet

    quiet()
    for name in names or []:
        choice("--kernels", name, choices())
    check_alike(run_dirs)
    runs = [one_run(run_dir, names, seed, run_dir == run_dirs[0]) for run_dir in run_dirs]
    names = [n for n in runs[0] if all(n in run for run in runs)]
    found = {name: against_none(runs, name) for name in names}
    order = sorted(names, key=lambda n: found[n]["loss"])
    found = {name: found[name] for name in order}
    curves = {n: runs[0][n].weight for n in order if n != SHUFFLED}
    impressions = len(runs[0][AGAINST].loss)
    told = caveats([json.loads((run_dir / "metrics.json").read_text()) for run_dir in run_dirs])
    told += told_of_users(runs[0])
    out.mkdir(parents=True, exist_ok=True)
    (out / "compare.json").write_text(
        json.dumps(
            {
                "run_dirs": [str(d) for d in run_dirs],
                "test_impressions": impressions,
                "caveats": told,
                "kernels": found,
            },
            indent=2,
        )
    )
    picture(found, {n: w for n, w in curves.items() if w is not None}, told, out / "compare.png")
    console().print(table(found, len(runs), impressions, told))
    print(f"compare.json and compare.png are in {out}")
    return found


def main() -> None:
    """Command line of `python -m halflife.compare`."""
    parser = argparse.ArgumentParser(prog="python -m halflife.compare", description=__doc__)
    parser.add_argument(
        "run_dir", type=Path, nargs="+", metavar="RUN_DIR", help="directories that train.py wrote"
    )
    parser.add_argument(
        "--kernels", nargs="+", metavar="NAME", help="of conf/decay (all that the run can take)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the ages dealt out anew (1)")
    parser.add_argument("--out", type=Path, help="where the results go (RUN_DIR, of one run)")
    given = parser.parse_args()
    try:
        if given.out is None and len(given.run_dir) > 1:
            raise InputError(
                f"--out must be given for several runs, got {len(given.run_dir)} runs; add --out DIR"
            )
        run(given.run_dir, given.kernels, given.seed, given.out or given.run_dir[0])
    except InputError as error:
        stop(str(error))


if __name__ == "__main__":
    main()
