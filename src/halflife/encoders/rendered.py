"""Items as rendered text: token ids instead of vectors, for a model that reads a whole history at once."""

from string import Formatter

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from halflife import pretrained as pretrained_models
from halflife.batches import Batch
from halflife.errors import InputError, choice, number, shown, text, whole
from halflife.store import Store

NOTHING = -1
"""Where a row of token ids is padded."""

FIELDS = ("age", "category", "text")

UNITS = (
    ("hour", 1 / 24, 1, 24),
    ("day", 1.0, 1, 14),
    ("week", 7.0, 2, 9),
    ("month", 30.4375, 2, 24),
    ("year", 365.25, 2, 31),
)
"""How an age is said: the unit, its days, the first number said in it, and where the next unit begins."""

MOST_RANKS = 200
"""Ranks that are told apart in words."""


def ages_in_words(age: str) -> tuple[list[str], list[float]]:
    """How ages are said, youngest first, and the age from which on each but the first is said.

    Args:
        age: `rank`, where ages count clicks; else they are days.

    >>> words, edges = ages_in_words("days")
    >>> words[0], words[24], words[25], edges[23], edges[24]
    ('minutes ago', '1 day ago', '2 days ago', 1.0, 2.0)
    """
    if age == "rank":
        ranks = range(1, MOST_RANKS)
        return ["newest click", *(f"{r} click{'s' * (r > 1)} before" for r in ranks)], [
            r - 0.5 for r in ranks
        ]
    said = [(n, unit, days) for unit, days, first, end in UNITS for n in range(first, end)]
    words = ["minutes ago", *(f"{n} {unit}{'s' * (n > 1)} ago" for n, unit, _ in said)]
    return words, [n * days for n, _, days in said]


class Rendered(nn.Module):
    """An item is the token ids of its text, as a template renders it; a click's age is said before it.

    A candidate is rendered as a click is, with `now` for its age. Ages are words of their own: they change
    from impression to impression, where an item's tokens are the Store's, made once.

    Args:
        store: the catalogue.
        pretrained: `bundled`, a directory or a hub name; its tokenizer is what counts here.
        template: of a click: `{age}`, at the beginning or not at all, `{category}` and `{text}`.
        age: `data.age`, which says what ages are: `rank`, or else days.
        max_tokens: a longer item is cut, its age not counted.
        lr: learning rate of what trains in the pretrained model.

    Raises:
        InputError: for a template of another form, or a setting out of range.
    """

    edges: Tensor
    words: Tensor

    def __init__(
        self, store: Store, pretrained: str, template: str, age: str, max_tokens: int, lr: float
    ) -> None:
        super().__init__()
        self.max_tokens = whole("model.max_tokens", max_tokens, "tokens", at_least=1)
        self.lr = number("model.lr", lr, "learning rate", at_least=0)
        text("model.pretrained", pretrained, "bundled, a directory or a hub name")
        self.says_age, item = parse(template)
        source = pretrained_models.resolve(pretrained)
        self.reads_tokens, self.frozen_parameters, self.dim = True, 0, 1
        self.tokens = self.ids, self.start = store.tokens(pretrained, self.max_tokens, item)
        self.identity = {"model.template": template, "model.max_tokens": str(max_tokens)}
        said, edges = ages_in_words(choice("model.age", age, ["days", "rank", "shuffled"]))
        words = pretrained_models.tokenize(source, ["now", *said], 64, special=False)
        ids = pad_sequence([torch.tensor(w) for w in words], batch_first=True, padding_value=NOTHING)
        self.register_buffer("words", ids[:, : ids.shape[1] * self.says_age], persistent=False)
        self.register_buffer("edges", torch.tensor(edges), persistent=False)

    def said(self, age: Tensor) -> Tensor:
        """Token ids of ages in words; (…) → (…, A), A = 0 where the template says no age."""
        return self.words[1 + torch.bucketize(age, self.edges, right=True)]

    def forward(self, batch: Batch) -> Tensor:
        """Token ids of the batch's distinct items, (U, L), padded with `NOTHING`."""
        if batch.tokens is None or batch.token_length is None:
            raise AssertionError("a model that reads text needs batches with tokens")
        parts = batch.tokens.split(batch.token_length.tolist())
        return pad_sequence(list(parts), batch_first=True, padding_value=NOTHING)

    def catalogue(self) -> Tensor:
        """Token ids of every item, (items, L), padded with `NOTHING`."""
        place = np.arange(int(np.diff(self.start).max()))
        at = self.start[:-1, None] + place
        ids = np.where(at < self.start[1:, None], self.ids[np.minimum(at, len(self.ids) - 1)], NOTHING)
        return torch.from_numpy(ids.astype(np.int64)).to(self.edges.device)


def parse(template: str) -> tuple[bool, str]:
    """Whether a template says ages, and what it renders of an item, which is the rest of it.

    Raises:
        InputError: for another field, an age that does not come first, or neither category nor text.

    >>> parse("{age} · {category} · {text}")
    (True, ' · {category} · {text}')
    """
    rule = (
        "model.template must be a text with {category} or {text}, and {age} at its beginning or not at all, "
        f"got {shown(template)}; give for example '{{age}} · {{category}} · {{text}}'"
    )
    try:
        parts = list(Formatter().parse(text("model.template", template, "a text with {text}")))
    except ValueError as error:
        raise InputError(rule) from error
    fields = [name for _, name, *_ in parts if name is not None]
    plain = all(not spec and conversion is None for _, _, spec, conversion in parts)
    says_age = template.startswith("{age}")
    if not plain or set(fields) - set(FIELDS) or fields.count("age") != says_age or set(fields) <= {"age"}:
        raise InputError(rule)
    return says_age, template.removeprefix("{age}")
