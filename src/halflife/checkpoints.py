"""Checkpoints: whether one can be resumed, found out before anything is written."""

from typing import Any, NoReturn

import torch

from halflife.datamodule import DataModule
from halflife.errors import InputError, shown
from halflife.recommender import Recommender, identity


def check_checkpoint(path: str, module: Recommender, data: DataModule) -> None:
    """Refuse a checkpoint that cannot be resumed, before anything is written.

    Args:
        path: of the checkpoint.
        module: the run's, before any training.
        data: the run's.

    Raises:
        InputError: when the file is missing, corrupt, or of another log or model; it names what differs.
    """
    checkpoint = read_checkpoint(path, identity(module, data))
    trained, state = set(checkpoint["halflife"]["trained"]), checkpoint["state_dict"]
    trains = {name for name, p in module.named_parameters() if p.requires_grad}
    if trained != trains:
        name = min(trained ^ trains)
        _refuse(path, f"{name} {'trains' if name in trained else 'does not train'}")
    for name, value in module.state_dict().items():
        if name not in state:
            continue
        if state[name].shape != value.shape:
            _refuse(path, f"{name} has the shape {list(state[name].shape)}, not {list(value.shape)}")
        learned = name in trains or name.startswith("encoder.reuse.")  # young vectors change as weights do
        if not learned and not torch.equal(state[name], value.cpu()):
            _refuse(path, f"{name}, which is fixed, has another value")


def read_checkpoint(path: str, mine: dict[str, str]) -> dict[str, Any]:
    """A checkpoint of a run with this identity.

    Args:
        path: of the checkpoint.
        mine: what makes the run that shall go on this run, by the key that a user would set.

    Raises:
        InputError: when the file is missing, corrupt, or of another run; it names what differs.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    except FileNotFoundError as error:
        raise InputError(
            f"ckpt must be a checkpoint file, got {path}, which does not exist; check the path"
        ) from error
    except Exception as error:  # torch raises what its unpickler meets: any kind, none of them ours
        raise InputError(
            f"ckpt must be a whole checkpoint file, got {path}, which cannot be read "
            f"({type(error).__name__}); resume from another one, for example checkpoints/best.ckpt"
        ) from error
    if not isinstance(checkpoint, dict) or "identity" not in checkpoint.get("halflife", {}):
        raise InputError(
            f"ckpt must be a checkpoint of a Halflife run, got {path}; give RUN_DIR/checkpoints/last.ckpt"
        )
    wrote = checkpoint["halflife"]["identity"]
    for key in mine | wrote:
        if mine.get(key) != wrote.get(key):
            _refuse(path, f"{key} is {shown(wrote.get(key))}, not {shown(mine.get(key))}")
    return checkpoint


def _refuse(path: str, difference: str) -> NoReturn:
    """Raise the InputError for a checkpoint of another run."""
    raise InputError(
        f"ckpt must be of the same log, model and decay as this run, got {path}, in which {difference}; "
        "repeat the overrides of the run that wrote it"
    )
