"""Compositions are denominators."""

import pytest
import torch
from torch import Tensor
from torch.func import hessian, jacfwd, jacrev, vmap

from halflife.interest.attention import Attention
from halflife.interest.compose import Interest, log_softmax_beside, weighted_sum


@pytest.mark.parametrize("composition", Attention.compositions)
def test_what_a_click_counts_is_its_numerator_over_the_denominator(composition: str) -> None:
    logit, log_weight = torch.tensor([[1.0, 0.5, -2.0, 9.0]]), torch.tensor([[-3.0, -1.0, 0.0, -4.0]])
    mask = torch.tensor([[True, True, True, False]])
    model = Attention(2, composition, scale=1.0, sink=0.25)
    attention, weight = logit.exp() * mask, log_weight.exp()
    denominator = {
        "log_bias": (attention * weight).sum(),
        "sink": (attention * weight).sum() + 0.25,
        "scale": attention.sum(),
        "sum": torch.tensor(1.0),
    }[composition]
    torch.testing.assert_close(model.share(logit, log_weight, mask), attention * weight / denominator)


def test_a_sink_keeps_the_gradient_that_logsumexp_would_round_away() -> None:
    logit = torch.tensor([-43_200.0, -43_200.3], requires_grad=True)
    share = log_softmax_beside(torch.tensor(-43_200.0), logit).exp()
    expected = torch.tensor([1.0, torch.exp(logit[1] - logit[0]).item()])
    torch.testing.assert_close(share, expected / (expected.sum() + 1))
    share[0].backward()
    assert logit.grad is not None
    p = share.detach()
    torch.testing.assert_close(logit.grad, torch.stack([p[0] * (1 - p[0]), -p[0] * p[1]]))


def test_a_model_has_to_say_how_it_scores() -> None:
    nothing = torch.zeros(1, 1)
    with pytest.raises(NotImplementedError):
        Interest(scale=1.0)(nothing, nothing, nothing, nothing, nothing)


def test_a_weighted_sum_is_an_einsum_under_every_transform_that_the_refit_takes() -> None:
    torch.manual_seed(0)
    weight, vectors = torch.rand(3, 4).double(), torch.randn(3, 4, 5).double()

    def plain(w: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("bk,bkd->bd", w, v)

    torch.testing.assert_close(weighted_sum(weight, vectors), plain(weight, vectors))
    for transform in (jacfwd, jacrev):
        for at in (0, 1):
            ours, theirs = (transform(f, argnums=at)(weight, vectors) for f in (weighted_sum, plain))
            torch.testing.assert_close(ours, theirs)
    ours, theirs = (
        hessian(lambda w, f=f: f(w.exp(), vectors).tanh().sum())(weight) for f in (weighted_sum, plain)
    )
    torch.testing.assert_close(ours, theirs)
    many = torch.rand(2, 3, 4).double()
    for dims, both in (
        ((0, None), (many, vectors)),
        ((None, 0), (weight, torch.randn(2, 3, 4, 5).double())),
        ((0, 1), (many, torch.randn(3, 2, 4, 5).double())),
    ):
        torch.testing.assert_close(vmap(weighted_sum, dims)(*both), vmap(plain, dims)(*both))
    assert torch.autograd.gradcheck(weighted_sum, (weight.requires_grad_(), vectors.requires_grad_()))
