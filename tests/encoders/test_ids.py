"""One learned vector an item."""

import pytest
import torch

from halflife.datamodule import DataModule
from halflife.encoders.ids import IdEmbedding
from halflife.errors import InputError


def test_a_batch_and_the_catalogue_give_an_item_the_same_vector(small_log: DataModule) -> None:
    encoder = IdEmbedding(small_log.store, dim=8, lr=0.01)
    batch = small_log.impressions(with_tokens=False)[small_log.rows("test")[:20]]
    assert encoder.catalogue().shape == (small_log.store.n_items, 8)
    assert torch.equal(encoder(batch), encoder.catalogue()[batch.item])
    assert not encoder.catalogue().requires_grad


def test_it_reads_no_text(small_log: DataModule) -> None:
    encoder = IdEmbedding(small_log.store, dim=8, lr=0.01)
    assert (encoder.reads_tokens, encoder.tokens, encoder.frozen_parameters) == (False, None, 0)
    assert all(p.requires_grad for p in encoder.parameters())


def test_only_the_items_of_a_batch_take_a_gradient(small_log: DataModule) -> None:
    encoder = IdEmbedding(small_log.store, dim=8, lr=0.01)
    batch = small_log.impressions(with_tokens=False)[small_log.rows("test")[:2]]
    encoder(batch).square().sum().backward()
    assert torch.equal(encoder.backbone.weight.grad.abs().sum(1).nonzero().squeeze(1), batch.item)


def test_an_item_never_seen_scores_near_the_bias(small_log: DataModule) -> None:
    norm = IdEmbedding(small_log.store, dim=64, lr=0.01).catalogue().norm(dim=1)
    assert norm.max() < 0.2


def test_settings_out_of_range_are_refused(small_log: DataModule) -> None:
    with pytest.raises(InputError, match=r"^model\.dim must be"):
        IdEmbedding(small_log.store, dim=0, lr=0.01)
    with pytest.raises(InputError, match=r"^model\.lr must be"):
        IdEmbedding(small_log.store, dim=8, lr=-0.01)
