"""Pooling reads real tokens only, whichever side the padding is on."""

from typing import Any

import pytest
import torch

from halflife.encoders import pooling
from halflife.errors import InputError

HIDDEN = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [5.0, 1.0]], [[4.0, 4.0], [0.0, 2.0], [9.0, 9.0]]])
MASK = torch.tensor([[True, True, True], [True, True, False]])
NAMES = ["mean", "cls", "last", "attention"]


def by_name(name: str) -> Any:
    """The pooling, as if its query had been learned."""
    pool = pooling.by_name(name, 2)
    if isinstance(pool, pooling.Attention):
        with torch.no_grad():
            pool.query.copy_(torch.tensor([1.5, -2.0]))
            pool.inner.weight.copy_(torch.tensor([[0.3, -0.1], [0.2, 0.4]]))
            pool.inner.bias.zero_()
    return pool


def test_mean_is_over_the_real_tokens() -> None:
    assert pooling.mean(HIDDEN, MASK).tolist() == [[3.0, 3.0], [2.0, 3.0]]


def test_cls_is_the_first_token_and_last_the_last() -> None:
    assert pooling.cls(HIDDEN, MASK).tolist() == [[1.0, 2.0], [4.0, 4.0]]
    assert pooling.last(HIDDEN, MASK).tolist() == [[5.0, 1.0], [0.0, 2.0]]


def test_attention_is_the_formula_and_starts_as_the_mean() -> None:
    torch.testing.assert_close(pooling.Attention(2)(HIDDEN, MASK), pooling.mean(HIDDEN, MASK))
    pool = by_name("attention")
    row = HIDDEN[1, :2].double()
    weight = (torch.tanh(row @ pool.inner.weight.double().T) @ pool.query.double()).exp()
    expected = (weight / weight.sum()) @ row
    torch.testing.assert_close(pool(HIDDEN, MASK)[1].double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("garbage", [0.0, -7.0, 1e30, torch.inf])
@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_nothing_whatever_it_holds_on_either_side(
    name: str, garbage: float, left: bool
) -> None:
    pool = by_name(name)
    extra, none = torch.full((2, 4, 2), garbage), torch.zeros(2, 4, dtype=torch.bool)
    hidden, mask = HIDDEN[:, :2], MASK[:, :2]  # both rows are real here
    wider = torch.cat([extra, hidden] if left else [hidden, extra], 1).requires_grad_()
    mask_of_it = torch.cat([none, mask] if left else [mask, none], 1)
    torch.testing.assert_close(pool(wider, mask_of_it), pool(hidden, mask))
    (gradient,) = torch.autograd.grad(pool(wider, mask_of_it).sum(), wider)
    assert (gradient[~mask_of_it] == 0).all()


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen"])
@pytest.mark.parametrize("name", ["last", "mean"])
@torch.no_grad()
def test_a_decoder_padded_on_the_left_gives_the_vectors_it_gives_padded_on_the_right(
    architecture: str, name: str, tiny: Any
) -> None:
    model, pool = tiny(architecture), pooling.by_name(name, 16)
    ids = torch.tensor([[5, 9, 17, 3], [8, 30, 0, 0]])
    right = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    left_ids, left = torch.stack([ids[0], ids[1].roll(2)]), torch.stack([right[0], right[1].roll(2)])
    places = (left.cumsum(1) - 1).clamp_min(0)
    got = pool(model(input_ids=ids, attention_mask=right).last_hidden_state, right.bool())
    other = model(input_ids=left_ids, attention_mask=left, position_ids=places).last_hidden_state
    torch.testing.assert_close(got, pool(other, left.bool()), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pool", [pooling.mean, pooling.cls, pooling.last])
def test_half_precision_stays_half_precision(pool: pooling.Pooling) -> None:
    assert pool(HIDDEN.bfloat16(), MASK).dtype == torch.bfloat16


def test_an_unknown_pooling_is_refused_with_the_near_ones() -> None:
    with pytest.raises(
        InputError,
        match=r"^model\.pooling must be one of mean, cls, last, attention, got men; did you mean mean",
    ):
        pooling.by_name("men", 2)
