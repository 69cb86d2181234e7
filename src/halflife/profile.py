"""How sure a run's half-life is: the profile likelihood, its interval, a bootstrap over users, and a picture.

python -m halflife.profile RUN_DIR
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from scipy.optimize import brentq
from scipy.stats import chi2

from halflife.cli import stop
from halflife.curves import tell
from halflife.errors import InputError
from halflife.estimate import LEVEL, Fit, clustered, clusters, estimate, fit_likelihood, put
from halflife.likelihood import Likelihood, Point
from halflife.progress import bar
from halflife.recommender import Recommender
from halflife.summary import caveats

CONFIG, BEST = ".hydra/config.yaml", "checkpoints/best.ckpt"
AROUND = 13  # half-lives at even distance, from half the interval below it to half above
DROP = float(chi2.ppf(LEVEL, 1)) / 2  # nats below the maximum at which the interval ends


@dataclass(frozen=True)
class Profile:
    """−log L over half-lives, everything else refitted at each.

    Args:
        half_life: ascending, in days (or ranks).
        drop: log-likelihood below the maximum (nats), ≥ 0.
        low, high: where it has dropped by 1.92 nats; None where it never does on that side.
    """

    half_life: list[float]
    drop: list[float]
    low: float | None
    high: float | None


def profile(fit: Fit, points: int) -> Profile:
    """The profile likelihood around a fit, and the likelihood-ratio interval from it.

    2 (log L(ĥ) − log L(h)) ≤ 3.84, the 95 % quantile of χ² with one degree of freedom, inside the interval.

    Args:
        fit: its half-life has to be free.
        points: half-lives on the grid, at least 5.

    Source: Venzon & Moolgavkar, A Method for Computing Profile-Likelihood-Based Confidence Intervals (Applied
    Statistics 1988).
    """
    likelihood, best = fit.likelihood, fit.point
    held = [str(likelihood.half_life)]
    middle = float(best.theta[likelihood.names.index(held[0])])
    starts = likelihood.starts()
    low, high = math.log(starts[0]) - 2, max(math.log(starts[-1]), middle) + 2
    grid = np.linspace(low, high, points)
    found: dict[float, float] = {middle: best.value}
    near: dict[float, Point] = {middle: best}

    def value(log_half_life: float) -> float:
        closest = near[min(near, key=lambda x: abs(x - log_half_life))]
        theta = likelihood.at_half_life(closest.theta, math.exp(log_half_life))
        near[log_half_life] = likelihood.minimise(theta, held=held)
        found[log_half_life] = near[log_half_life].value
        return found[log_half_life]

    for at in bar(
        sorted(grid, key=lambda x: abs(x - middle)), "profile"
    ):  # outwards, each from its neighbour
        value(float(at))
    least = min(found.values())

    def edge(side: int) -> float | None:
        beyond = [x for x in found if side * (x - middle) > 0 and found[x] - least > DROP]
        if not beyond:
            return None
        outside = min(beyond, key=lambda x: abs(x - middle))
        inside = [x for x in found if side * (outside - x) > 0 and found[x] - least <= DROP]
        if not inside:
            return math.exp(outside)
        start = max(inside, key=lambda x: side * x)
        return math.exp(brentq(lambda x: value(x) - least - DROP, start, outside, xtol=1e-3))

    ends = edge(-1), edge(1)
    if ends[0] is not None and ends[1] is not None:  # so that the curve is drawn as it bends there
        left, right = math.log(ends[0]), math.log(ends[1])
        half = (right - left) / 2
        for at in np.linspace(left - half, right + half, AROUND):
            value(float(at))
    order = sorted(found)
    return Profile([math.exp(x) for x in order], [found[x] - least for x in order], *ends)


def bootstrap(fit: Fit, times: int, seed: int) -> list[float]:
    """Half-lives refitted to users drawn with replacement, all their impressions with them; of few users, to
    impressions drawn so.

    Source: Field & Welsh, Bootstrapping Clustered Data (JRSS B 2007), the cluster bootstrap.
    """
    likelihood = fit.likelihood
    owner = clusters(likelihood.user)
    users = int(owner.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    at = likelihood.names.index(str(likelihood.half_life))
    found = []
    for _ in bar(range(times), "bootstrap"):
        drawn = torch.randint(users, (users,), generator=generator)
        weight = torch.bincount(drawn, minlength=users).double()[owner]
        found.append(math.exp(float(likelihood.minimise(fit.point.theta, weight).theta[at])))
    return found


def permute(fit: Fit, times: int, seed: int) -> list[float]:
    """Log-likelihood over no decay (nats), ages dealt out anew within each history: what chance gives.

    Source: Good, Permutation, Parametric and Bootstrap Tests of Hypotheses (2005), section 3.1. The quantiles
    of χ² do not hold here, since no decay lies on the boundary of what a half-life can be.
    """
    if fit.gain is None:
        return []
    flat = fit.likelihood.loss(fit.point.theta) + fit.gain  # no age enters where nothing fades
    found = []
    for i in bar(range(times), "permutations"):
        dealt = fit.likelihood.shuffled(seed + i)
        found.append(max(0.0, flat - dealt.loss(dealt.best().theta)))
    return found


def configuration(run_dir: Path) -> DictConfig:
    """The configuration of a finished run.

    Raises:
        InputError: when the directory holds no finished run.
    """
    for name in (CONFIG, BEST, "metrics.json", "predictions.parquet"):
        if not (run_dir / name).is_file():
            raise InputError(
                f"RUN_DIR must be the directory of a finished run, got {run_dir} without {name}; give one "
                "that train.py wrote"
            )
    cfg = OmegaConf.load(run_dir / CONFIG)
    if not isinstance(cfg, DictConfig):
        raise InputError(
            f"RUN_DIR must hold a configuration, got {run_dir / CONFIG} with a list; give another directory"
        )
    return cfg


def load(run_dir: Path, what_for: str) -> tuple[Recommender, Any]:
    """The module of a finished run, its best checkpoint loaded, and its data.

    Args:
        run_dir: that train.py wrote.
        what_for: what its item vectors are held fixed for, to say so where it has none.

    Raises:
        InputError: when the directory holds no finished run, that of a model which reads text, or one whose
            configuration names what this version has not.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    from halflife.recommender import build

    cfg = configuration(run_dir)
    try:
        data = instantiate(cfg.data)
        module = build(cfg, data)
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from error
        why = str(error).partition(",")[0]
        raise InputError(
            f"RUN_DIR must be a run of this version, got {run_dir} ({why}); run it again"
        ) from error
    if module.interest.reads_text:
        raise InputError(
            f"model must be one of item vectors to {what_for}, got one that reads text in {run_dir}; give a "
            "run with another model, such as model=bert_lora"
        )
    state = torch.load(run_dir / BEST, map_location="cpu", weights_only=False)["state_dict"]
    module.load_state_dict({**module.state_dict(), **state})
    return module.eval(), data


