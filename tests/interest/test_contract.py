"""The interest contract: every conf/interest/*.yaml is held to it, in each of its model's compositions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import Tensor
from torch.func import functional_call, hessian, vmap
from torch.nn.functional import normalize, pad

from halflife.batches import PAD_AGE
from halflife.decay.exponential import Exponential
from halflife.errors import InputError
from halflife.interest.compose import Interest

CONF = Path(__file__).parents[2] / "conf" / "interest"
CONFIGS = {path.stem: OmegaConf.load(path) for path in sorted(CONF.glob("*.yaml"))}
CLASSES = {name: get_class(config._target_) for name, config in CONFIGS.items()}
PAIRS = [(name, composition) for name, c in CLASSES.items() for composition in c.compositions or [None]]
EVERY = pytest.mark.parametrize("pair", PAIRS, ids=lambda p: "-".join(filter(None, p)))
MINUTE = 1 / 1_440
SCALARS = {"log_scale", "log_sink", "bias"}

Pair = tuple[str, str | None]
Given = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def interest_of(pair: Pair, dim: int = 4, **changes: Any) -> Interest:
    """The model of a yaml; what starts as 0 or as the identity is moved, so that it matters."""
    name, composition = pair
    chosen = {} if composition is None else {"composition": composition}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        interest: Interest = instantiate(OmegaConf.merge(CONFIGS[name], chosen, changes))(dim=dim)
        with torch.no_grad():
            for n, p in interest.named_parameters():
                p.add_(0.0 if n in SCALARS else 0.3 * torch.randn_like(p))
            interest.bias.fill_(0.7)
    return interest


def readers(n: int = 3, dim: int = 4, seed: int = 0) -> Given:
    """Histories of 5, 2, 0, 1, 4, … clicks over a month, two candidates each, a kernel of 5 days;
    vectors of length 1."""
    generator = torch.Generator().manual_seed(seed)
    length = torch.tensor([5, 2, 0, 1, 4]).repeat(n // 5 + 1)[:n]
    mask = torch.arange(5) < length[:, None]
    age = (30 * torch.rand(n, 5, generator=generator)).sort(1, descending=True).values
    age = age.masked_fill(~mask, PAD_AGE)
    history, candidates = (normalize(torch.randn(n, k, dim, generator=generator), dim=-1) for k in (5, 2))
    return history, Exponential(half_life_days=5.0, learn=False)(age), mask, candidates, age


def test_every_model_has_a_yaml_of_its_name_with_commented_keys() -> None:
    for name, c in CLASSES.items():
        assert c.__module__ == f"halflife.interest.{name}"
        assert issubclass(c, Interest)
        lines = (CONF / f"{name}.yaml").read_text().splitlines()
        assert lines[0].startswith("# ")
        assert all("#" in line for line in lines if not line.startswith("_"))
    rooms = {p.stem for p in (Path(__file__).parents[2] / "src/halflife/interest").glob("[a-z]*.py")}
    # behaviour as text is chosen by model=bert_text, since the model it reads with is the choice
    assert rooms - {"compose", "behaviour_text"} == set(CLASSES)


@EVERY
def test_an_empty_history_scores_the_bias_and_its_gradient_is_finite(pair: Pair) -> None:
    interest = interest_of(pair)
    history, log_weight, mask, candidates, age = readers()
    history, log_weight = history.requires_grad_(), log_weight.requires_grad_()
    score = interest(history, log_weight, mask & False, candidates, age)
    assert (score == interest.bias).all()
    gradients = torch.autograd.grad(
        score.sum(), [history, log_weight, *interest.parameters()], allow_unused=True
    )
    assert all(g is None or torch.isfinite(g).all() for g in gradients)


@EVERY
def test_a_score_is_the_same_alone_and_in_a_batch_of_32(pair: Pair) -> None:
    interest, given = interest_of(pair), readers(32)
    together = interest(*given)
    alone = torch.cat([interest(*(g[i : i + 1] for g in given)) for i in range(32)])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
    short = [g[:, :2] if g.shape[1] == 5 else g for g in given]  # a batch whose longest history is 2
    fits = given[2].sum(1) <= 2
    torch.testing.assert_close(interest(*short)[fits], together[fits], atol=1e-5, rtol=1e-5)
    assert (together[given[2].any(1)] - interest.bias).abs().min() > 1e-4


@EVERY
@pytest.mark.parametrize("garbage", [0.0, 1.0, 1e6])
def test_padded_places_change_neither_scores_nor_gradients(pair: Pair, garbage: float) -> None:
    interest = interest_of(pair)
    history, log_weight, mask, candidates, age = readers()
    log_weight = log_weight.requires_grad_()
    before = interest(history, log_weight, mask, candidates, age)
    after = interest(
        pad(history.masked_fill(~mask.unsqueeze(-1), garbage), (0, 0, 0, 4), value=garbage),
        pad(log_weight.masked_fill(~mask, garbage), (0, 4), value=-garbage),
        pad(mask, (0, 4)),
        pad(candidates, (0, 0, 0, 2), value=1.0),
        pad(age.masked_fill(~mask, garbage), (0, 4), value=torch.inf),
    )[:, :2]
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    learned = [log_weight, *interest.parameters()]
    for old, new in zip(
        *(torch.autograd.grad(s.square().sum(), learned, allow_unused=True) for s in (before, after)),
        strict=True,
    ):
        if old is not None:
            torch.testing.assert_close(new, old, atol=1e-5, rtol=1e-4)


@EVERY
@pytest.mark.parametrize("lowest", [-1.0, -1e5])
def test_scores_and_their_second_derivatives_are_finite_at_any_log_weight(pair: Pair, lowest: float) -> None:
    """As the last fit needs them: in the log-weights and the scalars, matrices held, one impression each."""
    interest = interest_of(pair)
    history, _, mask, candidates, age = readers()
    fixed = {n: p.detach() for n, p in interest.named_parameters()}
    scalars = [n for n, p in fixed.items() if p.ndim == 0]

    def squares(free: Tensor, history: Tensor, mask: Tensor, candidates: Tensor, age: Tensor) -> Tensor:
        values = dict(zip(scalars, free[5:], strict=True))
        given = (g.unsqueeze(0) for g in (history, free[:5], mask, candidates, age))
        return functional_call(interest, {**fixed, **values}, tuple(given)).square().sum()

    for shape in ([1.0, 1.0, 1.0, 0.5, 0.0], [1.0] * 5):
        free = torch.tensor([lowest * s for s in shape] + [fixed[n].item() for n in scalars])
        bend = vmap(hessian(squares), (None, 0, 0, 0, 0))(free, history, mask, candidates, age)
        assert torch.isfinite(bend).all()
        assert (bend[:, 5 + scalars.index("bias")] != 0).any(1).all()


@EVERY
def test_derivatives_are_those_of_the_score(pair: Pair) -> None:
    interest = interest_of(pair).double()
    history, log_weight, mask, candidates, age = (
        g.double() if g.is_floating_point() else g for g in readers()
    )
    scalars = [p for p in interest.parameters() if p.ndim == 0]

    def score(log_weight: Tensor, *_: Tensor) -> Tensor:
        return interest(history, log_weight, mask, candidates, age)

    # the mask's places get no derivative, and every other is an independent number
    at = log_weight.masked_fill(~mask, -2.0).requires_grad_()
    assert torch.autograd.gradcheck(score, (at, *scalars))
    assert torch.autograd.gradgradcheck(score, (at, *scalars))


@EVERY
def test_every_parameter_is_one_that_the_model_reads(pair: Pair) -> None:
    interest = interest_of(pair)
    assert {n for n, p in interest.named_parameters() if p.ndim == 0} == SCALARS - (
        set() if pair[1] == "sink" else {"log_sink"}
    )
    interest(*readers(32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in interest.parameters())


@EVERY
def test_a_minute_of_half_life_and_years_of_age_stay_finite(pair: Pair) -> None:
    kernel = Exponential(half_life_days=MINUTE, learn=True)
    interest = interest_of(pair)
    history, _, mask, candidates, _ = readers()
    history = history.requires_grad_()
    # days apart, of which every weight underflows: 2^(−1440 · age)
    age = torch.tensor([[3000.0, 900.0, 400.0, 31.0, 30.0]]).repeat(3, 1).masked_fill(~mask, PAD_AGE)
    score = interest(history, kernel(age), mask, candidates, age)
    assert torch.isfinite(score).all()
    score.square().sum().backward()
    for parameter in [history, *kernel.parameters(), *interest.parameters()]:
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


@EVERY
def test_half_precision_loses_only_its_rounding(pair: Pair) -> None:
    interest, given = interest_of(pair, scale=1.0), readers(32)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = interest(*given)
    wide = interest(*given)
    assert ((narrow - wide).abs() <= 0.05 * (1 + wide.abs())).all()


@EVERY
def test_a_model_is_linear_in_signed_weights_if_and_only_if_it_says_so(pair: Pair) -> None:
    interest = interest_of(pair)
    history, *rest = readers()
    flipped = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    parts = [interest(history * (flipped == s)[:, None], *rest) - interest.bias for s in (1, -1)]
    signed = interest(history * flipped[:, None], *rest) - interest.bias
    assert torch.allclose(signed, parts[0] - parts[1], atol=1e-5) == interest.signed


@EVERY
def test_a_model_reads_the_kernel_or_keeps_its_own_time(pair: Pair) -> None:
    interest = interest_of(pair)
    history, log_weight, mask, candidates, age = readers()
    moved = interest(history, 2 * log_weight, mask, candidates, age)
    older = interest(history, log_weight, mask, candidates, age * torch.tensor([9.0, 5.0, 3.0, 2.0, 1.0]))
    same = [torch.equal(s, interest(*readers())) for s in (moved, older)]
    assert same == ([True, False] if interest.own_time else [False, True])
    assert interest.own_time == (not interest.compositions)


@EVERY
def test_settings_out_of_range_are_refused(pair: Pair) -> None:
    wrong = {"scale": [0.0, -1.0], "sink": [0.0], "composition": ["summ", "attention"], "heads": [0, 3, 1.5]}
    wrong |= {"intervals": [0], "positions": [0], "buckets": [2], "first_days": [0.0], "last_days": [1e-9]}
    tried = [(key, value) for key, values in wrong.items() for value in values if key in CONFIGS[pair[0]]]
    assert {key for key, _ in tried} == {k for k in CONFIGS[pair[0]] if not k.startswith("_")}
    for key, value in tried:
        with pytest.raises(InputError, match=rf"^interest\.{key} must be .*; "):
            interest_of(pair, **{key: value})
