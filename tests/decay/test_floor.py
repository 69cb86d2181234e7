"""A floor: any kernel's weight lifted onto a share that never fades."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException

from halflife.batches import Batch
from halflife.decay.actr import Actr
from halflife.decay.configured import kernels
from halflife.decay.exponential import Exponential
from halflife.decay.floor import Floor
from halflife.decay.fourier import Fourier
from halflife.decay.gamma_hazard import GammaHazard
from halflife.decay.general import General
from halflife.decay.kernel import Kernel
from halflife.decay.none import NoDecay
from halflife.decay.power import Power
from halflife.decay.rank_exponential import RankExponential
from halflife.errors import InputError

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in CONF.glob("decay/*.yaml"))
H, C = 3.0, 0.2
AGES = torch.tensor([0.0, 0.01, 1.0, 3.0, 40.0, 1e4], dtype=torch.float64)

Make = Callable[..., Batch]


def kernel_of(name: str, *overrides: str) -> Kernel:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return kernels(compose("train", [f"decay={name}", *overrides]).decay)[0]


def floor(kernel: Callable[..., Kernel], floor: float = C) -> Floor:
    return Floor(H, True, floor, floor > 0, kernel)


def refusal(kernel: Callable[..., Kernel]) -> str:
    with pytest.raises(InputError) as caught:
        floor(kernel)
    return str(caught.value)


def test_a_floor_lifts_a_weight_by_its_formula() -> None:
    inner = Power(H, True, 2.5, False).double()(AGES).exp()
    lifted = floor(partial(Power, alpha=2.5, learn_alpha=False)).double()(AGES).exp()
    torch.testing.assert_close(lifted, C + (1 - C) * inner)
    assert lifted[-1].item() == pytest.approx(C, abs=1e-5)


def test_a_floor_of_nothing_leaves_the_kernel_as_it_is() -> None:
    torch.testing.assert_close(
        floor(partial(Exponential), 0.0).double()(AGES), Exponential(H, True).double()(AGES)
    )


def test_a_floor_under_a_power_law_is_the_general_kernel_with_its_floor() -> None:
    general = General(H, False, C, False, shape=1.0, learn_shape=False, tail=1.0, learn_tail=False).double()
    lomax = floor(partial(Power, alpha=1.0, learn_alpha=False)).double()
    torch.testing.assert_close(lomax(AGES), general(AGES))
    assert lomax.floor.item() == pytest.approx(general.floor.item())


def test_floors_add_up() -> None:
    inner = partial(Floor, floor=0.5, learn_floor=False, kernel=partial(Exponential))
    kernel = floor(inner)
    assert kernel.floor.item() == pytest.approx(C + (1 - C) * 0.5)
    assert kernel(torch.tensor(1e6)).exp().item() == pytest.approx(kernel.floor.item())
    assert kernel.half_life is not None
    left = kernel(kernel.half_life).exp().item()
    assert (left - kernel.floor.item()) / (1 - kernel.floor.item()) == pytest.approx(0.5)


@pytest.mark.parametrize("name", NAMES)
def test_every_kernel_takes_a_floor_or_is_refused_in_one_sentence(name: str) -> None:
    """Through the configuration: the half-life that counts is the outer one, whatever the kernel."""
    overrides = (f"decay@decay.kernel={name}", "decay.half_life_days=7", "decay.floor=0.3")
    if name in ("none", "rank_exponential", "fourier"):
        with pytest.raises(InstantiationException) as caught:
            kernel_of("floor", *overrides)
        said = str(caught.value.__cause__)
        assert said.startswith("decay.kernel must be a kernel of ")
        assert "; choose another one" in said
        return
    kernel = kernel_of("floor", *overrides)
    own = kernel_of(name, "decay.half_life_days=7")
    torch.testing.assert_close(kernel.double()(AGES).exp(), 0.3 + 0.7 * own.double()(AGES).exp())
    assert (kernel.monotone, kernel.starts_at_one) == (own.monotone, own.starts_at_one)
    assert (kernel.half_life is None) == (own.half_life is None)


def test_one_key_fixes_or_frees_the_half_life_whatever_the_kernel() -> None:
    for learn in (True, False):
        kernel = kernel_of("floor", "decay@decay.kernel=weibull", f"decay.learn={str(learn).lower()}")
        assert kernel.get_parameter("kernel.log_half_life").requires_grad is learn
        assert kernel.get_parameter("kernel.log_shape").requires_grad


def test_signed_kernels_and_those_of_ranks_or_none_are_refused() -> None:
    assert refusal(partial(Fourier, frequencies=4, unit_days=1.0, learn_unit=False)).startswith(
        "decay.kernel must be a kernel of positive weights, got Fourier; choose another one"
    )
    for kind in (NoDecay, RankExponential):
        assert refusal(partial(kind)).startswith(
            f"decay.kernel must be a kernel of half_life_days (days), got {kind.__name__}; choose another one"
        )


def test_a_kernel_that_is_no_kernel_is_refused() -> None:
    for wrong in ("power", None, 3.0, torch.ones_like):
        assert refusal(wrong).startswith("decay.kernel must be a kernel (a choice of the group decay), got ")


def test_a_second_half_life_is_refused() -> None:
    assert refusal(partial(Exponential, half_life_days=9.0)) == (
        "decay.kernel.half_life_days must be what decay.half_life_days is (3.0), got 9.0; "
        "set decay.half_life_days instead"
    )
    assert refusal(partial(Exponential, learn=False)).startswith(
        "decay.kernel.learn must be what decay.learn is"
    )
    assert floor(partial(Exponential, half_life_days=H, learn=True)).half_life is not None


def test_a_floor_reads_a_batch_through_its_kernel(batch_of: Make) -> None:
    settings = {"alpha": 0.5, "learn_alpha": False, "temperature": 0.5, "learn_temperature": False}
    kernel = floor(partial(Actr, **settings)).double()
    batch = batch_of([(0, 9.0), (1, 3.0), (0, 1.0)], [(2, 4.0)])
    inner = Actr(H, False, **settings).double().of(batch)
    torch.testing.assert_close(kernel.of(batch).exp(), C + (1 - C) * inner.exp())
    assert not kernel.bounded


def test_a_floor_promises_what_its_kernel_does() -> None:
    kernel = floor(partial(GammaHazard, shape=2.0, learn_shape=False))
    assert (kernel.monotone, kernel.starts_at_one, kernel.bounded) == (False, False, True)


@pytest.mark.parametrize("half_life", [1 / 1_440, 2.0, 36_525.0])
def test_gradients_and_second_derivatives_are_finite_at_extremes(half_life: float) -> None:
    kernel = Floor(half_life, True, 0.01, True, partial(Power, alpha=1.0, learn_alpha=True))
    ages = torch.tensor([0.0, 1 / 86_400, 30 * 365.25])
    parameters = list(kernel.parameters())
    loss = kernel(ages).exp().square().sum()
    first = torch.autograd.grad(loss, parameters, create_graph=True)
    second = [torch.autograd.grad(g, parameters, retain_graph=True) for g in first]
    assert all(torch.isfinite(g) for g in first)
    assert all(torch.isfinite(g) for row in second for g in row)
