"""Every yaml composes, instantiates and runs a step; every command of the README composes."""

import re
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from halflife.datamodule import DataModule
from halflife.errors import InputError
from halflife.recommender import build

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
CHOICES = sorted(str(p.relative_to(CONF)).removesuffix(".yaml") for p in CONF.glob("*/*.yaml"))
MODELS = [c.split("/")[1] for c in CHOICES if c.startswith("model/")]
INTERESTS = [c.split("/")[1] for c in CHOICES if c.startswith("interest/")]
README_COMMANDS = [
    line.strip().removeprefix("python train.py ")
    for file in [ROOT / "README.md", *sorted(ROOT.glob("experiments/*/README.md"))]
    for line in re.findall(r"^ *python train\.py (?!.*--help).*$", file.read_text(), re.MULTILINE)
]


def composed(*overrides: str, config: str = "train") -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config, overrides=list(overrides))


def chosen(choice: str) -> str:
    group, _, name = choice.partition("/")
    return f"{group}=[{name}]" if group == "metrics" else f"{group}={name}"


@pytest.mark.parametrize("choice", [c for c in CHOICES if not c.startswith("hydra/")])
def test_every_choice_composes_and_every_key_of_it_is_commented_or_obvious(choice: str) -> None:
    cfg = composed(chosen(choice), config="recovery" if choice.startswith("vectors/") else "train")
    assert cfg.seed == 1
    assert (CONF / f"{choice}.yaml").read_text().startswith("#"), "a yaml begins with what it is for"


@pytest.mark.parametrize("decay", [c.split("/")[1] for c in CHOICES if c.startswith("decay/")])
def test_every_decay_runs_a_training_step(decay: str, make_log: Callable[..., DataModule]) -> None:
    step_runs(make_log, f"decay={decay}", "model=id_embedding")


@pytest.mark.parametrize("decay", [c.split("/")[1] for c in CHOICES if c.startswith("decay/")])
def test_every_decay_fades_candidates_or_is_refused(decay: str, make_log: Callable[..., DataModule]) -> None:
    words = (f"decay@decay.candidate={decay}", "decay=power", "model=id_embedding")
    if decay in ("fourier", "rank_exponential", "by_kind"):
        with pytest.raises(InputError, match=r"^decay\.candidate must be a kernel of the age alone \(days\)"):
            step_runs(make_log, *words)
    else:
        step_runs(make_log, *words)


@pytest.mark.parametrize("interest", INTERESTS)
@pytest.mark.parametrize("loss", [c.split("/")[1] for c in CHOICES if c.startswith("loss/")])
def test_every_interest_and_loss_runs_a_training_step(
    interest: str, loss: str, make_log: Callable[..., DataModule]
) -> None:
    own_time = get_class(composed(f"interest={interest}").interest._target_).own_time
    decay = "none" if own_time else "exponential"
    step_runs(make_log, f"interest={interest}", f"decay={decay}", f"loss={loss}", "model=id_embedding")


@pytest.mark.parametrize("model", MODELS)
def test_every_model_runs_a_training_step(
    model: str, make_log: Callable[..., DataModule], tiny_bert: Path, tiny_gpt: Path, tmp_path: Path
) -> None:
    words, make_log = tiny_model(model, tiny_bert, tiny_gpt), log_for(model, make_log, tmp_path)
    if model.endswith("qlora") and not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"^model\.quantize must be null on a machine .* no GPU, got 4"):
            step_runs(make_log, f"model={model}", *words)
        return
    step_runs(make_log, f"model={model}", *words)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_runs_a_training_step_in_bf16(
    model: str, make_log: Callable[..., DataModule], tiny_bert: Path, tiny_gpt: Path, tmp_path: Path
) -> None:
    if model.endswith("qlora") and not torch.cuda.is_available():
        pytest.skip("PyTorch finds no GPU")
    make_log = log_for(model, make_log, tmp_path)
    step_runs(make_log, f"model={model}", *tiny_model(model, tiny_bert, tiny_gpt), half=True)


