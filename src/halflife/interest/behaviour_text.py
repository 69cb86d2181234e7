"""Behaviour as text: history and candidate in one sequence, which a pretrained model reads and scores."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from torch.utils.checkpoint import checkpoint

from halflife import pretrained as pretrained_models
from halflife.encoders.pooling import mean
from halflife.encoders.rendered import NOTHING, Rendered
from halflife.errors import InputError, shown, whole
from halflife.interest.compose import LOWEST, Interest
from halflife.store import Store

CHUNK_TOKENS = 8192
"""Tokens that go through the model together; of more, activations are computed again rather than kept."""

CANDIDATE, PADDING = -1, -2
"""Owners of tokens that belong to no click."""


class BehaviourText(Interest):
    """A pretrained model reads `[CLS] candidate [SEP] newest click [SEP] … oldest [SEP]`, one sequence a
    candidate, and a linear head scores the mean of the candidate's token vectors h:

    score_c = scale · w · mean_{t of c} h_t + bias

    The kernel is a bias on attention, in every layer: token q attends to token k of click i with
    softmax_k(q·k/√d + log w_i), where q belongs to anything but click i. Within itself a click is read as if
    it had just happened: on each way from a click to the score its weight counts where the way leaves the
    click, once. In the first layer alone it would count for little, since the second reads the click in full.
    Tokens of the candidate never fade, so that a click whose weight goes to 0 is as if it were not there, and
    absence fades. `decay=none` is a plain sequence classifier.

    Args:
        store: the catalogue.
        pretrained: `bundled`, a directory or a hub name; an encoder, with tokens that begin and end a text.
        tuning: a function of `encoders.tuning` with its settings.
        template, age, max_tokens, lr: see `Rendered`.
        history_tokens: of the clicks together; those that do not fit, the oldest, are left out.

    Raises:
        InputError: for a model that takes no bias or too few tokens, or a setting out of range.

    Source: the sequence is Devlin et al., BERT (NAACL 2019), section 4.1; behaviour as text is Li et al.,
    Text Is All You Need (KDD 2023); the bias is Press et al., ALiBi (ICLR 2022), section 3, with log w for
    the linear one.
    """

    reads_text = True

    def __init__(
        self,
        store: Store,
        pretrained: str,
        tuning: Callable[[Any], Any],
        template: str,
        age: str,
        max_tokens: int,
        history_tokens: int,
        lr: float,
    ) -> None:
        super().__init__(scale=1.0)
        self.items = Rendered(store, pretrained, template, age, max_tokens, lr)
        if not callable(tuning):
            raise InputError(
                f"model.tuning must be a function of halflife.encoders.tuning, got {shown(tuning)}; choose "
                "it by model=bert_text, model=bert_text_lora or model=bert_text_frozen"
            )
        source = pretrained_models.resolve(pretrained)
        tokenizer = pretrained_models.tokenizer_of(source)
        if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
            raise InputError(
                "model.pretrained must be an encoder with tokens that begin and end a text for "
                f"model=bert_text, got {pretrained} without; give another one, such as bundled"
            )
        self.cls, self.sep = int(tokenizer.cls_token_id), int(tokenizer.sep_token_id)
        self.pad = int(tokenizer.pad_token_id)
        backbone = tuning(pretrained_models.load(source))
        # an age in words, and [SEP]; beside the candidate's, [CLS]
        click = self.items.words.shape[1] + max_tokens + 1
        limit = getattr(backbone.config, "max_position_embeddings", 10**9)
        most = min(limit, tokenizer.model_max_length) - click - 1
        self.history_tokens = whole(
            "model.history_tokens", history_tokens, "tokens", at_least=click, at_most=max(click, most)
        )
        if most < click:
            raise InputError(
                f"model.max_tokens must leave room for a click and a candidate in {limit} (tokens), got "
                f"{max_tokens}; lower it"
            )
        self.items.identity |= {
            "model.pretrained": f"the model with weights {pretrained_models.weights_key(source)[:16]}",
            "model.history_tokens": str(self.history_tokens),
        }
        self.two_types = getattr(backbone.config, "type_vocab_size", 0) > 1
        trains = any(p.requires_grad for p in backbone.parameters())
        self.backbone = backbone.train(trains)  # loading leaves it in eval mode, without dropout
        self.head = nn.Linear(int(backbone.config.hidden_size), 1, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)
        check_bias(self, pretrained)

    def forward(
        self, history: Tensor, log_weight: Tensor, mask: Tensor, candidates: Tensor, age: Tensor
    ) -> Tensor:
        """Scores of the candidates.

        Args:
            history: token ids of the clicked items, oldest first, padded behind.
            log_weight, mask, age: of the clicks.
            candidates: token ids of the shown items.

        Shape: history (B, H, L), log_weight, mask and age (B, H), candidates (B, C, L) → (B, C).
        """
        clicks, owner = self.rendered(history, mask, age)
        batch, shown = candidates.shape[:2]
        ends = candidates.new_tensor([self.cls, self.sep]).expand(batch, shown, 2)
        now = self.items.words[0].expand(batch, shown, -1)
        row = torch.arange(batch, device=age.device).view(-1, 1, 1).expand(-1, shown, 1)
        front = torch.cat([row, ends[..., :1], now, candidates, ends[..., 1:]], -1)
        # each distinct sequence once: padded candidates are all the same
        distinct, place = torch.unique(front.flatten(0, 1), dim=0, return_inverse=True)
        row, front = distinct[:, 0], distinct[:, 1:]
        ids = torch.cat([front, clicks[row]], 1)
        ids, owner = compact(ids, torch.cat([torch.full_like(front, CANDIDATE), owner[row]], 1))
        # embedding, not log_weight[…]: the gradient of indexing adds up in whatever order the threads come
        weight = embedding(row, log_weight).gather(1, owner.clamp(min=0)) * (owner >= 0)
        scores = embedding(place.view(batch, shown), self._read(ids, owner, weight).unsqueeze(1)).squeeze(-1)
        return self.log_scale.exp() * scores + self.bias

    def rendered(self, history: Tensor, mask: Tensor, age: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids of the clicks that fit, newest first, and which click owns each.

        Shape: history (B, H, L), mask and age (B, H) → twice (B, T).
        """
        sep = torch.full_like(history[..., :1], self.sep)
        ids = torch.cat([self.items.said(age), history, sep], -1)
        ids = ids.masked_fill(~mask.unsqueeze(-1), NOTHING).flip(1)
        fits = (ids != NOTHING).sum(-1).cumsum(-1) <= self.history_tokens
        owner = torch.arange(ids.shape[1], device=age.device).flip(0).view(1, -1, 1).expand_as(ids)
        return compact(ids.masked_fill(~fits.unsqueeze(-1), NOTHING).flatten(1), owner.flatten(1))

    def _read(self, ids: Tensor, owner: Tensor, weight: Tensor) -> Tensor:
        """Head of each sequence, those of like length together; (N, S) → (N,).

        The longest go first: what they leave free then holds the shorter ones, where the other way around
        nothing that is free is large enough and a process grows by every chunk.
        """
        order = torch.argsort((owner != PADDING).sum(1), descending=True, stable=True)
        chunks = order.split(max(1, CHUNK_TOKENS // ids.shape[1]))
        recompute = torch.is_grad_enabled() and len(chunks) > 1
        parts = []
        for chunk in chunks:
            longest = int((owner[chunk[0]] != PADDING).sum())
            given = [part[chunk, :longest] for part in (ids, owner, weight)]
            parts.append(
                checkpoint(self._head, *given, use_reentrant=False) if recompute else self._head(*given)
            )
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return torch.cat(parts)[back]

    def _head(self, ids: Tensor, owner: Tensor, weight: Tensor) -> Tensor:
        real = owner != PADDING
        inside = owner.unsqueeze(2) == owner.unsqueeze(1)
        bias = weight.unsqueeze(1).expand(inside.shape).masked_fill(inside, 0)
        bias = bias.masked_fill(~real.unsqueeze(1), LOWEST)
        types = {"token_type_ids": (owner >= 0).long()} if self.two_types else {}
        hidden = self.backbone(
            input_ids=ids.masked_fill(~real, self.pad), attention_mask=bias.unsqueeze(1), **types
        ).last_hidden_state
        found: Tensor = self.head(mean(hidden, owner == CANDIDATE)).squeeze(-1)
        return found


def compact(ids: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
    """Rows without their gaps, padded behind as far as the longest.

    >>> compact(torch.tensor([[7, -1, 8], [-1, -1, 9]]), torch.tensor([[0, 0, 1], [0, 0, 1]]))
    (tensor([[ 7,  8],
            [ 9, -1]]), tensor([[ 0,  1],
            [ 1, -2]]))
    """
    real = ids != NOTHING
    order = torch.argsort(~real, dim=1, stable=True)[:, : int(real.sum(1).max())]
    return ids.gather(1, order), owner.masked_fill(~real, PADDING).gather(1, order)


@torch.no_grad()
def check_bias(module: BehaviourText, name: str) -> None:
    """Raise the InputError for a model whose attention does not add the bias that it is given."""
    sentence = (
        "model.pretrained must be a model whose attention takes a bias for each pair of tokens, such as a "
        f"BERT or a RoBERTa, for model=bert_text, got {name}; give another one"
    )
    training = module.backbone.training
    module.backbone.eval()
    ids = torch.tensor([[module.cls, module.sep, module.sep]])
    bias = torch.zeros(3, 1, 1, 3, 3)
    bias[:, ..., 1] = torch.tensor([0.0, -1.0, -2.0]).view(3, 1, 1, 1)
    try:
        found = [module.backbone(input_ids=ids, attention_mask=b).last_hidden_state[0, 0] for b in bias]
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise InputError(sentence) from error
    module.backbone.train(training)
    if torch.equal(found[0], found[1]) or torch.equal(found[1], found[2]):
        raise InputError(sentence)
