"""The two kernels of a run, as its command line says."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from halflife.decay.configured import kernels
from halflife.decay.exponential import Exponential
from halflife.decay.floor import Floor
from halflife.decay.kernel import Kernel
from halflife.decay.none import NoDecay
from halflife.decay.power import Power
from halflife.errors import InputError

CONF = Path(__file__).parents[2] / "conf"


def made(*overrides: str) -> tuple[Kernel, Kernel]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return kernels(compose("train", list(overrides)).decay)


def refusal(*overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        made(*overrides)
    return str(caught.value)


def half_life(kernel: Kernel) -> float:
    assert kernel.half_life is not None
    return kernel.half_life.item()


def test_candidates_do_not_fade_unless_they_are_told_to() -> None:
    clicks, candidates = made()
    assert isinstance(clicks, Exponential)
    assert isinstance(candidates, NoDecay)
    assert torch.equal(candidates(torch.tensor([0.0, 9e9])), torch.zeros(2))
    for nothing in ("decay.candidate=null", "~decay.candidate"):
        assert isinstance(made(nothing)[1], NoDecay)


def test_each_kernel_has_keys_of_its_own() -> None:
    clicks, candidates = made(
        "decay=power",
        "decay@decay.candidate=exponential",
        "decay.half_life_days=7",
        "decay.candidate.half_life_days=1",
    )
    assert isinstance(clicks, Power)
    assert isinstance(candidates, Exponential)
    assert (half_life(clicks), half_life(candidates)) == (pytest.approx(7), pytest.approx(1))


def test_a_kernel_inside_a_kernel_serves_candidates_too() -> None:
    clicks, candidates = made(
        "decay=floor",
        "decay@decay.candidate=floor",
        "decay@decay.candidate.kernel=power",
        "decay.half_life_days=7",
        "decay.candidate.half_life_days=1",
    )
    assert isinstance(clicks, Floor)
    assert isinstance(candidates, Floor)
    assert isinstance(clicks.kernel, Exponential)
    assert isinstance(candidates.kernel, Power)
    assert (half_life(clicks), half_life(candidates)) == (pytest.approx(7), pytest.approx(1))


@pytest.mark.parametrize("decay", ["none", "exponential", "power", "floor", "by_kind"])
def test_a_sweep_over_the_decay_leaves_the_candidates_kernel(decay: str) -> None:
    assert isinstance(made(f"decay={decay}", "decay@decay.candidate=power")[1], Power)


def test_a_setting_of_the_candidates_kernel_is_named_as_it_was_typed() -> None:
    wrong = ("decay@decay.candidate=exponential", "decay.candidate.half_life_days=-1")
    assert refusal(*wrong) == (
        "decay.candidate.half_life_days must be a number above 0 (days), got -1; give a number above 0"
    )
    inner = ("decay@decay.candidate=floor", "decay@decay.candidate.kernel=none")
    assert refusal(*inner) == (
        "decay.candidate.kernel must be a kernel of half_life_days (days), got NoDecay; "
        "choose another one as decay@decay.candidate.kernel=exponential"
    )


def test_a_kernel_given_as_a_word_is_refused_with_the_way_to_choose_it() -> None:
    assert refusal("decay.candidate=power") == (
        "decay.candidate must be a kernel (a choice of the group decay), got power; "
        "choose it as decay@decay.candidate=power"
    )