@pytest.mark.parametrize("interest", INTERESTS)
def test_every_interest_scores_in_float32_behind_an_encoder_in_bf16(
    interest: str, make_log: Callable[..., DataModule], tiny_bert: Path, tiny_gpt: Path
) -> None:
    decay = (
        "none" if get_class(composed(f"interest={interest}").interest._target_).own_time else "exponential"
    )
    tiny = tiny_model("bert_full", tiny_bert, tiny_gpt)
    scores = step_runs(
        make_log, "model=bert_full", *tiny, f"interest={interest}", f"decay={decay}", half=True
    )
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())


def tiny_model(model: str, tiny_bert: Path, tiny_gpt: Path) -> list[str]:
    """What a model's yaml needs to be one of the tiny ones."""
    if model in ("id_embedding", "topics", "item_vectors"):
        return []
    words = [f"model.pretrained={tiny_gpt if model.startswith('gpt') else tiny_bert}"]
    words += ["model.tuning.k=1"] if model.endswith("last_k") else []
    return words + (["model.max_tokens=12", "model.history_tokens=28"] if "bert_text" in model else [])


def log_for(model: str, make_log: Callable[..., DataModule], folder: Path) -> Callable[..., DataModule]:
    """`make_log`, with vectors of some items where a model reads them."""
    if model != "item_vectors":
        return make_log
    (folder / "v.csv").write_text("N00000,1,2\nN00009,3,4\n")
    return partial(make_log, vectors=str(folder / "v.csv"))


def step_runs(make_log: Callable[..., DataModule], *overrides: str, half: bool = False) -> torch.Tensor:
    """Forward, backward, one step; the loss is finite and whatever trains got a gradient.

    Args:
        half: whether the encoder works in bf16.

    Returns:
        The scores.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = make_log(batch_size=16)
    cfg = composed(*overrides, f"cache_dir={data.cache_dir}")
    torch.manual_seed(0)
    module = build(cfg, data).to(device)
    batch = next(iter(data.train_dataloader())).to(device)
    with torch.autocast(device, torch.bfloat16, enabled=half):
        scores = module(batch)
        loss = module.loss(scores, batch.label, batch.candidate_mask)
    loss.backward()
    assert torch.isfinite(loss)
    optimizer = module.configure_optimizers()["optimizer"]
    grouped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert grouped == {id(p) for p in module.parameters() if p.requires_grad}
    assert all(
        p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters() if id(p) in grouped
    )
    optimizer.step()
    return scores.detach()


@pytest.mark.parametrize("trainer", ["cpu", "ddp", "debug"])
def test_every_cpu_trainer_instantiates(trainer: str, tmp_path: Path) -> None:
    cfg = composed(f"trainer={trainer}")
    assert (
        instantiate(cfg.trainer)(default_root_dir=tmp_path, logger=False).max_epochs == cfg.trainer.max_epochs
    )


@pytest.mark.parametrize("name", [c.split("/")[1] for c in CHOICES if c.startswith("data/")])
def test_every_data_config_instantiates(name: str, tmp_path: Path) -> None:
    cfg = composed(f"data={name}", f"cache_dir={tmp_path}")
    if OmegaConf.is_missing(cfg.data, "root"):
        cfg.data.root = str(tmp_path)
    assert isinstance(instantiate(cfg.data), DataModule)


@pytest.mark.parametrize("command", README_COMMANDS)
def test_every_command_of_the_readme_composes(command: str) -> None:
    words = [w for w in shlex.split(command, comments=True) if w not in ("-m", "--multirun")]
    firsts = []
    for word in words:
        key, _, value = word.partition("=")
        first = value if value.startswith(("[", "{", "'", "tag(", "interval(")) else value.split(",")[0]
        firsts.append(f"{key}={first}")
    composed(*firsts)


def test_the_readme_names_commands() -> None:
    assert len(README_COMMANDS) >= 5
