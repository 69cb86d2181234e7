"""A mistake on the command line: one sentence, exit code 2, no traceback, nothing left behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def call(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HALFLIFE_CACHE": str(cwd / "cache"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def refused(cwd: Path, *words: str) -> str:
    """The sentence on standard error, after checking the manners."""
    done = call(*words, cwd=cwd)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert not (cwd / "runs").exists(), "a refused run leaves no directory"
    assert not (cwd / "multirun").exists(), "a refused sweep leaves no directory"
    return lines[0]


def test_help_shows_groups_choices_and_commands(tmp_path: Path) -> None:
    done = call("--help", cwd=tmp_path)
    assert done.returncode == 0
    for word in (
        "python train.py model=bert_lora decay=exponential",
        "decay: ",
        "gaussian",
        "bert_frozen",
        "mind",
    ):
        assert word in done.stdout
    assert not list(tmp_path.iterdir())


def test_help_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, runpy; sys.argv = ['train.py', '--help']\n"
        "try: runpy.run_path(sys.argv0, run_name='__main__')\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    ).replace("sys.argv0", repr(str(ROOT / "train.py")))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stderr.strip().splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["decay=exponentail"], "did you mean exponential"),
        (["decoy=exponential"], "did you mean decay"),
        (["decay.half_lif_days=3"], "did you mean decay.half_life_days"),
        (["decay.half_life_days=[1"], "an override must be KEY=VALUE"),
        (["-m", "decay=none,expnential"], "did you mean exponential"),
        (["+decay.foo=1"], "foo must be an argument of halflife.decay.exponential.Exponential"),
        (
            ["decay@decay.candidate=exponential", "decay.candidate.half_lif_days=3"],
            "did you mean decay.candidate.half_life_days",
        ),
        (["+foo=1"], "foo must be a key of the configuration"),
        (["decay.half_life_days=abc"], "decay.half_life_days must be a number above 0 (days), got abc"),
        (["data=movielens"], "data.root must be given"),
        (["objective=val/aucc"], "did you mean val/auc"),
    ],
)
def test_a_mistake_ends_in_one_sentence(words: list[str], expected: str, tmp_path: Path) -> None:
    assert expected in refused(tmp_path, *words)


def test_an_output_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sentence = refused(tmp_path, f"hydra.run.dir={tmp_path}/file/run")
    assert "hydra.run.dir must be a directory that can be written" in sentence


def test_days_on_a_log_without_click_times_offer_ranks(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    news = [f"N{i}\tnews\tworld\tTitle {i}\tText\turl\t[]\t[]" for i in range(6)]
    (tmp_path / "log" / "news.tsv").write_text("\n".join(news) + "\n")
    rows = [f"{i}\tU{i % 3}\t11/{11 + i}/2019 9:05:58 AM\tN0 N1\tN2-1 N3-0 N4-0" for i in range(9)]
    (tmp_path / "log" / "behaviors.tsv").write_text("\n".join(rows) + "\n")
    sentence = refused(tmp_path, "data=mind", f"data.root={tmp_path}/log", "logger=none")
    assert "data.age=rank" in sentence


def test_a_corrupt_checkpoint_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "whole.ckpt")
    (tmp_path / "broken.ckpt").write_bytes((tmp_path / "whole.ckpt").read_bytes()[:100])
    sentence = refused(tmp_path, "model=id_embedding", f"ckpt={tmp_path}/broken.ckpt", "logger=none")
    assert "ckpt must be a whole checkpoint file" in sentence
