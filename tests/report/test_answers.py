"""What the pages say, against what the runs and studies hold."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import polars as pl
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from scipy.stats import t

from halflife.errors import InputError
from halflife.report import multirun as report_multirun
from halflife.report import run, run_plots, study, study_plots, trials
from halflife.report.__main__ import page_of
from halflife.report.page import render


def found_in(directory: Path, name: str = "metrics.json") -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((directory / name).read_text())
    return loaded


@pytest.mark.parametrize(
    ("decay", "said"),
    [
        (
            {"unit": "days", "half_life_days": 4.821, "low": 4.62, "high": 5.03, "status": "estimated"},
            "A click loses half its weight in 4.82 days [4.62, 5.03].",
        ),
        (
            {"unit": "rank", "half_life_rank": 12.0, "low": 9.0, "high": 16.0, "status": "estimated"},
            "A click loses half its weight after 12 newer clicks [9, 16].",
        ),
        (
            {
                "unit": "days",
                "half_life_days": None,
                "status": "not_identified",
                "how": "not identified: the data cannot tell",
            },
            "The half-life of a click is not identified: the data cannot tell.",
        ),
        (
            {"unit": "days", "half_life_days": 7.0, "low": None, "high": None, "status": "fixed"},
            "A click is made to lose half its weight in 7 days.",
        ),
        (
            {"unit": "days", "half_life_days": 7.0, "low": None, "high": None, "status": "not_refitted"},
            "A click loses half its weight in 7 days, an estimate without an interval.",
        ),
        (
            {"unit": "days", "half_life_days": None, "status": "no_half_life", "kernel": "none"},
            "With none decay, which has no half-life, the AUC is 0.7000 [0.6500, 0.7500].",
        ),
    ],
)
def test_the_headline_is_the_answer(decay: dict[str, Any], said: str) -> None:
    metrics = {"test/auc": 0.7, "test/auc_low": 0.65, "test/auc_high": 0.75}
    assert run.headline(decay, metrics) == said


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            {"half_life_days": 5.04, "low": 4.5, "high": 5.65, "status": "estimated"},
            "it is 5.04 days [4.5, 5.65].",
        ),
        (
            {"half_life_days": None, "low": None, "high": None, "status": "not_identified"},
            "it is not identified.",
        ),
    ],
)
def test_the_half_life_of_validation_clicks_stands_below(other: dict[str, Any], said: str) -> None:
    decay = {"unit": "days", "how": "by descent", "low": 4.6, "high": 5.0}
    told = run.how(decay | {"held_out": other}, {})
    assert told.endswith(f"By validation clicks alone, from which item vectors have not learned, {said}")
    assert "validation" not in run.how(decay, {})


def test_a_runs_page_shows_its_own_figures(multirun: Path) -> None:
    place = multirun / "2"
    page, metrics = run.page(place), found_in(place)
    decay = found_in(place, "decay.json")
    assert f"{decay['half_life_days']:.3g} days [{decay['low']:.3g}, {decay['high']:.3g}]" in page.headline
    table = page.sections[1].tables[0]
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert rows["AUC"]["this run"] == f"{metrics['test/auc']:.4f}"
    assert rows["AUC"]["popularity"] == f"{metrics['baseline/popularity/auc']:.4f}"
    assert rows["AUC"]["best possible"] == f"{metrics['data/bayes_auc']:.4f}"
    changed = {row[0]: row[1:] for row in page.sections[4].tables[0].rows}
    assert changed["model"] == ["id_embedding", "bert_lora"]
    assert changed["data.source.users"][0] == "80"
    given = {"data.source.users", "data.source.items", "data.source.days"}
    assert set(changed) == {"model", "model.lr", *given}, "the other model has a rate of its own"
    origin = page.sections[5]
    assert "decay=exponential" in origin.code
    assert ["log's fingerprint", metrics["data/fingerprint"]] in origin.tables[0].rows


def test_half_lives_of_groups_stand_in_a_picture_and_a_table_with_what_was_planted() -> None:
    decay = {
        "unit": "days",
        "half_life_days": 5.0,
        "parameters": {},
        "half_lives": {"cooking": 28.0, "football": 1.07},
        "half_lives_intervals": {"football": [0.9, 1.3]},
        "half_lives_planted": {"cooking": 30.0, "football": 1.0},
    }
    (table,) = run.parameters(decay)
    assert table.columns == ["group", "half-life (days)", "95 % interval", "planted"]
    assert table.rows == [["cooking", "28", "", "30"], ["football", "1.07", "[0.9, 1.3]", "1"]]
    picture = run_plots.half_lives(decay)
    assert picture.alt == "Half-life (days) of each group: football: 1.07; cooking: 28."
    assert "what was planted" in picture.caption
    del decay["half_lives_planted"]
    assert run.parameters(decay)[0].columns == ["group", "half-life (days)", "95 % interval"]
    assert "planted" not in run_plots.half_lives(decay).caption


def test_a_multirun_shows_means_over_seeds_and_what_decay_gains(multirun: Path) -> None:
    page = report_multirun.page(multirun, sorted(multirun.glob("?")))
    aucs = {k: [found_in(multirun / d)["test/auc"] for d in ds] for k, ds in (("none", "01"), ("exp", "23"))}
    side, gain = page.sections[0].tables[0], page.sections[1].tables[0]
    rows = {row[0]: row for row in side.rows}
    half = t.ppf(0.975, 1) * np.std(aucs["none"], ddof=1) / np.sqrt(2)
    assert rows["decay=none"][1:3] == ["2", f"{np.mean(aucs['none']):.4f} ± {half:.2g}"]
    ((setting, seeds, difference, *_),) = gain.rows
    assert (setting, seeds) == ("decay=exponential", "2")
    assert float(difference) == pytest.approx(np.mean(aucs["exp"]) - np.mean(aucs["none"]), abs=6e-5)


def test_a_run_of_a_version_that_wrote_no_status_is_refused(multirun: Path, tmp_path: Path) -> None:
    shutil.copytree(multirun / "2", tmp_path / "old", ignore=shutil.ignore_patterns("*.ckpt"))
    decay = found_in(tmp_path / "old", "decay.json")
    del decay["status"]
    (tmp_path / "old" / "decay.json").write_text(json.dumps(decay))
    with pytest.raises(InputError, match=r"^PATH must hold runs of this version, got .* has no status; run"):
        run.page(tmp_path / "old")


def test_every_page_tells_of_a_split_that_leaks_and_of_reconstructed_times(
    multirun: Path, tmp_path: Path
) -> None:
    place = tmp_path / "sweep"
    shutil.copytree(multirun, place, ignore=shutil.ignore_patterns("*.ckpt"))
    told = {"data/split": "it leaks", "data/split_leaks": 1, "data/note": "made-up <times>"}
    (place / "2" / "metrics.json").write_text(json.dumps(found_in(place / "2") | told))
    page = page_of(place)
    assert page_of(place / "2").caveats == page.caveats == ["made-up <times>", "it leaks"]
    assert '<p class="caveat">made-up &lt;times&gt;</p>' in render(page, "page.html.jinja", "x")
    assert "**it leaks**" in render(page, "page.md.jinja", "x")
    storage = JournalStorage(JournalFileBackend(str(place / "study.log")))
    optuna.create_study(study_name="x", storage=storage)
    begun = page_of(place)
    assert (begun.title, begun.caveats) == ("Halflife study: x", page.caveats)


def test_a_study_is_read_with_its_states_reasons_and_objective(study_dir: Path) -> None:
    found = trials.read(study_dir)
    states = found.trials["state"].value_counts().rows()
    assert dict(states) == {"COMPLETE": 34, "FAIL": 4, "PRUNED": 6}
    assert found.objectives == ["val/auc"]
    assert (trials.half_life_of(found), trials.rate_of(found)) == (
        "decay.half_life_days",
        "optimizer.head_lr",
    )
    best = found.finished.row(0, named=True)
    assert best["val/auc"] == found.trials.filter(found.trials["state"] == "COMPLETE")["val/auc"].max()
    assert max(found.importance, key=lambda name: found.importance[name]) == "decay.half_life_days"
    table = study.page(study_dir).sections[2].tables[0]
    assert [row[1:3] for row in table.rows if row[0].startswith("train/loss")] == [["failed", "4"]]


def test_a_front_holds_what_no_other_beats(front_dir: Path) -> None:
    found = trials.read(front_dir)
    done = found.finished.select("number", *found.objectives).rows()

    def beaten(auc: float, cost: float) -> bool:
        return any(a >= auc and c <= cost and (a, c) != (auc, cost) for _, a, c in done)

    unbeaten = [number for number, auc, cost in done if not beaten(auc, cost)]
    assert sorted(found.front) == sorted(unbeaten)
    assert f"{len(unbeaten)} trials are beaten by none" in study.headline(found)


def test_the_curve_finds_planted_half_lives_and_its_intervals_hold_most_of_them() -> None:
    held, off = 0, []
    for seed in range(12):
        random = np.random.default_rng(seed)
        half_life = np.exp(random.uniform(np.log(0.5), np.log(50), 34))
        other = 0.005 * random.uniform(-2, 1, 34) ** 2 + 0.002 * random.normal(size=34)
        value = 0.8 - 0.02 * np.log(half_life / 5) ** 2 - other
        done = pl.DataFrame({"half_life": half_life, "value": value})
        best, low, high = study_plots.optimum(done, "half_life", "value", maximize=True)
        assert best is not None
        assert low is not None
        assert high is not None
        held += low <= 5 <= high
        off.append(math.log(best / 5))
    assert held >= 9
    assert abs(np.mean(off)) < 0.03
    assert np.std(off) < 0.1
    best, *_ = study_plots.optimum(done.with_columns(-pl.col("value")), "half_life", "value", maximize=False)
    assert best == pytest.approx(5 * math.exp(off[-1]))
    assert study_plots.optimum(done.head(5), "half_life", "value", True) == (None, None, None)


def test_a_study_that_has_just_begun_has_a_page_too(tmp_path: Path) -> None:
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "study.log")))
    begun = optuna.create_study(study_name="young", storage=storage, direction="minimize")
    assert study.page(tmp_path).headline == "No trial has finished yet."
    trial = begun.ask()
    trial.suggest_float("decay.half_life_days", 1, 10, log=True)
    page = study.page(tmp_path)
    assert "1 running" in page.lead
    begun.tell(trial, 0.5)
    lost = begun.ask()
    begun.tell(lost, state=optuna.trial.TrialState.FAIL)
    page = study.page(tmp_path)
    assert "reaches value 0.5000" in page.headline
    assert "interrupted and begun again" in page.lead


def test_two_studies_in_one_storage_have_to_be_named(tmp_path: Path) -> None:
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "study.log")))
    for name in ("one", "two"):
        optuna.create_study(study_name=name, storage=storage)
    with pytest.raises(InputError, match="must hold one study, got one, two"):
        trials.load(tmp_path)
    (tmp_path / "study.json").write_text(json.dumps({"study_name": "two"}))
    assert trials.load(tmp_path).study_name == "two"


def test_a_storage_that_is_away_is_one_sentence(tmp_path: Path) -> None:
    away = f"sqlite:///{tmp_path}/nowhere/study.db"
    (tmp_path / "study.json").write_text(json.dumps({"storage": away, "study_name": "x"}))
    with pytest.raises(InputError, match="storage must be a storage that can be reached"):
        trials.load(tmp_path)
