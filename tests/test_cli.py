"""A mistake on the command line: one sentence, exit code 2, no traceback, nothing left behind."""

import contextlib
import io
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
SMALL = {
    "data.source.users": "60",
    "data.source.items": "48",
    "data.source.days": "30",
    "model": "id_embedding",
    "logger": "none",
}
"""A log and a model that take no time, for mistakes that show only when these are there."""

Refused = Callable[..., str]


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


def check_manners(code: Any, stderr: str, cwd: Path) -> str:
    """The sentence on standard error, after checking that it is one and that nothing is left."""
    assert code == 2, stderr
    assert "Traceback" not in stderr
    lines = stderr.strip().splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    assert " must " in lines[0]
    assert re.search(", got[: ]", lines[0]) or "which cannot be read" in lines[0]
    assert "; " in lines[0]
    assert not (cwd / "runs").exists(), "a refused run leaves no directory"
    assert not (cwd / "multirun").exists(), "a refused sweep leaves no directory"
    return lines[0].removeprefix("error: ")


@pytest.fixture
def refused(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Refused:
    """Run train.py in this process with these words, and give the sentence it ends in."""

    def refused(*words: str) -> str:
        given = {w.split("=")[0] for w in words}
        ours = [f"{k}={v}" for k, v in SMALL.items() if k not in given]
        if any(w.startswith("data=") for w in words):
            ours = [w for w in ours if not w.startswith("data.")]
        flags = [w for w in words if w.startswith("-")]
        rest = [w for w in words if not w.startswith("-")]
        monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *flags, *ours, *rest])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        monkeypatch.setenv("HALFLIFE_CACHE", str(tmp_path_factory.getbasetemp() / "cli-cache"))
        monkeypatch.chdir(tmp_path)
        code, out, err = None, io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
            except SystemExit as end:
                code = end.code
        return check_manners(code, err.getvalue(), tmp_path)

    return refused


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