def picture(found: dict[str, Any], path: Path) -> None:
    """The drop of the log-likelihood over half-lives, with the intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    unit = found["unit"]
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained", dpi=120)
    x, y = np.array(found["profile"]["half_life"]), -np.array(found["profile"]["drop"])
    axes.plot(x, y, "o-", ms=3, color="tab:blue", label="profile log-likelihood")
    axes.axhline(-DROP, color="0.5", lw=1, ls=":", label="95 % by likelihood ratio")
    for name, color, at in (("bootstrap", "tab:orange", 0.06), ("sandwich", "tab:green", 0.12)):
        low, high = found[name]["low"], found[name]["high"]
        if low is not None:
            axes.plot(
                [low, high], [at, at], transform=axes.get_xaxis_transform(), color=color, lw=4, label=name
            )
    axes.axvline(found["half_life"], color="tab:blue", lw=1, ls="--")
    depth = max(8.0, 1.2 * (found["over_no_decay"] or 0.0)) if (found["over_no_decay"] or 0) < 40 else 12.0
    axes.set(
        xscale="log",
        ylim=(-depth, 0.03 * depth),
        xlabel=f"half-life ({unit})",
        ylabel="log-likelihood below the maximum (nats)",
    )
    inside = x[y > -depth]
    axes.set_xlim(inside.min() / 1.5, inside.max() * 1.5)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.legend(frameon=False)
    tell(figure, found["caveats"])
    figure.savefig(path)
    plt.close(figure)


def interval(values: list[float]) -> dict[str, float | None]:
    """Percentiles of half-lives and the standard deviation of their logarithm."""
    if len(values) < 2:
        return {"low": None, "high": None, "sd_log_half_life": None}
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(values, [tail, 100 - tail])
    return {"low": float(low), "high": float(high), "sd_log_half_life": float(np.std(np.log(values), ddof=1))}


def run(run_dir: Path, points: int, times: int, permutations: int, seed: int) -> dict[str, Any]:
    """Profile a run; writes `profile.json` and `profile.png` into its directory and prints a table."""
    from rich.table import Table

    from halflife.tracking import console, quiet

    quiet()
    module, data = load(run_dir, "profile its half-life")
    for name, parameter in module.decay.named_parameters():  # a half-life that was given can be profiled too
        if name.endswith("log_half_life"):
            parameter.requires_grad_()
    likelihood = Likelihood(module, data.sample("train"), module.encoder.catalogue())
    if likelihood.half_life is None:
        raise InputError(
            f"decay must be a kernel with a half-life to profile it, got {type(module.decay).__name__}; "
            "give a run with another kernel"
        )
    fit = fit_likelihood(likelihood)
    put(module, fit)
    half_life = module.decay.half_life
    stated = estimate(module, fit)
    curve = profile(fit, points)
    drawn = bootstrap(fit, times, seed)
    null = permute(fit, permutations, seed)
    ratio = 2 * (fit.gain or 0.0)
    found: dict[str, Any] = {
        "kernel": stated["kernel"],
        "unit": module.unit,
        "half_life": None if half_life is None else float(half_life.detach()),
        "identified": stated["identified"] and curve.high is not None,
        "status": stated["status"],
        "how": stated["how"],
        "profile": {"half_life": curve.half_life, "drop": curve.drop},
        "likelihood_ratio": {"low": curve.low, "high": curve.high},
        "bootstrap": {**interval(drawn), "times": times},
        "sandwich": {k: stated.get(k) for k in ("low", "high", "sd_log_half_life")},
        "over_no_decay": fit.gain,
        # no decay is the end of the scale: half of the time chance gains nothing (Self & Liang, JASA 1987)
        "p_boundary": float(chi2.sf(ratio, 1)) / 2 if fit.gain is not None else None,
        "p_permutation": (1 + sum(n >= (fit.gain or 0) for n in null)) / (1 + len(null)) if null else None,
        "impressions": len(likelihood.user),
        "caveats": caveats([json.loads((run_dir / "metrics.json").read_text())]),
    }
    (run_dir / "profile.json").write_text(json.dumps(found, indent=2))
    picture(found, run_dir / "profile.png")
    unit = module.unit
    table = Table(title=f"Half-life of {run_dir}", caption="\n".join(found["caveats"]) or None)
    table.add_column(f"{stated['kernel']}, {found['impressions']:,} training impressions")
    table.add_column("", justify="right")

    def span(ends: dict[str, Any]) -> str:
        low = "0" if ends["low"] is None else f"{ends['low']:.3g}"
        return f"{low} – " + ("no end" if ends["high"] is None else f"{ends['high']:.3g}")

    table.add_row(
        f"half-life ({unit})", f"{found['half_life']:.4g}" if found["identified"] else "not identified"
    )
    table.add_row("95 % by likelihood ratio", span(found["likelihood_ratio"]))
    if times > 1:
        whom = "users" if clustered(likelihood.user) else "impressions"
        table.add_row(f"95 % by bootstrap over {whom}, {times} times", span(found["bootstrap"]))
    if stated["identified"]:
        table.add_row("95 % by sandwich variance", span(found["sandwich"]))
    if fit.gain is not None:
        table.add_row("log-likelihood over no decay (nats)", f"{fit.gain:.2f}")
        p = found["p_boundary"]
        table.add_row("p of no decay, at the boundary", f"{p:.2g}" if p >= 1e-16 else "< 1e-16")
    if null:
        table.add_row(f"p of no decay, {permutations} permutations", f"{found['p_permutation']:.2g}")
    console().print(table)
    print(f"profile.json and profile.png are in {run_dir}")
    return found


def main() -> None:
    """Command line of `python -m halflife.profile`."""
    parser = argparse.ArgumentParser(prog="python -m halflife.profile", description=__doc__)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a directory that train.py wrote")
    parser.add_argument("--points", type=int, default=25, help="half-lives on the grid (25)")
    parser.add_argument("--bootstrap", type=int, default=100, help="draws of users; 0 leaves it out (100)")
    parser.add_argument(
        "--permutations", type=int, default=0, help="ages dealt out anew; 0 leaves it out (0)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the draws (1)")
    given = parser.parse_args()
    try:
        for name, least in (("points", 5), ("bootstrap", 0), ("permutations", 0), ("seed", 0)):
            if getattr(given, name) < least:
                raise InputError(
                    f"--{name} must be at least {least} (count), got {getattr(given, name)}; raise it"
                )
        run(given.run_dir, given.points, given.bootstrap, given.permutations, given.seed)
    except InputError as error:
        stop(str(error))


if __name__ == "__main__":
    main()
