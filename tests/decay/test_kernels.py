"""The kernel contract: every conf/decay/*.yaml is held to it, so a yaml is all that a test needs."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from halflife.decay.kernel import Kernel
from halflife.errors import InputError, shown

CONF = Path(__file__).parents[2] / "conf"


def composed(name: str, *overrides: str) -> DictConfig:
    """A kernel's yaml with the kernel inside it, if it has one, as Hydra composes them."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(f"decay/{name}", overrides=list(overrides)).decay


CONFIGS = {path.stem: composed(path.stem) for path in sorted(CONF.glob("decay/*.yaml"))}
EVERY = pytest.mark.parametrize("name", list(CONFIGS))
TIMED = pytest.mark.parametrize("name", [n for n, c in CONFIGS.items() if "half_life_days" in c])

SECOND, MINUTE, YEAR = 1 / 86_400, 1 / 1_440, 365.25
EXTREME_AGES = [0.0, SECOND, 30 * YEAR]
FLOAT32_BOUND = 2e-5  # |Δ log w| ≤ FLOAT32_BOUND · (1 + |log w|); of a signed kernel, |Δw| ≤ FLOAT32_BOUND
BFLOAT16_BOUND = 2**-8  # the rounding of the result alone, relative
HELD_IN_BFLOAT16_BOUND = 0.02  # |Δw|

# A kernel whose half-life is that of a part alone halves where its other part is away.
DECAYING_PART = {"share": 0.0, "learn_share": False}

half_lives = st.floats(math.log(MINUTE), math.log(100 * YEAR)).map(math.exp)
age_ratios = st.lists(st.floats(0, 50), min_size=2, max_size=8).map(sorted)


def config(name: str, **changes: Any) -> DictConfig:
    """The kernel's own yaml, with the changes that it has a key for."""
    return OmegaConf.merge(CONFIGS[name], {k: v for k, v in changes.items() if k in CONFIGS[name]})


def kernel_of(name: str, **changes: Any) -> Kernel:
    return instantiate(config(name, **changes))


def refusal(name: str, **changes: Any) -> str:
    """The sentence with which a setting is refused, wherever inside the kernel."""
    with pytest.raises(InstantiationException) as caught:
        kernel_of(name, **changes)
    cause: BaseException | None = caught.value
    while cause is not None and not isinstance(cause, InputError):
        cause = cause.__cause__
    assert cause is not None, caught.value
    return str(cause)


def weight(kernel: Kernel, age: Tensor) -> Tensor:
    return kernel.sign(age) * kernel(age).exp()


def halves(name: str) -> bool:
    kernel = kernel_of(name)
    return kernel.half_life is not None and not kernel.ranks


@EVERY
def test_a_yaml_names_a_kernel_and_its_keys_are_commented(name: str) -> None:
    assert isinstance(kernel_of(name), Kernel)
    lines = (CONF / "decay" / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("# w(a)")
    assert all("#" in line for line in lines if ":" in line and not line.startswith(("#", "_target_")))


@EVERY
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3), (2, 1, 4)])
def test_a_log_weight_has_the_shape_and_type_of_its_ages(name: str, shape: tuple[int, ...]) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        log_weight = kernel_of(name)(torch.rand(shape).to(dtype))
        assert (log_weight.shape, log_weight.dtype) == (shape, dtype)


@EVERY
@settings(max_examples=20)
@given(half_life=half_lives, ratios=age_ratios)
def test_a_weight_starts_at_one_never_rises_and_never_exceeds_one(
    name: str, half_life: float, ratios: list[float]
) -> None:
    kernel = kernel_of(name, half_life_days=half_life).double()
    log_weight = kernel(torch.tensor([0.0, *ratios], dtype=torch.float64) * half_life)
    assert torch.isfinite(log_weight).all()
    assert (log_weight <= 1e-9).all()
    if kernel.starts_at_one:
        assert log_weight[0].item() == pytest.approx(0, abs=1e-9)
    if kernel.monotone:
        assert (log_weight.diff() <= 1e-9).all()


