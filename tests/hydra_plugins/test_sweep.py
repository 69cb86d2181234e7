"""Sweeps of a small app: what they leave, that they resume and prune, and refuse what cannot run."""

import contextlib
import io
import json
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import polars as pl
import pytest
from hydra.core.global_hydra import GlobalHydra
from optuna.trial import TrialState

from halflife.report.trials import load
from hydra_plugins.halflife_sweeper import _study

APP = Path(__file__).parent / "app" / "app.py"
SPACE = "x=interval(-5,5)"
Sweep = Callable[..., tuple[int, str]]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Run the app with -m in this process: its exit code, and what it printed."""

    def sweep(*words: str) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(APP), "-m", "hydra.sweep.dir=study", *words])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        GlobalHydra.instance().clear()
        _study.open_study.cache_clear()  # as in a process of its own
        code, out = 0, io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                runpy.run_path(str(APP), run_name="__main__")
            except SystemExit as end:
                code = int(end.code or 0)
        return code, out.getvalue()

    return sweep


def start(cwd: Path, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(APP), "-m", "hydra.sweep.dir=study", *words],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def trials(cwd: Path) -> list[optuna.trial.FrozenTrial]:
    backend = optuna.storages.journal.JournalFileBackend(str(cwd / "study" / "study.log"))
    return optuna.load_study(study_name="study", storage=optuna.storages.JournalStorage(backend)).trials


def frame(cwd: Path) -> pl.DataFrame:
    return pl.read_parquet(cwd / "study" / "trials.parquet")


def test_a_sweep_leaves_its_study_a_table_and_the_best_configuration(sweep: Sweep, tmp_path: Path) -> None:
    code, out = sweep(SPACE, "size=3", "hydra.sweeper.n_trials=2", "hydra.sweeper.sampler.seed=1")
    assert code == 0
    found = frame(tmp_path)
    assert found["state"].to_list() == ["complete"] * 2
    assert found["number"].to_list() == [0, 1]
    assert [Path(d).name for d in found["run_dir"]] == ["0", "1"]
    assert ((found["x"] - 1) ** 2 * -1).to_list() == pytest.approx(found["value"].to_list())
    assert {"datetime_start", "datetime_complete", "duration_s", "reason"} <= set(found.columns)
    assert [t.value for t in trials(tmp_path)] == found["value"].to_list()
    best = found.sort("value")[-1]
    text = (tmp_path / "study" / "best.yaml").read_text()
    assert f"trial {best['number'].item()} reached" in text
    assert "2 of 2 trials" in out
    assert (tmp_path / "study" / "summary.txt").read_text() in out
    about = json.loads((tmp_path / "study" / "study.json").read_text())
    assert about == {"study_name": "study", "storage": str(tmp_path / "study" / "study.log")}
    # best.yaml is a configuration of the app, which the last line says how to run
    said, command = out.splitlines()[-1].split(": ")
    assert said == "The best one again"
    assert command == f"python {APP} --config-dir study --config-name best"
    assert f"# {command}\n" in text
    words = [sys.executable, *shlex.split(command)[1:], "--cfg", "job"]
    again = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert f"x: {best['x'].item()}" in again
    assert "size: 3" in again


def test_the_same_command_goes_on_to_the_planned_number_and_another_one_is_refused(
    sweep: Sweep, tmp_path: Path
) -> None:
    words = (SPACE, "hydra.sweeper.n_trials=1")
    assert sweep(*words)[0] == 0
    before = frame(tmp_path)
    assert sweep(*words)[0] == 0
    assert frame(tmp_path).equals(before), "nothing is left to do"
    code, out = sweep(SPACE, "hydra.sweeper.n_trials=2")
    assert code == 0
    assert "goes on with 1 of 2 trials" in out
    assert frame(tmp_path)[:1].equals(before)
    assert len(frame(tmp_path)) == 2
    for other in ((SPACE, "size=2"), ("x=interval(-5,6)",), (SPACE, "hydra.sweeper.direction=minimize")):
        code, out = sweep(*other)
        assert code == 2
        assert "hydra.sweeper.study_name must be a new name" in out
    assert len(trials(tmp_path)) == 2


@pytest.mark.slow
def test_a_conditional_space_searches_a_shape_only_where_it_is_chosen(sweep: Sweep, tmp_path: Path) -> None:
    assert sweep("search=both", "search.n_trials=8", "hydra.sweeper.sampler.seed=1")[0] == 0
    found = pl.read_parquet(tmp_path / "study" / "trials.parquet")
    bent = found["shape"] == "bent"
    assert 0 < bent.sum() < 8
    assert (found["shape.bend"].is_not_null() == bent).all()
    chosen = pl.read_parquet(tmp_path / "study" / "trials.parquet").filter(bent)["number"][0]
    assert "bend:" in (tmp_path / "study" / str(chosen) / ".hydra" / "config.yaml").read_text()
    assert "search" not in (tmp_path / "study" / "best.yaml").read_text().split("defaults:")[1]


def test_a_fixed_choice_brings_its_shape_and_no_other(sweep: Sweep, tmp_path: Path) -> None:
    assert sweep("search=both", "shape=bent", "search.n_trials=1", "x=0.5")[0] == 0
    found = frame(tmp_path)
    assert {"shape.bend"} == set(found.columns) & {"x", "shape", "shape.bend"}
    assert found["shape.bend"].null_count() == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "hydra.sweeper.params must hold something to search, got nothing"),
        (["x=interval(5,-5)"], "x must be an interval from a smaller to a larger number, got 5.0 to -5.0"),
        (["y=interval(0,1)"], "y must be a key of the configuration, got an unknown one"),
        (
            ["shape=flat", "search=both", "xx=interval(0,1)", "hydra.sweeper.params.x='interval(0,1)'"],
            "xx must be a key of the configuration, got an unknown one; did you mean x?",
        ),
        (["shape=flat,bnet"], "shape must be one of its choices, got bnet; did you mean bent?"),
        ([SPACE, "hydra.sweeper.n_jobs=2"], "hydra.sweeper.n_jobs must be 1 with the basic launcher"),
        ([SPACE, "hydra/sweeper/sampler=grid"], "x must be a range or a choice for a grid"),
        ([SPACE, "hydra.sweeper.sampler._target_=optuna.samplers.TPE"], "hydra.sweeper.sampler must be one"),
        ([SPACE, "hydra.sweeper.pruner=median"], "as hydra/sweeper/pruner=median"),
        ([SPACE, "hydra.sweeper.sampler=tpe"], "as hydra/sweeper/sampler=tpe"),
        ([SPACE, "hydra.launcher=joblib"], "as hydra/launcher=joblib"),
        (
            [SPACE, "hydra.sweeper.storage=nosql://me:secret@host/x"],
            "hydra.sweeper.storage must be a storage that can be reached, got nosql://me:***@host/x (",
        ),
        ([SPACE, "hydra.sweeper.storage=5"], "hydra.sweeper.storage must be a file, a URL or memory, got 5"),
        ([SPACE, "hydra.sweeper.params=x"], "hydra.sweeper.params must be a mapping"),
        ([SPACE, "hydra.sweeper.storage=nosql://x"], "hydra.sweeper.storage must be a storage that can be"),
    ],
)
def test_what_cannot_run_is_refused_before_the_first_trial(
    words: list[str], sentence: str, sweep: Sweep, tmp_path: Path
) -> None:
    code, out = sweep(*words)
    assert code == 2, out
    assert out.startswith("error: ")
    assert len(out.strip().splitlines()) == 1
    assert sentence in out
    assert not (tmp_path / "study").exists(), "a refused sweep leaves no directory"


def test_a_failed_trial_is_recorded_with_its_reason_and_the_sweep_goes_on(
    sweep: Sweep, tmp_path: Path
) -> None:
    reasons = {
        "work": None,
        "fail_above": "RuntimeError: x is too large",
        "memory": "out of memory (MemoryError: no room)",
        "leave": "the job left with exit code 3",
        "undefined": "the objective must be finite, got nan",
        "nothing": "the app must return a number, got null",
    }
    code, out = sweep(
        f"do={','.join(reasons)}", "x=4", "hydra.sweeper.n_trials=6", "hydra/sweeper/sampler=grid"
    )
    assert code == 0
    found = frame(tmp_path)
    assert dict(found["do", "reason"].rows()) == reasons
    assert (found["state"] == "failed").to_list() == [do != "work" for do in found["do"]]
    for do, reason, place in found["do", "reason", "run_dir"].rows():
        note = json.loads((Path(place) / "trial.json").read_text())
        assert note["state"] == ("complete" if do == "work" else "failed")
        assert note.get("reason") == reason
        assert reason is None or reason in " ".join(out.split())


@pytest.mark.slow
def test_too_many_failures_end_the_sweep_with_the_last_reason(sweep: Sweep, tmp_path: Path) -> None:
    code, out = sweep("x=interval(4,5)", "do=fail_above", "hydra.sweeper.max_failures=2")
    assert code == 2
    assert "got 2 with 3, the last because: RuntimeError: x is too large" in out
    assert len(trials(tmp_path)) == 3
    assert sweep("x=interval(4,5)", "do=fail_above", "hydra.sweeper.max_failures=2")[0] == 2
    assert len(trials(tmp_path)) == 6, "a sweep that is run again puts up with as many again"


def test_a_trial_that_is_worse_is_pruned_and_says_so(sweep: Sweep, tmp_path: Path) -> None:
    code, _ = sweep(
        "x=choice(1,2,3)",
        "hydra.sweeper.n_trials=3",
        "hydra/sweeper/sampler=grid",
        "hydra.sweeper.sampler.seed=1",
        "hydra/sweeper/pruner=median",
        "hydra.sweeper.pruner.n_startup_trials=1",
    )
    assert code == 0
    found = frame(tmp_path)
    pruned = found.filter(pl.col("state") == "pruned")
    assert 0 < len(pruned) < 3
    assert all(r.startswith("pruned at step 1 with") for r in pruned["reason"])
    for place in pruned["run_dir"]:
        assert json.loads((Path(place) / "trial.json").read_text())["state"] == "pruned"
    told = {t.number: t for t in trials(tmp_path)}
    assert all(list(told[n].intermediate_values) == [1] for n in pruned["number"])
    best = found.filter(pl.col("state") == "complete").sort("value")[-1]
    assert best["x"].item() == 1


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_the_trial_is_begun_again(sweep: Sweep, tmp_path: Path) -> None:
    words = (SPACE, "hydra.sweeper.n_trials=4", "do=interrupt", "limit=2")
    code, out = sweep(*words)
    assert code == 130
    assert "stopped; run the same command again to go on" in out
    assert sweep(*words)[0] == 0
    found = frame(tmp_path)
    assert found["state"].to_list() == ["complete", "complete", "again", "complete", "complete"]
    assert found["x"][3] == found["x"][2], "with the parameters of the one that was interrupted"


def test_seeds_make_a_mean_with_an_interval_and_prune_in_between(sweep: Sweep, tmp_path: Path) -> None:
    code, out = sweep(
        "x=range(1,3)",
        "hydra.sweeper.seeds=[1,2,3]",
        "hydra.sweeper.n_trials=2",
        "hydra/sweeper/sampler=grid",
        "hydra.sweeper.sampler.seed=1",
        "hydra/sweeper/pruner=median",
        "hydra.sweeper.pruner.n_startup_trials=1",
    )
    assert code == 0, out
    found = frame(tmp_path)
    done = found.filter(pl.col("state") == "complete").sort("value")
    best = done[-1]
    assert best["x"].item() == 1
    assert best["seed_values"].item().to_list() == pytest.approx([0.01, 0.02, 0.03])
    assert best["value"].item() == pytest.approx(0.02)
    assert best["half_width"].item() == pytest.approx(4.302652729911275 * 0.01 / 3**0.5)
    assert "0.02 ± 0.025" in out
    assert out.splitlines()[-1].endswith("--config-dir study --config-name best -m seed=1,2,3")
    assert "\nseed: 1\n" in (tmp_path / "study" / "best.yaml").read_text()
    assert (Path(best["run_dir"].item()) / "seed-3" / "trial.json").is_file()
    pruned = found.filter(pl.col("state") == "pruned")
    assert len(pruned) > 0
    assert set(pruned["reason"]) <= {"pruned after 1 of 3 seeds", "pruned after 2 of 3 seeds"}
    assert not (Path(pruned["run_dir"][0]) / "seed-3").exists()


@pytest.mark.slow
def test_wilcoxon_pairs_the_seeds(sweep: Sweep, tmp_path: Path) -> None:
    code, out = sweep(
        "x=choice(1.0,4.0)",
        "hydra.sweeper.seeds=[1,2,3,4,5,6]",
        "hydra.sweeper.n_trials=2",
        "hydra/sweeper/sampler=grid",
        "hydra.sweeper.sampler.seed=1",
        "hydra/sweeper/pruner=wilcoxon",
    )
    assert code == 0, out
    first, second = trials(tmp_path)
    assert first.state == TrialState.COMPLETE
    worse = second if second.params["x"] == 4.0 else None
    if worse is not None:
        assert worse.state == TrialState.PRUNED
        assert worse.intermediate_values == {i: pytest.approx(-9 + 0.01 * i) for i in range(1, 5)}


@pytest.mark.slow
def test_several_objectives_end_in_a_pareto_front(sweep: Sweep, tmp_path: Path) -> None:
    code, out = sweep(
        "x=range(-2,4)",
        "do=two",
        "hydra.sweeper.direction=[maximize,minimize]",
        "hydra.sweeper.n_trials=6",
        "hydra/sweeper/sampler=grid",
    )
    assert code == 0, out
    found = frame(tmp_path)
    assert found["values_0"].to_list() == pytest.approx([-((x - 1) ** 2) for x in found["x"]])
    assert found["values_1"].to_list() == [abs(x) for x in found["x"]]
    assert "6 of 6 trials · the Pareto front" in out
    front = {line.split("│")[-2].strip() for line in out.splitlines() if line.startswith("│")}
    assert front == {"0", "1"}


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "cmaes", "brute_force", "nsgaii"])
def test_every_sampler_runs(sampler: str, sweep: Sweep, tmp_path: Path) -> None:
    space = "size=range(1,4)" if sampler == "brute_force" else SPACE
    assert sweep(space, f"hydra/sweeper/sampler={sampler}", "hydra.sweeper.n_trials=4")[0] == 0
    assert len(frame(tmp_path)) == (3 if sampler == "brute_force" else 4)


@pytest.mark.slow
def test_memory_keeps_the_study_to_itself(sweep: Sweep, tmp_path: Path) -> None:
    assert sweep(SPACE, "hydra.sweeper.storage=memory", "hydra.sweeper.n_trials=2")[0] == 0
    assert len(frame(tmp_path)) == 2
    assert not (tmp_path / "study" / "study.log").exists()


def test_sqlite_resumes(sweep: Sweep, tmp_path: Path) -> None:
    storage = "hydra.sweeper.storage=sqlite:///trials.db"
    for n in (1, 2):
        code, out = sweep(SPACE, storage, f"hydra.sweeper.n_trials={n}", "hydra/sweeper/pruner=median")
        assert code == 0, out
    study = optuna.load_study(study_name="study", storage=f"sqlite:///{tmp_path}/trials.db")
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 2
    assert all(len(t.intermediate_values) == 3 for t in study.trials)
    assert load(tmp_path / "study").study_name == "study", "the report finds it by study.json"


def test_the_password_of_a_storage_is_not_written_down(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kept.db"
    monkeypatch.setenv("STORAGE", f"sqlite+pysqlite:////{file}")
    assert sweep(SPACE, "hydra.sweeper.storage='${oc.env:STORAGE}'", "hydra.sweeper.n_trials=1")[0] == 0
    about = (tmp_path / "study" / "study.json").read_text()
    assert json.loads(about)["storage"] == "${oc.env:STORAGE}"
    assert load(tmp_path / "study").study_name == "study"


@pytest.mark.slow
def test_a_line_that_a_crash_cut_off_does_not_end_the_study(sweep: Sweep, tmp_path: Path) -> None:
    assert sweep(SPACE, "hydra.sweeper.n_trials=2")[0] == 0
    with (tmp_path / "study" / "study.log").open("a") as file:
        file.write('{"op_code":4,"wor')
    assert sweep(SPACE, "hydra.sweeper.n_trials=3")[0] == 0
    assert [t.state for t in trials(tmp_path)] == [TrialState.COMPLETE] * 3


def test_a_storage_that_goes_away_mid_trial_loses_nothing(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_study, "PATIENCE_S", (0.01,))
    log = tmp_path / "study" / "study.log"
    words = (SPACE, "hydra.sweeper.n_trials=3", "do=lose", "limit=1", f"lose={log}")
    code, out = sweep(*words)
    assert code == 2
    assert out.strip().splitlines()[-1].startswith("error: hydra.sweeper.storage must stay reachable, got")
    assert not log.exists(), "it does not begin anew in silence"
    Path(f"{log}.away").rename(log)
    told = json.loads((tmp_path / "study" / "1" / "trial.json").read_text())["values"]
    # in this process the worker is still alive
    for file in (tmp_path / "study" / ".workers").glob("*"):
        file.unlink()
    assert sweep(*words)[0] == 0
    found = frame(tmp_path)
    assert found["state"].to_list() == ["complete"] * 3
    assert [found["value"][1]] == told, "the result that could not be told is taken from its directory"


def test_a_storage_that_goes_away_between_trials_is_one_sentence(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: object) -> None:
        raise optuna.exceptions.StorageInternalError("of no help") from RuntimeError("no route to host")

    monkeypatch.setattr(_study.Plan, "_bury", away)
    code, out = sweep(SPACE, "hydra.sweeper.n_trials=2")
    assert code == 2
    last = out.strip().splitlines()[-1]
    assert last.startswith("error: hydra.sweeper.storage must stay reachable, got: no route to host; ")
    assert not (tmp_path / "study" / "0").exists()


def test_the_best_trial_of_an_app_without_a_primary_configuration_runs_again(tmp_path: Path) -> None:
    app = tmp_path / "bare.py"
    app.write_text(
        "import hydra\n\n\n@hydra.main(version_base=None, config_path=None)\n"
        "def main(cfg):\n    print('x is', cfg.x)\n    return -cfg.x\n\n\nmain()\n"
    )

    def python(*words: str) -> str:
        return subprocess.run(
            [sys.executable, str(app), *words], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    own = ["hydra/sweeper=halflife", "hydra.sweeper.n_trials=1", "hydra.sweep.dir=study"]
    python("-m", *own, "+x=interval(1,2)")
    again = python("--config-dir", "study", "--config-name", "best")
    assert again.splitlines()[-1] == f"x is {-frame(tmp_path)['value'][0]}"
