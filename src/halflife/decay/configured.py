"""The kernels that a configuration asks for: one that fades clicks, one that fades candidates."""

import copy
import re

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from halflife.decay.kernel import Kernel
from halflife.decay.none import NoDecay
from halflife.errors import InputError


def kernels(decay: DictConfig) -> tuple[Kernel, Kernel]:
    """Make the kernel of clicks and that of candidates.

    Args:
        decay: the group as Hydra composed it; its key `candidate`, a kernel of the same group, may be absent:
            candidates then do not fade.

    Raises:
        InputError: when `candidate` is no kernel, or a setting of either will not do.
    """
    settings = copy.deepcopy(decay)
    with open_dict(settings):
        settings.pop("candidate", None)
    clicks, candidate = instantiate(settings), decay.get("candidate")
    if candidate is None:
        return clicks, NoDecay()
    if not isinstance(candidate, DictConfig):
        raise InputError(
            f"decay.candidate must be a kernel (a choice of the group decay), got {candidate}; "
            f"choose it as decay@decay.candidate={candidate}"
        )
    try:
        return clicks, instantiate(candidate)
    except InstantiationException as error:
        if not isinstance(error.__cause__, InputError):
            raise
        # a kernel knows its keys as decay.KEY
        raise InputError(re.sub(r"\bdecay\.", "decay.candidate.", str(error.__cause__))) from error