@pytest.mark.parametrize("name", [n for n in CONFIGS if halves(n)])
@settings(max_examples=20)
@given(half_life=half_lives)
def test_at_its_half_life_half_of_the_decaying_part_is_left(name: str, half_life: float) -> None:
    kernel = kernel_of(name, half_life_days=half_life, **DECAYING_PART).double()
    assert kernel.half_life is not None
    assert kernel.half_life.item() == pytest.approx(half_life, rel=1e-5)
    floor = float(torch.as_tensor(kernel.floor).detach())
    left = kernel(kernel.half_life).exp().item()
    assert (left - floor) / (1 - floor) == pytest.approx(0.5, rel=1e-5)


@EVERY
@pytest.mark.parametrize("half_life", [MINUTE, 2.0, 100 * YEAR])
@pytest.mark.parametrize("age", EXTREME_AGES)
def test_values_and_gradients_are_finite_at_extreme_ages_and_half_lives(
    name: str, half_life: float, age: float
) -> None:
    learned = {key: True for key in CONFIGS[name] if str(key).startswith("learn")}
    kernel = kernel_of(name, half_life_days=half_life, **learned)
    ages = torch.tensor([0.0, age], requires_grad=True)  # beside a zero, whose NaN would leak
    log_weight = kernel(ages)
    assert torch.isfinite(log_weight).all()
    if log_weight.requires_grad:
        log_weight.sum().backward()
    for value in (ages, *kernel.parameters()):
        assert value.grad is None or torch.isfinite(value.grad).all()


@EVERY
@pytest.mark.parametrize("half_life", [MINUTE, 2.0, 100 * YEAR])
def test_float32_agrees_with_float64(name: str, half_life: float) -> None:
    kernel = kernel_of(name, half_life_days=half_life)
    ages = torch.tensor([*EXTREME_AGES, *(half_life * torch.logspace(-3, 2, 30)).tolist()])
    narrow, narrow_weight = kernel(ages).double(), weight(kernel, ages).double()
    kernel.double()
    wide = kernel(ages.double())
    if kernel.signed:
        assert ((narrow_weight - weight(kernel, ages.double())).abs() <= FLOAT32_BOUND).all()
    else:
        assert ((narrow - wide).abs() <= FLOAT32_BOUND * (1 + wide.abs())).all()


@EVERY
@pytest.mark.parametrize("half_life", [MINUTE, 2.0, 100 * YEAR])
def test_bfloat16_ages_lose_only_the_rounding_of_the_result(name: str, half_life: float) -> None:
    kernel = kernel_of(name, half_life_days=half_life)
    ages = torch.tensor([*EXTREME_AGES, *(half_life * torch.logspace(-3, 2, 30)).tolist()]).bfloat16()
    wide = kernel(ages.float())
    assert ((kernel(ages).float() - wide).abs() <= BFLOAT16_BOUND * wide.abs() + 1e-30).all()


@EVERY
def test_float16_log_weights_stay_finite(name: str) -> None:
    kernel = kernel_of(name, half_life_days=MINUTE)
    assert torch.isfinite(kernel(torch.tensor([0.0, 30 * YEAR], dtype=torch.float16))).all()


@TIMED
@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf, "abc", True, None])
def test_a_wrong_half_life_ends_in_a_sentence_that_names_it(name: str, wrong: Any) -> None:
    said = refusal(name, half_life_days=wrong)
    assert said.startswith(f"decay.half_life_days must be a number above 0 (days), got {shown(wrong)}; ")


NUMBERS = [
    (name, key)
    for name, keys in CONFIGS.items()
    for key, value in keys.items()
    if isinstance(value, int | float) and not isinstance(value, bool)
]


@pytest.mark.parametrize(("name", "key"), NUMBERS)
@pytest.mark.parametrize("wrong", [-1, math.nan, "abc", True, None])
def test_every_other_wrong_number_ends_in_a_sentence_that_names_it(name: str, key: str, wrong: Any) -> None:
    assert re.match(
        rf"^decay\.{key} must be .* \(.*\), got {shown(wrong)}; .+", refusal(name, **{key: wrong})
    )


@EVERY
def test_a_mistyped_learn_is_not_taken_for_true(name: str) -> None:
    for switch in (key for key in CONFIGS[name] if str(key).startswith("learn")):
        assert "must be true or false, got flase" in refusal(name, **{switch: "flase"})


