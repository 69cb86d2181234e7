"""Items and ages in words: what a click and a candidate read like, and templates that are refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from halflife.batches import Impressions
from halflife.datamodule import DataModule
from halflife.encoders.rendered import NOTHING, Rendered, ages_in_words, parse
from halflife.errors import InputError

TEMPLATE = "{age} · {category} · {text}"


def rendered(
    data: DataModule, bert: Path, template: str = TEMPLATE, age: str = "days", most: int = 16
) -> Rendered:
    return Rendered(data.store, str(bert), template, age, max_tokens=most, lr=0.0)


def test_an_item_behind_its_age_is_tokenised_as_the_whole_sentence_is(
    small_log: DataModule, tiny_bert: Path
) -> None:
    encoder = rendered(small_log, tiny_bert, most=40)
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_bert))
    item = small_log.store.items.row(5, named=True)
    said = encoder.said(torch.tensor([3.2]))[0]
    ids = torch.cat([said, encoder.catalogue()[5]])
    sentence = f"3 days ago · {item['category']} · {item['text']}"
    assert ids[ids != NOTHING].tolist() == tokenizer(sentence, add_special_tokens=False)["input_ids"]


def test_a_batch_and_the_catalogue_hold_the_same_tokens(small_log: DataModule, tiny_bert: Path) -> None:
    encoder = rendered(small_log, tiny_bert)
    batch = Impressions(small_log.store, 20, "days", encoder.tokens)[small_log.rows("train")[:3]]
    ours, all_items = encoder(batch), encoder.catalogue()
    theirs = all_items[batch.item]
    width = ours.shape[1]
    assert torch.equal(ours, theirs[:, :width])
    assert (theirs[:, width:] == NOTHING).all()
    assert int((all_items != NOTHING).sum(1).max()) <= 16


@pytest.mark.parametrize(
    ("age", "days", "words"),
    [
        ("days", 0.01, "minutes ago"),
        ("days", 1.2 / 24, "1 hour ago"),
        ("days", 23.5 / 24, "23 hours ago"),
        ("days", 1.0, "1 day ago"),
        ("days", 13.9, "13 days ago"),
        ("days", 14.0, "2 weeks ago"),
        ("days", 60.0, "8 weeks ago"),
        ("days", 61.0, "2 months ago"),
        ("days", 731.0, "2 years ago"),
        ("days", 1e6, "30 years ago"),
        ("shuffled", 3.0, "3 days ago"),
        ("rank", 0.0, "newest click"),
        ("rank", 1.0, "1 click before"),
        ("rank", 7.0, "7 clicks before"),
        ("rank", 1e6, "199 clicks before"),
    ],
)
def test_an_age_is_said_in_the_unit_that_people_use(
    small_log: DataModule, tiny_bert: Path, age: str, days: float, words: str
) -> None:
    encoder = rendered(small_log, tiny_bert, age=age)
    encoder.words = torch.arange(len(encoder.words)).unsqueeze(1)  # the tiny tokenizer knows no numbers
    assert ["now", *ages_in_words(age)[0]][encoder.said(torch.tensor(days)).item()] == words


@pytest.mark.parametrize("age", ["days", "rank"])
def test_ages_grow_from_word_to_word(age: str) -> None:
    words, edges = ages_in_words(age)
    assert len(words) == len(set(words)) == len(edges) + 1
    assert edges == sorted(set(edges))
    assert edges[0] > 0


@pytest.mark.parametrize(
    "template",
    ["", "{age}", "news", "{text} {age}", "{age} {age} {text}", "{title}", "{text", "{text!r}", "{text:9}"],
)
def test_a_template_of_another_form_is_refused(template: str) -> None:
    with pytest.raises(InputError, match=r"^model\.template must be"):
        parse(template)


def test_a_template_without_age_says_none(small_log: DataModule, tiny_bert: Path) -> None:
    encoder = rendered(small_log, tiny_bert, "{category}: {text}")
    assert encoder.said(torch.tensor([[0.0, 9.0]])).shape == (1, 2, 0)


def test_another_template_has_tokens_of_its_own(make_log: Callable[..., DataModule], tiny_bert: Path) -> None:
    store = make_log().store
    lengths = [len(store.tokens(str(tiny_bert), 32, t)[0]) for t in ("{text}", " · {text}", None)]
    assert lengths[1] == lengths[0] + store.n_items
    assert lengths[2] == lengths[0] + 2 * store.n_items, "the text alone has [CLS] and [SEP]"
