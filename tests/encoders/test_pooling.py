"""Pooling reads real tokens only."""

import pytest
import torch

from halflife.encoders import pooling
from halflife.errors import InputError

HIDDEN = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [5.0, 1.0]], [[4.0, 4.0], [0.0, 2.0], [9.0, 9.0]]])
MASK = torch.tensor([[True, True, True], [True, True, False]])


def test_mean_is_over_the_real_tokens() -> None:
    assert pooling.mean(HIDDEN, MASK).tolist() == [[3.0, 3.0], [2.0, 3.0]]


def test_cls_is_the_first_token() -> None:
    assert pooling.cls(HIDDEN, MASK).tolist() == [[1.0, 2.0], [4.0, 4.0]]


@pytest.mark.parametrize("name", ["mean", "cls"])
@pytest.mark.parametrize("garbage", [0.0, -7.0, 1e30])
def test_padding_changes_nothing_whatever_it_holds(name: str, garbage: float) -> None:
    pool = pooling.by_name(name)
    wider = torch.cat([HIDDEN, torch.full((2, 4, 2), garbage)], 1).requires_grad_()
    mask = torch.cat([MASK, torch.zeros(2, 4, dtype=torch.bool)], 1)
    got = pool(wider.masked_fill(~mask.unsqueeze(-1), garbage), mask)
    torch.testing.assert_close(got, pool(HIDDEN, MASK))
    (gradient,) = torch.autograd.grad(pool(wider, mask).sum(), wider)
    assert (gradient[~mask] == 0).all()


def test_half_precision_stays_half_precision() -> None:
    assert pooling.mean(HIDDEN.bfloat16(), MASK).dtype == torch.bfloat16


def test_an_unknown_pooling_is_refused_with_the_near_ones() -> None:
    with pytest.raises(
        InputError, match=r"^model\.pooling must be one of mean, cls, got men; did you mean mean"
    ):
        pooling.by_name("men")
