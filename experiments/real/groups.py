"""Do half-lives differ between groups on real logs? Fitted by group, against groups dealt out anew.

python experiments/real/groups.py ROOT RUNS [--seeds …] [--deals 19]
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from real import trained

from halflife.batches import Batch
from halflife.compare import akaike, configured
from halflife.curves import readable_log
from halflife.decay.kernel import Kernel
from halflife.estimate import estimate, fit_likelihood, put
from halflife.likelihood import Likelihood
from halflife.profile import load
from halflife.progress import bar

HERE = Path(__file__).resolve().parent
# log, what groups are by, the kernel that they stretch: on each log the best of one half-life (real.py)
ASKED = [
    ("movielens", "category", "floor"),
    ("movielens", "activity", "floor"),
    ("online_retail", "activity", "exponential"),
]
Array = NDArray[np.int64]


def refitted(module: Any, data: Any, likelihood: Likelihood, kernel: Kernel) -> tuple[dict[str, Any], float]:
    """What decay.json says of a kernel refitted with scale, bias and sink, vectors held; and the AIC."""
    kernel.bind(data.store)
    own = likelihood.with_decay(kernel)
    fit = fit_likelihood(own)
    module.decay = kernel
    put(module, fit)
    found = estimate(module, fit)
    return found, akaike({**found, "log_likelihood": -own.loss(fit.point.theta)})


def dealt(batches: list[Batch], by: str, categories: Array, seed: int) -> Iterator[Batch]:
    """The same impressions with their groups dealt out anew: categories among items, activity among users.

    A user takes over the numbers of past clicks of another, stretched over his own impressions, so that what
    clusters by user still does.
    """
    rng = np.random.default_rng(seed)
    if by == "category":
        anew = torch.from_numpy(categories[rng.permutation(len(categories))])
        yield from (replace(b, category=anew[b.item]) for b in batches)
        return
    user, past = (torch.cat([getattr(b, n) for b in batches]).numpy() for n in ("user", "past_clicks"))
    order = np.lexsort((past, user))
    _, first, count = np.unique(user[order], return_index=True, return_counts=True)
    other = rng.permutation(len(first))
    taken = np.empty_like(past)
    for u, v in enumerate(other):
        at = np.arange(count[u]) * count[v] // count[u]
        taken[order[first[u] : first[u] + count[u]]] = past[order[first[v] + at]]
    for b, part in zip(batches, torch.from_numpy(taken).split([len(b) for b in batches]), strict=True):
        yield replace(b, past_clicks=part)


def one_run(run_dir: Path, by: str, inner: str, deals: int) -> dict[str, Any]:
    """Half-lives by group on a run's vectors, the AIC they gain over one for all, and of dealt groups."""
    module, data = load(run_dir, "fit groups")
    vectors, batches = module.encoder.catalogue(), list(data.sample("train"))
    categories = np.asarray(data.store.item_category).astype(np.int64)
    words = [f"by_{by}", f"decay@decay.kernel={inner}", "decay.estimate_sd=true"]
    likelihood = Likelihood(module, batches, vectors)
    alike, alike_aic = refitted(module, data, likelihood, configured(inner))
    groups, groups_aic = refitted(module, data, likelihood, configured(*words))
    gains = []
    for seed in bar(range(1, deals + 1), "deals"):
        other = Likelihood(module, dealt(batches, by, categories, seed), vectors)
        gains.append(alike_aic - refitted(module, data, other, configured(*words))[1])
    kept = ("half_lives", "half_lives_intervals", "half_lives_sd", "half_life_days", "status")
    return {
        "shared_half_life_days": alike["half_life_days"],
        **{k: groups.get(k) for k in kept},
        "gain": alike_aic - groups_aic,
        "dealt": gains,
    }


def picture(name: str, runs: list[dict[str, Any]], path: Path) -> None:
    """Left, each group's half-life with its interval in the first run, and in the others; right, gains."""
    first = runs[0]
    short = np.median(list(first["half_lives"].values())) < 0.01
    unit, scale = ("seconds", 86_400.0) if short else ("days", 1.0)
    names = list(first["half_lives"])
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 1.6 + 0.22 * len(names)), layout="constrained", dpi=120, width_ratios=[2, 1]
    )
    for at, group in enumerate(reversed(names)):
        if group in (first["half_lives_intervals"] or {}):
            low, high = (x * scale for x in first["half_lives_intervals"][group])
            left.plot([low, high], [at, at], color="tab:blue", lw=2)
        left.plot(first["half_lives"][group] * scale, at, "o", color="tab:blue", ms=5)
        left.plot(
            [r["half_lives"][group] * scale for r in runs[1:]], [at] * (len(runs) - 1), ".", color="0.4", ms=4
        )
    if first["half_life_days"] is not None:
        left.axvline(first["half_life_days"] * scale, color="0.4", lw=1, ls="--")
    left.set(
        xscale="log", xlabel=f"half-life ({unit}), 95 % interval of seed 1; dots: other seeds", title=name
    )
    left.set_yticks(range(len(names)), list(reversed(names)))
    readable_log(left.xaxis)
    right.hist(first["dealt"], bins=10, color="0.7", label="groups dealt out anew")
    for at, run in enumerate(runs):
        right.axvline(run["gain"], color="tab:blue", lw=1.2, label=None if at else "these groups, each seed")
    right.set(xlabel="AIC gained over one half-life for all", ylabel="deals")
    right.legend(frameon=False, fontsize=8)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Train what is missing, fit, and leave pictures beside this file and the numbers in RUNS."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of the logs")
    parser.add_argument("runs", type=Path, help="where runs are kept; what is there is not run again")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--deals", type=int, default=19, help="of groups, with the first seed")
    given = parser.parse_args()
    for log, by, inner in ASKED:
        found, kept = [], given.runs / f"{log}-by-{by}.json"
        for seed in given.seeds if not kept.exists() else []:
            run_dir = trained(log, given.root.resolve(), seed, given.runs.resolve())
            found.append(one_run(run_dir, by, inner, given.deals if seed == given.seeds[0] else 0))
        if found:
            kept.write_text(json.dumps(found, indent=2))
        found = json.loads(kept.read_text())
        picture(f"{log}: {inner} by {by}", found, HERE / f"{log}_by_{by}.png")
        as_good = 1 + sum(g >= found[0]["gain"] for g in found[0]["dealt"])
        print(
            f"{log} by {by}: sd {[round(r['half_lives_sd'], 3) for r in found]}, "
            f"AIC gained {[round(r['gain'], 1) for r in found]}, "
            f"p = {as_good}/{1 + len(found[0]['dealt'])}",
            flush=True,
        )


if __name__ == "__main__":
    main()
