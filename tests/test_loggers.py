"""How runs are named, grouped and described where they are compared."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from optuna import TrialPruned

from halflife import loggers
from halflife.cli import CONFIG_DIR
from halflife.errors import InputError


@pytest.fixture(autouse=True)
def no_app() -> Iterator[None]:
    yield
    HydraConfig.instance().cfg = None


def begin(*words: str, job: list[str] | None = None) -> DictConfig:
    """As Hydra leaves things when a job begins: the configuration set, and the job's own overrides in it."""
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("train", overrides=list(words), return_hydra_config=True)
    OmegaConf.set_readonly(cfg, False)
    OmegaConf.set_struct(cfg, False)
    cfg.hydra.overrides.task = job if job is not None else [w for w in words if not w.startswith("hydra")]
    HydraConfig.instance().set_config(cfg)
    return cfg


def test_a_run_of_a_multirun_is_named_by_what_varies_and_grouped_by_its_sweep(tmp_path: Path) -> None:
    fixed = {"hydra": {"overrides": {"task": ["model=topics", "decay=none,power", "seed=1,2"]}}}
    OmegaConf.save(fixed, tmp_path / "multirun.yaml")
    job = ["model=topics", "decay=power", "seed=2", "logger.project=mine", "+search=half_life"]
    begin(f"hydra.sweep.dir={tmp_path}", "hydra.mode=MULTIRUN", job=job)
    assert loggers.run_name() == "decay=power,seed=2"
    assert loggers.group_name() == tmp_path.name


def test_a_run_of_its_own_is_named_by_its_overrides_and_has_no_group() -> None:
    begin("decay=power", "seed=2", "data.root=/far/away", "logger=none")
    assert loggers.run_name() == "decay=power,seed=2"
    assert loggers.group_name() is None


def test_names_fit_into_what_wandb_takes() -> None:
    begin("decay=power", *(f"trainer.max_epochs={i}" for i in range(1, 40)))
    assert len(loggers.run_name()) == 128


def test_the_configuration_is_flat_with_every_choice_visible() -> None:
    cfg = begin("decay=power", "model=topics")
    del cfg.hydra
    flat = loggers.flatten(cfg)
    assert (flat["choice/decay"], flat["choice/model"], flat["choice/data"]) == (
        "power",
        "topics",
        "synthetic",
    )
    assert flat["data/source/users"] == cfg.data.source.users
    assert not [key for key in flat if "." in key]
    assert not [key for key, value in flat.items() if isinstance(value, dict)]


def test_online_without_a_key_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert loggers.is_offline(None) is True
    with pytest.raises(InputError, match=r"logger\.offline must be true"):
        loggers.is_offline(False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert loggers.is_offline(None) is False


def test_a_run_that_fails_is_not_told_to_have_succeeded() -> None:
    told = []

    class Kept:
        def finalize(self, status: str) -> None:
            told.append(status)

    with loggers.closing(Kept()):  # type: ignore[arg-type]
        pass
    with pytest.raises(ValueError), loggers.closing(Kept()):  # type: ignore[arg-type]
        raise ValueError
    with pytest.raises(TrialPruned), loggers.closing(Kept()):  # type: ignore[arg-type]
        raise TrialPruned
    assert told == ["success", "failed", "success"]
