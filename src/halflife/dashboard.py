"""The saved view of a W&B project: AUC over half-life, curves by kernel, and the table of seeds.

python -m halflife.dashboard [--entity NAME] [--project NAME]
"""

import argparse
import importlib.util
from typing import Any

from halflife.cli import stop
from halflife.errors import InputError
from halflife.loggers import has_key

KERNEL, SEED = "choice/decay", "seed"
COLUMNS = ["config:choice/data", "config:choice/model", "config:choice/decay", "config:seed"]
RESULTS = ["test/auc", "test/auc_low", "test/auc_high", "test/logloss", "decay/half_life_days"]


def check() -> None:
    """Raise the InputError where W&B's package or a key is missing."""
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise InputError(
            "halflife.dashboard must find the package wandb-workspaces, got none; "
            "pip install 'halflife-rec[dashboard]'"
        )
    if not has_key():
        raise InputError(
            "halflife.dashboard must find a key of W&B, under which it saves the view, got none; run "
            "`wandb login` or set WANDB_API_KEY"
        )


def workspace(entity: str, project: str) -> Any:
    """The view, not saved yet: training runs alone, grouped by kernel, seeds below it.

    Args:
        entity: user or team that owns the project.
        project: as `logger.project` of the runs.
    """
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    half_life, auc = wr.SummaryMetric("decay/half_life_days"), wr.SummaryMetric("test/auc")
    kernel = wr.Config(KERNEL)
    answer: list[Any] = [
        wr.ScatterPlot(title="AUC over half-life (days)", x=half_life, y=auc, log_x=True),
        wr.LinePlot(
            title="What a click weighs, by its age (days)",
            x="decay/age_days",
            y=["decay/weight"],
            groupby=kernel,
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            max_runs_to_show=100,
        ),
        wr.BarPlot(
            title="Test AUC by kernel, mean and standard error over runs",
            metrics=["test/auc"],
            groupby=kernel,
            groupby_aggfunc="mean",
            groupby_rangefunc="stderr",
        ),
        wr.MediaBrowser(title="Decay curves", media_keys=["decay/curve"]),
    ]
    training: list[Any] = [
        wr.LinePlot(title=title, x="trainer/global_step", y=[key], groupby=kernel, groupby_rangefunc="minmax")
        for title, key in (
            ("Half-life while it is learned (days)", "decay/half_life_days"),
            ("Training loss", "train/loss"),
            ("Validation AUC", "val/auc"),
        )
    ]
    searched: list[Any] = [
        wr.ParallelCoordinatesPlot(
            title="Searched settings",
            columns=[
                wr.ParallelCoordinatesPlotColumn(wr.Config("optimizer/head_lr"), log=True),
                wr.ParallelCoordinatesPlotColumn(wr.Config("decay/half_life_days"), log=True),
                wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric("val/auc")),
            ],
        ),
        wr.RunComparer(diff_only="split"),
    ]
    return ws.Workspace(
        name="Halflife",
        entity=entity,
        project=project,
        sections=[
            ws.Section(name="How long a click matters", panels=answer, is_open=True),
            ws.Section(name="How it was learned", panels=training, is_open=True),
            ws.Section(name="What was searched", panels=searched),
        ],
        settings=ws.WorkspaceSettings(sort_panels_alphabetically=False, max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters="JobType == 'train'",
            groupby=[ws.Config(KERNEL), ws.Config(SEED)],
            order=[ws.Ordering(ws.Summary("test/auc"), ascending=False)],
            pinned_columns=["run:displayName", *COLUMNS, *(f"summary:{key}" for key in RESULTS)],
        ),
    )


def main() -> None:
    """Command line of `python -m halflife.dashboard`."""
    parser = argparse.ArgumentParser(prog="python -m halflife.dashboard", description=__doc__)
    parser.add_argument("--entity", help="user or team that owns the project (your own)")
    parser.add_argument("--project", default="halflife", help="as logger.project of the runs (halflife)")
    given = parser.parse_args()
    try:
        check()
    except InputError as error:
        stop(str(error))
    import wandb

    view = workspace(given.entity or str(wandb.Api().default_entity), given.project)
    print(f"the view is saved: {view.save().url}")


if __name__ == "__main__":
    main()
