"""Fading with absence: every history is aged by the same lag, and docs/compositions.md says what happens."""

import re
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import Tensor

from halflife.decay.exponential import Exponential
from halflife.decay.kernel import LARGEST_AGE, Kernel
from halflife.decay.power import Power
from halflife.interest.compose import Interest

ROOT = Path(__file__).parents[2]
CONFIGS = {path.stem: OmegaConf.load(path) for path in sorted((ROOT / "conf" / "interest").glob("*.yaml"))}
MODELS = {name: get_class(config._target_) for name, config in CONFIGS.items()}
NAMED = ["normalised", "log_bias", "sink", "scale", "sum"]
ROWS = [
    [cell.strip(" `") for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "compositions.md").read_text().splitlines()
    if re.match(r"\| `\w+` \|", line)
]
TAKES = {row[0]: row[1:6] for row in ROWS if len(row) == 7}
FADES = {(row[0], row[1]): row[2:] for row in ROWS if len(row) == 5}
EVERY = pytest.mark.parametrize("pair", FADES, ids="-".join)
KERNELS = {
    "exponential": Exponential(half_life_days=5.0, learn=False),
    "power": Power(half_life_days=5.0, learn=False, alpha=1.0, learn_alpha=False),
}
# whole quarters of days, so that a lag is added without rounding
AGE = torch.tensor([[20.0, 9.25, 4.0, 3.75, 0.5], [30.0, 2.0, 0.0, 0.0, 0.0]])
MASK = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])

Pair = tuple[str, str]


def interest_of(pair: Pair) -> Interest:
    """The model of a yaml, its matrices and tables moved, so that they matter."""
    chosen = {} if pair[1] == "–" else {"composition": pair[1]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        interest: Interest = instantiate(OmegaConf.merge(CONFIGS[pair[0]], chosen))(dim=4)
        with torch.no_grad():
            for p in interest.parameters():
                p.add_(0.3 * torch.randn_like(p) if p.ndim else 0.0)
            interest.bias.fill_(0.7)
    return interest


def signals(interest: Interest, kernel: Kernel, lag_days: float) -> Tensor:
    """Scores less the bias, after a lag; two histories, three candidates."""
    generator = torch.Generator().manual_seed(0)
    history, candidates = torch.randn(2, 5, 4, generator=generator), torch.randn(2, 3, 4, generator=generator)
    age = AGE + lag_days
    with torch.no_grad():
        return interest(history, kernel(age), MASK, candidates, age) - interest.bias


def sees(interest: Interest, kernel: Kernel, lag_days: float) -> bool:
    before, after = signals(interest, kernel, 0.0), signals(interest, kernel, lag_days)
    if torch.allclose(after, before, rtol=1e-4, atol=1e-5):
        return False
    assert not torch.allclose(after, before, rtol=0.01), "neither the same nor clearly different"
    return True


@EVERY
@pytest.mark.parametrize("lag_days", [1.0, 30.0])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_lag_is_seen_where_the_table_says_so(pair: Pair, kernel: str, lag_days: float) -> None:
    column = list(KERNELS).index(kernel)
    assert (
        sees(interest_of(pair), KERNELS[kernel], lag_days) == {"yes": True, "no": False}[FADES[pair][column]]
    )


@EVERY
@pytest.mark.parametrize("kernel", KERNELS)
def test_interest_fades_away_where_the_table_says_so(pair: Pair, kernel: str) -> None:
    interest = interest_of(pair)

    def left() -> float:
        now, late = (signals(interest, KERNELS[kernel], lag) for lag in (0.0, LARGEST_AGE / 2))
        return (late.abs().max() / now.abs().max()).item()

    if FADES[pair][2] == "yes":
        assert left() < 1e-5
        return
    assert left() > 0.05
    if FADES[pair][2] == "if learned":
        with torch.no_grad():
            interest.time[-1] = -100.0  # the bias of the oldest ages
        assert left() < 1e-5


@EVERY
def test_under_an_exponential_kernel_a_factor_comes_out_where_nothing_is_normalised(pair: Pair) -> None:
    interest, kernel, fade = interest_of(pair), KERNELS["exponential"], 2 ** (-7.5 / 5.0)
    before, after = signals(interest, kernel, 0.0), signals(interest, kernel, 7.5)
    if pair[0] != "self_attention" and pair[1] in ("scale", "sum"):
        torch.testing.assert_close(after, fade * before, rtol=1e-4, atol=1e-5)
    elif pair[0] == "pool" and pair[1] == "sink":
        assert (after.abs() < before.abs()).all()
        assert (after.abs() > fade * before.abs()).all()


def test_the_tables_speak_of_every_model_and_composition() -> None:
    taken = {(name, c) for name, model in MODELS.items() for c in model.compositions or ["–"]}
    assert set(FADES) == taken
    assert {name: [c in MODELS[name].compositions for c in NAMED] for name in MODELS} == {
        name: [cell == "yes" for cell in row] for name, row in TAKES.items()
    }
