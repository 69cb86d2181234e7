"""The README's tables and pictures from the studies that search.sh left.

python experiments/half_life_search/figures.py OUT [--to DIR]
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars
from matplotlib.figure import Figure
from numpy.typing import NDArray

from halflife.report import study_plots
from halflife.report.drawing import COLORS, grid, picture
from halflife.report.trials import Study, half_life_of, rate_of, read

DATA = ["online_retail", "movielens"]
PRUNERS = {"none": "unpruned", "median": "pruned"}
MINUTES = [0.5, 1, 2, 3]  # of the processor


@dataclass(frozen=True)
class Search:
    """One study and what it took.

    Args:
        study: as the report reads it.
        minutes: of the processor, until each trial ended, those before it included but for the first one,
            which imports everything and encodes a catalogue that was not encoded yet.
        wall_minutes: in all trials together, but for the first.
        best: the best finished value by then.
    """

    study: Study
    minutes: NDArray[np.float64]
    wall_minutes: float
    best: NDArray[np.float64]

    def after(self, minutes: float) -> str:
        """The best value after so many minutes of the processor, in words."""
        done = np.flatnonzero((self.minutes <= minutes) & np.isfinite(self.best))
        if self.minutes[-1] < minutes:
            return ""
        return f"{self.best[done[-1]]:.4f}" if len(done) else "none yet"


def search(sweep_dir: Path) -> Search:
    """Read a study, and the note that each of its trials left in its directory."""
    study = read(sweep_dir)
    done = study.trials.filter(polars.col("state").is_in(["COMPLETE", "PRUNED"])).sort("number")
    notes = [json.loads((sweep_dir / str(n) / "trial.json").read_text()) for n in done["number"]]
    complete = (done["state"] == "COMPLETE").to_numpy()
    values = np.where(complete, done[study.objectives[0]].to_numpy(), -np.inf)
    return Search(
        study,
        np.cumsum([0.0, *(note["cpu_seconds"] for note in notes[1:])]) / 60,
        sum(note["seconds"] for note in notes[1:]) / 60,
        np.maximum.accumulate(values),
    )


def found(searches: dict[str, Search]) -> str:
    """What each search found, as Markdown."""
    lines = [
        "| study | trials | finished | pruned | failed | best `val/auc` | its half-life (days) | "
        "its learning rate | half-life at the curve's best (days) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, each in searches.items():
        study, states = each.study, each.study.trials["state"].to_list()
        half_life, rate = str(half_life_of(study)), str(rate_of(study))
        top = study.finished.row(0, named=True)
        peak, low, high = study_plots.optimum(study.finished, half_life, study.objectives[0], True)
        curve = "" if peak is None else f"{peak:.3g} [{low:.3g}, {high:.3g}]"
        counts = [len(states), *(states.count(s) for s in ("COMPLETE", "PRUNED", "FAIL"))]
        best = [f"{top[study.objectives[0]]:.4f}", f"{top[half_life]:.3g}", f"{top[rate]:.2g}"]
        lines.append(f"| {' | '.join([name, *map(str, counts), *best, curve])} |")
    return "\n".join(lines)


def cost(searches: dict[str, Search]) -> str:
    """What it took, as Markdown."""
    heads = [f"best after {m:g} min" for m in MINUTES]
    lines = [
        f"| study | processor, min | wall clock, min | {' | '.join(heads)} | at the end |",
        "|---" * (len(MINUTES) + 4) + "|",
    ]
    for name, each in searches.items():
        took = [f"{each.minutes[-1]:.1f}", f"{each.wall_minutes:.1f}"]
        cells = [name, *took, *(each.after(m) for m in MINUTES), f"{each.best[-1]:.4f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def pruning(searches: dict[str, Search]) -> bytes:
    """The best value over processor minutes, pruned against unpruned."""
    names = [data for data in DATA if any(name.startswith(data) for name in searches)]

    def draw(figure: Figure) -> None:
        for axes, data in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            for color, word in zip(COLORS, PRUNERS.values(), strict=False):
                each = searches.get(f"{data}, {word}")
                if each is not None:
                    some = np.isfinite(each.best)
                    axes.step(each.minutes[some], each.best[some], where="post", color=color, label=word)
            axes.set(title=data, xlabel="minutes of the processor", ylabel="best val/auc so far")
            axes.legend(loc="lower right")
            grid(axes)

    return picture("pruning", "Best value over processor minutes, pruned and unpruned.", "", draw).png


def main() -> None:
    """Print the tables, write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="where search.sh wrote")
    parser.add_argument("--to", type=Path, default=Path(__file__).parent, metavar="DIR", help="of pictures")
    given = parser.parse_args()
    places = {f"{d}, {word}": given.out / f"{d}-{p}" for p, word in PRUNERS.items() for d in DATA}
    searches = {name: search(place) for name, place in places.items() if (place / "best.yaml").is_file()}
    print(f"{found(searches)}\n\n{cost(searches)}")
    for data in DATA:
        each = searches.get(f"{data}, unpruned")
        if each is not None:
            for drawn in study_plots_of(each.study):
                (given.to / f"{data}_{drawn[0]}.png").write_bytes(drawn[1])
    (given.to / "pruning.png").write_bytes(pruning(searches))


def study_plots_of(study: Study) -> list[tuple[str, bytes]]:
    """The objective over half-life, and over learning rate and half-life."""
    half_life, rate, objective = str(half_life_of(study)), str(rate_of(study)), study.objectives[0]
    over = study_plots.over_half_life(study.trials, half_life, objective, True, None)
    both = study_plots.heat_map(study.finished, rate, half_life, objective, True)
    return [(drawn.name, drawn.png) for drawn in (over, both)]


if __name__ == "__main__":
    main()
