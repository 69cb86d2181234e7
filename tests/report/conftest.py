"""What reports are made of: a real multirun of small runs, and a small study with every outcome in it."""

import math
import sys
from html.parser import HTMLParser
from pathlib import Path

import hydra
import optuna
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from halflife.cli import CONFIG_DIR

HOSTILE = "<script>alert('x')</script>"


class Outline(HTMLParser):
    """What a page holds: tags, visible text, and everything that a browser would fetch."""

    FETCH = ("src", "href", "xlink:href", "srcset", "poster", "action", "data", "background")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in ("meta", "link", "br", "img", "input", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} closes what it did not open"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def fetched(self) -> list[str]:
        """Addresses in attributes that do not stay within the page."""
        found = [a[k] for _, a in self.tags for k in self.FETCH if k in a]
        return [address for address in found if not address.startswith(("#", "data:"))]


@pytest.fixture(scope="session")
def outline() -> type[Outline]:
    return Outline


@pytest.fixture(scope="session")
def multirun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four finished runs: no decay and exponential, two seeds each."""
    import train

    def run(cfg: DictConfig) -> float:
        return train.run(cfg, Path(HydraConfig.get().runtime.output_dir))

    app = hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="train")(run)
    place = tmp_path_factory.mktemp("multirun")
    small = ["data.source.users=80", "data.source.items=48", "data.source.days=30", "model=id_embedding"]
    words = ["logger=none", "decay=none,exponential", "seed=1,2", f"hydra.sweep.dir={place / 'sweep'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", "-m", *small, *words])
        patch.setenv("HALFLIFE_CACHE", str(place / "cache"))
        app()
    return place / "sweep"


def make_study(directory: Path, trials: int, directions: list[str]) -> Path:
    """A study whose objective peaks at a half-life of 5 days, as a sweep leaves it.

    Every seventh trial is pruned and every eleventh fails, with a reason that tries to break out of a page.
    """
    directory.mkdir()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=directory.name,
        storage=JournalStorage(JournalFileBackend(str(directory / "study.log"))),
        directions=directions,
        sampler=optuna.samplers.RandomSampler(seed=1),
    )
    for number in range(trials):
        trial = study.ask()
        half_life = trial.suggest_float("decay.half_life_days", 0.5, 50, log=True)
        rate = trial.suggest_float("optimizer.head_lr", 1e-4, 1e-1, log=True)
        trial.suggest_categorical("decay", ["exponential", HOSTILE])
        trial.set_user_attr("run_dir", str(directory / str(number)))
        value = 0.8 - 0.02 * math.log(half_life / 5) ** 2 - 0.002 * math.log10(rate / 1e-2) ** 2
        values = [value, math.log(half_life)][: len(directions)]
        if number % 11 == 10:
            trial.set_user_attr("reason", f"train/loss must stay finite {HOSTILE}")
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        elif number % 7 == 6 and len(directions) == 1:
            trial.report(value - 0.05, 1)
            trial.set_user_attr("reason", "below the median at epoch 1")
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, values)
    named = "val/auc" if len(directions) == 1 else "[val/auc, cost]"
    (directory / "0" / ".hydra").mkdir(parents=True)
    (directory / "0" / ".hydra" / "config.yaml").write_text(f"objective: {named}\n")
    return directory


@pytest.fixture(scope="session")
def study_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of 44 trials of one objective."""
    return make_study(tmp_path_factory.mktemp("study") / "half_life", 44, ["maximize"])


@pytest.fixture(scope="session")
def front_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of 20 trials of two objectives: more is better, less is better."""
    return make_study(tmp_path_factory.mktemp("front") / "trade_off", 20, ["maximize", "minimize"])