@pytest.mark.parametrize("words", [["decay=exponentail"], ["-m", "seed=1", "decay.half_life_days=-1,2"]])
def test_a_process_that_is_refused_exits_with_code_2(words: list[str], tmp_path: Path) -> None:
    done = call(*words, cwd=tmp_path)
    check_manners(done.returncode, done.stderr, tmp_path)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        # what Hydra refuses
        ("decay=exponentail", "did you mean exponential"),
        ("decay=exponentail", "decay must be one of "),
        ("decay=", "got nothing; choose one of them"),
        ("decay=null", "decay must be one of "),
        ("logger=null", "got null; did you mean none?"),
        ("logger=foo", "logger must be one of csv, none, tensorboard, wandb, got foo; choose one of them"),
        ("metrics=[auc,foo]", "metrics must be one of its choices, got foo; see --help"),
        (
            "data=foo",
            "data must be one of adressa, amazon, ebnerd, kuairand, mind, movielens, online_retail, "
            "synthetic, table, got foo",
        ),
        (
            "decoy=exponential",
            "decoy must be a key of the configuration, got an unknown one; did you mean decay",
        ),
        ("experiment=foo", "experiment must be "),
        ("decay.half_lif_days=3", "did you mean decay.half_life_days"),
        ("trainer.max_epoch=3", "did you mean trainer.max_epochs"),
        (
            "decay@decay.candidate=exponential decay.candidate.half_lif_days=3",
            "mean decay.candidate.half_life_d",
        ),
        ("decay.half_life_days=[1", "an override must be KEY=VALUE, got decay.half_life_days=[1"),
        ("foo", "an override must be KEY=VALUE, got foo"),
        ("--decay=power", "got the unknown flag --decay=power; write decay=power without dashes"),
        ("--config-dir=/nowhere", "--config-dir must be a directory, got"),
        ("--config-name=foo", "--config-name must be a yaml of the configuration's folder, got foo"),
        ("seed=1,2", "seed must be one value, got 1,2; add -m"),
        (
            "decay.half_life_days=${foo}",
            "the configuration must resolve, got: Interpolation key 'foo' not found",
        ),
        ("-m decay=none,expnential,power", "did you mean exponential"),
        ("-m dacay=none,power", "did you mean decay"),
        ("-m search=half_life hydra.sweeper.n_trails=9", "unknown one; did you mean hydra.sweeper.n_trials"),
        (
            "-m seed=1,2 hydra.sweep.dir=/proc/x",
            "hydra.sweep.dir must be a directory that can be written, got /pr",
        ),
        ("hydra.run.dir=/proc/x", "hydra.run.dir must be a directory that can be written, got /proc/x"),
        # keys that are unknown, left out or of the wrong kind
        ("+foo=1", "foo must be a key of the configuration"),
        ("~decay", "decay must be given, got nothing; add decay=CHOICE"),
        ("metrics=[]", "metrics must be given"),
        ("~callbacks.checkpoint", "callbacks.checkpoint must be given"),
        ("+decay.foo=1", "decay.foo must be an argument of halflife.decay.exponential.Exponential"),
        ("+model.foo=1", "foo must be an argument of IdEmbedding"),
        ("+optimizer.foo=1", "foo must be an argument of Recommender"),
        ("+trainer.foo=1", "trainer.foo must be a key that Lightning's Trainer takes"),
        ("+trainer.fast_dev_run=true", "add trainer=debug"),
        (
            "decay._target_=halflife.decay.foo.Foo",
            "decay._target_ must be importable, got halflife.decay.foo.Foo",
        ),
        # seed, objective, checkpoint, cache
        ("seed=-1", "seed must be a whole number (integer), got -1; give 0 to 4294967295"),
        ("seed=abc", "seed must be a whole number (integer), got abc"),
        ("seed=1.5", "got 1.5"),
        ("seed=", "got nothing"),
        ("seed=99999999999999999999", "got 99999999999999999999"),
        ("objective=val/acu", "objective must be a metric of the run, got val/acu; did you mean val/auc"),
        ("objective=null", "objective must be a metric of the run, got null; choose one of"),
        ("ckpt=README.md", "ckpt must be a checkpoint file, got README.md, which does not exist"),
        ("ckpt=", "ckpt must be a checkpoint file, got nothing"),
        ("cache_dir=/proc/y", "data.cache_dir must be a directory that can be written, got /proc/y"),
        ("cache_dir=null", "data.cache_dir must be a directory, got null"),
        # data
        ("data=movielens", "data.root must be given, got nothing"),
        (
            "data=movielens data.root=/nowhere",
            "data.root must be the folder of the log's files, got /nowhere, which does not exist",
        ),
        ("data.root=/nowhere", "data.root must be null for a source that reads no files, got /nowhere"),
        (
            "data.files=foo.csv",
            "data.files must be a list of globs below data.root, got foo.csv; write [foo.csv]",
        ),
        ("data.split=0.1", "data.split must be two fractions, got 0.1"),
        ("data.split.test=0", "data.split.test must be a number above 0"),
        ("data.split.val=1e-6", "data.split must leave every part at least 1 impression, got val=0"),
        ("data.source=null", "data.source must be a read function, got null"),
        (
            "data.batch_size=2.5",
            "data.batch_size must be a whole number (impressions), got 2.5; give 1 or more",
        ),
        ("data.max_history=2.5", "data.max_history must be a whole number (clicks), got 2.5"),
        ("data.num_workers=100000", "got 100000; give 0 to 256"),
        ("data.source.users=2.5", "data.source.users must be a whole number (readers), got 2.5"),
        # model, decay, interest, optimizer
        ("model.dim=2.5", "model.dim must be a whole number (dimensions), got 2.5"),
        ("model=bert_frozen model.pretrained=no/such", "or a hub name that can be reached, got no/such"),
        (
            "model=bert_frozen model.pretrained=null",
            "model.pretrained must be bundled, smollm2, a directory or a hub name",
        ),
        ("model=bert_lora model.tuning=lora", "model.tuning must be a function of halflife.encoders.tuning"),
        ("decay.half_life_days=abc", "decay.half_life_days must be a number above 0 (days), got abc"),
        ("decay.half_life_days=nan", "got nan"),
        ("decay.half_life_days=-1", "got -1"),
        ("decay.half_life_days=0", "got 0"),
        ("decay.half_life_days=", "got nothing"),
        ("decay.learn=maybe", "must be true or false, got maybe"),
        ("interest.scale=0", "interest.scale must be a number above 0"),
        ("optimizer.schedule=foo", "optimizer.schedule must be one of constant, linear, cosine, got foo"),
        ("optimizer.warmup_steps=2.5", "optimizer.warmup_steps must be a whole number (steps), got 2.5"),
        # trainer, callbacks, logger
        (
            "trainer.max_epochs=-3",
            "trainer.max_epochs must be a whole number (epochs), got -3; give 1 or more",
        ),
        ("trainer.max_epochs=1.5", "got 1.5"),
        ("trainer.max_steps=0", "trainer.max_steps must be a whole number"),
        ("trainer.precision=banana", "must be one of 32-true, bf16-mixed, 16-mixed, got banana"),
        ("trainer.accelerator=foo", "trainer.accelerator must be one of"),
        ("trainer.strategy=dpp", "did you mean ddp"),
        ("trainer.devices=0", "trainer.devices must be a whole number (processes), got 0; give 1 or more"),
        ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches must be a whole number"),
        ("trainer.limit_test_batches=0", "trainer.limit_test_batches must be a whole number"),
        (
            "trainer.val_check_interval=1.5",
            "trainer.val_check_interval must be a number above 0 and at most 1",
        ),
        ("trainer.val_check_interval=99", "trainer.val_check_interval must suit this run, got: "),
        (
            "logger=csv trainer.val_check_interval=99",
            "less than or equal to the number of the training batches",
        ),
        ("trainer.log_every_n_steps=0", "trainer.log_every_n_steps must be a whole number"),
        (
            "callbacks.early_stopping.monitor=val/acu",
            "callbacks.early_stopping.monitor must be a metric of the",
        ),
        ("metrics=[gauc] objective=val/gauc", "callbacks.checkpoint.monitor must be a metric of the run's"),
        (
            "callbacks.checkpoint.monitor=val/loss",
            "callbacks.checkpoint.mode must be min to keep the best val/loss",
        ),
        ("callbacks.early_stopping.patience=abc", "patience must be a whole number (validations), got abc"),
        ("callbacks.early_stopping.foo=1", "callbacks.early_stopping.foo must be a key"),
        ("+callbacks.early_stopping.foo=1", "callbacks.early_stopping.foo must be an argument of lightning."),
        ("logger=wandb logger.tags=foo", "logger.tags must be a list of words, got foo; write [foo]"),
        ("logger=wandb logger.offline=maybe", "logger.offline must be true or false, got maybe"),
    ],
)
def test_a_mistake_ends_in_one_sentence(words: str, expected: str, refused: Refused) -> None:
    assert expected in refused(*words.split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(refused: Refused) -> None:
    assert "trainer.accelerator must be cpu on a machine where PyTorch finds no GPU" in refused("trainer=gpu")


def test_wandb_online_without_a_key_is_refused(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    assert "logger.offline must be true where W&B finds no key" in refused(
        "logger=wandb", "logger.offline=false"
    )


def test_a_sweep_keeps_the_jobs_that_were_done(tmp_path: Path, refused: Refused) -> None:
    with pytest.raises(AssertionError, match="a refused sweep leaves no directory"):
        refused("-m", "decay.half_life_days=2,-1", "trainer=debug")
    (sweep,) = (tmp_path / "multirun").glob("*/*")
    assert (sweep / "0" / "metrics.json").exists()
    assert not (sweep / "1").exists()


def test_what_was_in_the_directory_before_stays(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    refused("hydra.run.dir=mine", "logger=csv", "trainer.val_check_interval=99")
    assert {p.name for p in (tmp_path / "mine").iterdir()} - {"train.log"} == {"notes.txt", ".hydra"}


def test_a_log_that_breaks_its_rules_is_named_by_file_and_line(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "movies.csv").write_text("movieId,title,genres\n1,A,x\n2,B,x\n")
    header, rows = "userId,movieId,rating,timestamp\n", "1,1,5,1000000000\n1,2,5,1100000000\n"
    for ratings, expected in {
        header + rows[:-4]: "ratings.csv line 3 must end in a line break",
        header.replace("rating,", "")
        + rows: "must have the columns userId, movieId, rating, timestamp, got user",
        header + rows.replace("00000\n", "00000000\n"): "which are milliseconds",
        header + rows.replace("1100000000", "9100000000"): "must lie in the past",
        header + rows.replace("5,11", "five,11"): "rating in ",
    }.items():
        (tmp_path / "log" / "ratings.csv").write_text(ratings)
        assert expected in refused("data=movielens", f"data.root={tmp_path}/log")


def test_days_on_a_log_without_click_times_offer_ranks(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "log").mkdir()
    news = [f"N{i}\tnews\tworld\tTitle {i}\tText\turl\t[]\t[]" for i in range(6)]
    (tmp_path / "log" / "news.tsv").write_text("\n".join(news) + "\n")
    rows = [f"{i}\tU{i % 3}\t11/{11 + i}/2019 9:05:58 AM\tN0 N1\tN2-1 N3-0 N4-0" for i in range(9)]
    (tmp_path / "log" / "behaviors.tsv").write_text("\n".join(rows) + "\n")
    assert "data.age=rank" in refused("data=mind", f"data.root={tmp_path}/log")


def test_a_corrupt_checkpoint_is_named(tmp_path: Path, refused: Refused) -> None:
    torch.save({"state_dict": {}}, tmp_path / "whole.ckpt")
    (tmp_path / "broken.ckpt").write_bytes((tmp_path / "whole.ckpt").read_bytes()[:100])
    assert "ckpt must be a whole checkpoint file" in refused(f"ckpt={tmp_path}/broken.ckpt")
    assert "a checkpoint of a Halflife run" in refused(f"ckpt={tmp_path}/whole.ckpt")
