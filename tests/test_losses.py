"""Losses against PyTorch's own, and against whatever padding may hold."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional as F

from halflife.losses import bce, softmax

CONF = Path(__file__).parents[1] / "conf" / "loss"
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
both = pytest.mark.parametrize("loss", [bce, softmax])


def batch(seed: int = 0, size: int = 16, candidates: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, labels and a mask of uneven impressions; at least one click in most."""
    g = torch.Generator().manual_seed(seed)
    score = 3 * torch.randn(size, candidates, generator=g)
    mask = torch.arange(candidates) < torch.randint(2, candidates + 1, (size, 1), generator=g)
    label = ((torch.rand(size, candidates, generator=g) < 0.4) & mask).float()
    return score, label, mask


def test_bce_equals_pytorch_over_the_real_candidates() -> None:
    score, label, mask = batch()
    expected = F.binary_cross_entropy_with_logits(score[mask], label[mask])
    torch.testing.assert_close(bce(score, label, mask), expected)


def test_softmax_equals_pytorch_with_one_click_each() -> None:
    score, _, _ = batch()
    clicked = torch.arange(len(score)) % score.shape[1]
    label = F.one_hot(clicked, score.shape[1]).float()
    loss = softmax(score, label, torch.ones_like(label, dtype=torch.bool))
    torch.testing.assert_close(loss, F.cross_entropy(score, clicked))


def test_softmax_equals_a_loop_over_impressions_with_several_clicks() -> None:
    score, label, mask = batch()
    each = [
        -s[m].log_softmax(0)[y[m] == 1].mean()
        for s, y, m in zip(score, label, mask, strict=True)
        if y[m].sum() > 0
    ]
    assert len(each) < len(score), "the batch should hold an impression without a click"
    torch.testing.assert_close(softmax(score, label, mask), torch.stack(each).mean())


def wide(t: Tensor, fill: float) -> Tensor:
    """Three more padded candidates."""
    return F.pad(t, (0, 3), value=fill)


@both
@pytest.mark.parametrize("junk", [0.0, 1e30, float("inf"), float("-inf"), float("nan")])
def test_padding_never_reaches_loss_or_gradient(loss: Loss, junk: float) -> None:
    score, label, mask = batch()
    plain = score.clone().requires_grad_()
    loss(plain, label, mask).backward()
    padded = wide(score.masked_fill(~mask, junk), junk).requires_grad_()
    value = loss(padded, wide(label.masked_fill(~mask, junk), junk), wide(mask, False))
    value.backward()
    torch.testing.assert_close(value, loss(score, label, mask))
    assert plain.grad is not None
    assert padded.grad is not None
    torch.testing.assert_close(padded.grad, wide(plain.grad * mask, 0.0))


@both
def test_a_batch_without_anything_to_learn_gives_zero_and_keeps_its_graph(loss: Loss) -> None:
    score = torch.randn(2, 3, requires_grad=True)
    value = loss(score, torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    value.backward()
    assert value.item() == 0
    assert score.grad is not None
    assert score.grad.tolist() == torch.zeros(2, 3).tolist()


def test_impressions_without_a_click_add_nothing_to_softmax() -> None:
    score, label, mask = batch()
    some = label.sum(1) > 0
    torch.testing.assert_close(softmax(score, label, mask), softmax(score[some], label[some], mask[some]))
    none = softmax(score, torch.zeros_like(label), mask)
    assert none.item() == 0


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_are_finite_at_extreme_scores(loss: Loss, dtype: torch.dtype) -> None:
    score = torch.tensor([[-6e4, 6e4, 0.0], [6e4, -6e4, 6e4]], dtype=dtype, requires_grad=True)
    label = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    value = loss(score, label, mask)
    value.backward()
    assert value.isfinite()
    assert score.grad is not None
    assert score.grad.isfinite().all()


@both
def test_loss_falls_when_the_click_rises(loss: Loss) -> None:
    score, label, mask = batch()
    assert loss(score + label, label, mask) < loss(score, label, mask)


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda p: p.stem)
def test_a_loss_config_builds_a_function_of_scores_labels_and_mask(path: Path) -> None:
    loss = instantiate(OmegaConf.load(path))
    assert loss(*batch()).isfinite()
