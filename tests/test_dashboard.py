"""The saved view as W&B's own package would send it, and what is said without a key."""

import json
from pathlib import Path
from typing import Any

import pytest

from halflife.dashboard import main, workspace

pytest.importorskip("wandb_workspaces", reason="needs halflife-rec[dashboard]")


@pytest.fixture(scope="module")
def spec() -> Any:
    view = json.loads(workspace("team", "halflife")._to_model().model_dump_json(by_alias=True))
    assert (view["entity"], view["project"], view["displayName"]) == ("team", "halflife", "Halflife")
    return view["spec"]["section"]


def panels(spec: Any) -> dict[str, dict[str, Any]]:
    """Every panel's configuration by its kind and title."""
    every = [panel for section in spec["panelBankConfig"]["sections"] for panel in section["panels"]]
    return {f"{panel['viewType']}: {panel['config'].get('chartTitle')}": panel["config"] for panel in every}


def test_it_shows_auc_over_half_life_and_the_curves_by_kernel(spec: Any) -> None:
    shown = panels(spec)
    scatter = shown["Scatter Plot: AUC over half-life (days)"]
    assert (scatter["xAxis"], scatter["yAxis"]) == ("summary:decay/half_life_days", "summary:test/auc")
    assert scatter["xAxisLogScale"] is True
    curve = shown["Run History Line Plot: What a click weighs, by its age (days)"]
    assert (curve["xAxis"], curve["metrics"]) == ("decay/age_days", ["decay/weight"])
    assert curve["groupBy"] == "choice/decay.value"


def test_its_table_holds_training_runs_grouped_by_kernel_with_their_seeds(spec: Any) -> None:
    (runs,) = spec["runSets"]
    (only,) = runs["filters"]["filters"]
    assert (only["key"], only["op"], only["value"]) == ({"section": "run", "name": "jobType"}, "=", "train")
    assert [g["name"] for g in runs["grouping"]] == ["choice/decay.value", "seed.value"]
    assert {"config:seed", "summary:test/auc", "summary:decay/half_life_days"} <= set(
        runs["runFeed"]["columnOrder"]
    )


def test_without_a_key_it_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr("sys.argv", ["dashboard"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "must find a key of W&B" in said
    assert "wandb login" in said
    assert said.count("\n") == 1


def test_without_the_package_it_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["dashboard"])
    with pytest.raises(SystemExit):
        main()
    assert "halflife-rec[dashboard]" in capsys.readouterr().err