@EVERY
@pytest.mark.parametrize("seed", range(5))
def test_the_contract_holds_whatever_is_learned(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    kernel, decaying = kernel_of(name), kernel_of(name, **DECAYING_PART)
    with torch.no_grad():
        for parameter, same in zip(kernel.parameters(), decaying.parameters(), strict=True):
            moved = torch.randn_like(parameter)
            parameter += moved
            same += moved
    kernel.double()
    decaying.double()
    scale = 2.0 if kernel.half_life is None else kernel.half_life.item()
    log_weight = kernel(torch.cat([torch.zeros(1), torch.logspace(-6, 6, 200)]).double() * scale)
    assert torch.isfinite(log_weight).all()
    assert (log_weight <= 1e-9).all()
    if kernel.starts_at_one:
        assert abs(log_weight[0].item()) <= 1e-9
    if kernel.monotone:
        assert (log_weight.diff() <= 1e-9).all()
    if halves(name):
        floor = float(torch.as_tensor(kernel.floor).detach())
        left = decaying(torch.tensor(scale, dtype=torch.float64)).exp().item()
        assert (left - floor) / (1 - floor) == pytest.approx(0.5, rel=1e-5)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_of_infinite_age_leaves_no_trace(name: str, dtype: torch.dtype) -> None:
    learned = {key: True for key in CONFIGS[name] if str(key).startswith("learn")}
    kernel = kernel_of(name, **learned)
    ages = torch.tensor([9.0, 3.0, 3.0, 0.5], dtype=dtype)
    for padded, real in (
        (torch.cat([torch.full((3,), torch.inf, dtype=dtype), ages]), slice(3, None)),
        (torch.cat([ages, torch.full((3,), torch.inf, dtype=dtype)]), slice(0, 4)),
    ):
        kernel.zero_grad()
        log_weight = kernel(padded)
        assert torch.isfinite(log_weight).all()
        # to the last bit but one: a product with a vector may add up in another order
        torch.testing.assert_close(log_weight[real], kernel(ages), rtol=0, atol=1e-6)
        if log_weight.requires_grad:
            log_weight.exp()[real].sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in kernel.parameters() if p.grad is not None)


@EVERY
def test_a_kernel_held_in_bfloat16_stays_near(name: str) -> None:
    """bf16-true training holds the parameters in bfloat16 too: 8 bits of a logarithm."""
    kernel = kernel_of(name)
    ages = torch.tensor([0.0, 0.01, 0.5, 1.0, 2.0, 4.0, 20.0])
    wide = weight(kernel, ages)
    got = weight(kernel.bfloat16(), ages)
    assert got.dtype == ages.dtype
    assert ((got - wide).abs() <= HELD_IN_BFLOAT16_BOUND).all()


@EVERY
def test_every_parameter_is_learned_exactly_when_its_own_key_says_so(name: str) -> None:
    switches = [str(key) for key in CONFIGS[name] if str(key).startswith("learn")]
    off = kernel_of(name, **dict.fromkeys(switches, False))
    assert not any(p.requires_grad for p in off.parameters())
    learned: set[str] = set()
    for switch in switches:
        kernel = kernel_of(name, **(dict.fromkeys(switches, False) | {switch: True}))
        own = {n for n, p in kernel.named_parameters() if p.requires_grad}
        assert own, f"{switch} learns nothing"
        assert not own & learned, f"{switch} learns what another key learns"
        learned |= own
    assert learned == dict(off.named_parameters()).keys()


@TIMED
def test_learning_follows_a_half_life_that_is_too_short(name: str) -> None:
    """The gradient points the right way: against a target from four days, a start of two moves up."""
    kernel, target = kernel_of(name, learn=True), kernel_of(name, half_life_days=4.0)
    ages = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    (weight(kernel, ages) - weight(target, ages).detach()).square().sum().backward()
    if kernel.half_life is not None:
        [log_half_life] = [p for n, p in kernel.named_parameters() if n.endswith("log_half_life")]
        assert log_half_life.grad is not None
        assert log_half_life.grad < 0


@EVERY
def test_a_kernel_comes_back_from_its_state(name: str) -> None:
    ages = torch.linspace(0, 10, 7)
    source, target = kernel_of(name, half_life_days=3.0), kernel_of(name)
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(ages), target(ages))
