"""Writes docs/kernels.md and a picture of each kernel, from the kernels themselves: python docs/kernels.py"""

import importlib
import re
from pathlib import Path

import matplotlib
import torch
from hydra import compose, initialize_config_dir

from halflife.decay.configured import kernels
from halflife.decay.kernel import Kernel

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).resolve().parent
CONF = DOCS.parent / "conf"
HALF_LIFE, LAST = 5.0, 30.0  # days, of every picture

WHEN = {
    "none": "The baseline that every other has to beat on the same test impressions.",
    "exponential": "Start here: one parameter, and every stretch of time means the same. Most published "
    "half-lives (SAR's 30 days among them) are this one's.",
    "rank_exponential": "Where a log has an order and no times, or to ask whether time tells more than that.",
    "power": "Where much is forgotten at once and the rest hardly ever: tastes over months. Users who differ in "
    "exponential half-lives look like this on average: compare `by_user` before believing it.",
    "hyperbolic": "A power law of exponent 1, without anything to tune.",
    "weibull": "To let the data say whether forgetting slows down (shape below 1) or speeds up (above 1).",
    "gaussian": "Where an interest holds for a while and then ends: an event, a season, a project.",
    "linear": "Where interest runs out at a date: after two half-lives nothing is left.",
    "window": "To compare with the sliding window that most pipelines have, hard or with an edge that is learned.",
    "logarithmic": "The slowest fall, where even years leave much; the unit of time matters and is explicit.",
    "exp_mixture": "Where a session's interest and a lasting taste overlap: fast and slow parts with shares of their own.",
    "actr": "Where the same item comes again and again (music, groceries): repetition strengthens what recency fades.",
    "hawkes": "Where an item is taken again after a typical time, on top of fading at once.",
    "fourier": "A signed free form, to see whether some ages speak against a candidate; `interest=pool` only.",
    "gamma_hazard": "Goods that run out: weight rises until the typical time to buy again, then falls.",
    "buckets": "No shape assumed: one weight per log-spaced bucket of ages, as in HSTU. What a kernel competes with.",
    "monotone": "No shape assumed but that weight never rises: shows which parametric kernel is near the truth.",
    "general": "To choose among kernels by fitting, with `decay.learn_shape=true decay.learn_tail=true` (without them it is a "
    "hyperbola above a floor): exponential, Gaussian, hyperbola, power, Weibull and window are its "
    "limits.",
    "floor": "Where a part of the past never fades: any kernel above a floor that is set or learned.",
    "by_category": "“Sports news fades in a day, recipes in a month”: a half-life for each category, shrunk to a shared one.",
    "by_kind": "A purchase and a view need not fade alike.",
    "by_user": "Users who forget differently, log-normal around the shared half-life.",
    "by_activity": "Heavy users and newcomers, by the number of past clicks.",
}


def weights(kernel: Kernel, age: torch.Tensor) -> torch.Tensor:
    """The signed weight at each age."""
    with torch.no_grad():
        return kernel.sign(age) * kernel(age).exp()


def draw(name: str, kernel: Kernel) -> None:
    """The curve at a half-life of 5 days; for groups, those of three that differ by a standard deviation."""
    age = torch.linspace(0, LAST, 1201)
    figure, axes = plt.subplots(figsize=(4.2, 2.4), layout="constrained", dpi=100)
    if kernel.ranks:
        age = torch.arange(0, LAST + 1)
        axes.step(age, weights(kernel, age), where="mid", color="tab:blue")
    elif name.startswith("by_"):
        for deviation, style in ((-0.7, ":"), (0.0, "-"), (0.7, "--")):
            label = f"h·e^{deviation:+.1f}" if deviation else "shared h"
            stretched = weights(kernel, age * torch.exp(torch.tensor(-deviation)))
            axes.plot(age, stretched, color="tab:blue", ls=style, label=label)
        axes.legend(frameon=False, fontsize=7)
    else:
        axes.plot(age, weights(kernel, age), color="tab:blue")
    half_life = kernel.half_life
    if half_life is not None:
        axes.axvline(half_life.item(), color="0.6", lw=1, ls="--")
    axes.axhline(0.5, color="0.85", lw=1)
    low = min(0.0, float(weights(kernel, age).min()))
    axes.set(xlim=(0, LAST), ylim=(1.1 * low, 1.05), ylabel="weight")
    axes.set_xlabel("newer clicks" if kernel.ranks else "age (days)")
    figure.savefig(DOCS / "kernels" / f"{name}.png")
    plt.close(figure)


def section(name: str) -> str:
    """A kernel's part of the page; draws its picture too."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[f"decay={name}"])
    for key in ("half_life_days", "half_life_ranks"):
        if key in cfg.decay:
            cfg.decay[key] = HALF_LIFE
    kernel, _ = kernels(cfg.decay)
    draw(name, kernel)
    lines = (CONF / "decay" / f"{name}.yaml").read_text().splitlines()
    formula, _, words = lines[0].removeprefix("# ").partition(": ")
    doc = " ".join((type(kernel).__doc__ or "").split())
    source = re.search(r"Source: (.*?)(?= >>>|$)", doc)
    title = (importlib.import_module(type(kernel).__module__).__doc__ or "").split("\n")[0].rstrip(".")
    keys = ", ".join(f"`decay.{k}`" for k in cfg.decay if k not in ("_target_", "_partial_", "candidate"))
    flags = [
        "signed" if kernel.signed else "",
        "" if kernel.monotone else "may rise with age",
        "" if kernel.starts_at_one else "w(0) ≠ 1",
        "no half-life" if kernel.half_life is None else "",
    ]
    notes = ", ".join(f for f in flags if f)
    return "\n".join(
        [
            f"## `decay={name}`",
            "",
            f"{title}.{f' ({notes})' if notes else ''}",
            "",
            f"![weight over age](kernels/{name}.png)",
            "",
            f"- **{formula}**: {words}",
            f"- *When*: {WHEN[name]}",
            *([f"- *Keys*: {keys}"] if keys else []),
            *([f"- *Source*: {source.group(1)}"] if source else []),
            "",
        ]
    )


def main() -> None:
    """Write the page."""
    names = sorted(p.stem for p in (CONF / "decay").glob("*.yaml"))
    order = [n for n in WHEN if n in names] + [n for n in names if n not in WHEN]
    head = [
        "# Kernels",
        "",
        "How much a past click still weighs at an age. Every picture has a half-life of 5 days (dashed), so that shapes",
        "compare; `decay.half_life_days` means the same in all of them: the age at which the decaying part has halved.",
        "Made by `python docs/kernels.py` from the kernels themselves. What a weight then does to a score is the interest",
        "model's choice: [compositions.md](compositions.md).",
        "",
    ]
    (DOCS / "kernels.md").write_text("\n".join(head) + "\n" + "\n".join(section(n) for n in order))
    print(f"wrote {DOCS / 'kernels.md'} and {len(order)} pictures")


if __name__ == "__main__":
    main()
