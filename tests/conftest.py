"""What several rooms test with: a small newsroom log, and a tiny BERT that needs no download."""

import json
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# nothing here may wait for a network that a test machine does not have; set before transformers is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
# the tensors of tests are small, and threads that wait for each other cost half as much again
os.environ.setdefault("OMP_NUM_THREADS", "1")

from halflife.datamodule import DataModule
from halflife.sources import synthetic
from halflife.sources.newsroom import TAILS, TOPICS

# a busy machine is no failure: tests time nothing
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

NEWSROOM = {
    "users": 60,
    "items": 48,
    "days": 30.0,
    "sessions_per_day": 0.5,
    "candidates": 4,
    "kernel": "exponential",
    "half_life_days": 5.0,
    "half_life_sd": 0.0,
    "composition": "sink",
    "strength": 7.0,
    "bias": -3.0,
    "drift_days": 12.0,
    "seed": 1,
}
"""Settings of the small log: a few hundred impressions, made in well under a second."""

TEXT: dict[str, Any] = {
    "quantize": None,
    "pooling": "mean",
    "dim": 8,
    "max_tokens": 16,
    "lr": 0.001,
    "chunk_tokens": 1024,
    "keep_tokens": 32768,
    "packed": True,
    "gradient_checkpointing": False,
    "compile": False,
    "reuse_steps": 0,
    "reuse_rise_steps": 1,
}
"""Settings of a TextEncoder, but for what it encodes, with which model, and where vectors are kept."""

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

SMALL_LOG = ["data.source.users=80", "data.source.items=48", "data.source.days=30", "data.batch_size=64"]


def metrics(directory: Path) -> dict[str, Any]:
    """What a run wrote into metrics.json, but for times and memory."""
    found: dict[str, Any] = json.loads((directory / "metrics.json").read_text())
    return {k: v for k, v in found.items() if not k.startswith(("speed/", "memory/"))}


@pytest.fixture(scope="session")
def newsroom() -> dict[str, Any]:
    """The settings of `synthetic.read` behind `small_log`; a copy, free to change."""
    return dict(NEWSROOM)


@pytest.fixture(scope="session")
def make_log(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., DataModule]:
    """Make a DataModule over a small newsroom: `make_log(max_history=5, source={"seed": 2})`.

    Stores are shared between tests, since a Store is found by its settings; the DataModule is new every time.
    """
    cache = tmp_path_factory.mktemp("cache")

    def make(source: dict[str, Any] | None = None, **changes: Any) -> DataModule:
        given: dict[str, Any] = {
            "source": partial(synthetic.read, **(NEWSROOM | (source or {}))),
            "root": None,
            "files": [],
            "cache_dir": str(cache),
            "negatives": None,
            "split": {"val": 0.15, "test": 0.15},
            "age": "days",
            "max_history": 20,
            "min_history": 1,
            "batch_size": 32,
            "batch_tokens": None,
            "eval_batch_size": 64,
            "targets_per_history": 1,
            "num_workers": 0,
            "seed": 1,
        }
        return DataModule(**(given | changes))

    return make


@pytest.fixture
def small_log(make_log: Callable[..., DataModule]) -> DataModule:
    """A log of 60 readers; its Store is built once a session, the DataModule is the test's own."""
    return make_log()


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as `save_pretrained` leaves it: a random BERT of 2 layers and width 32, and a tokenizer of
    the newsroom's words.
    """
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("tiny-bert")
    texts = [text for part in TOPICS.values() for choices in part for text in choices] + TAILS
    bert_words = pre_tokenizers.BertPreTokenizer()
    words = sorted({w for text in texts for w, _ in bert_words.pre_tokenize_str(text.lower())})
    letters = sorted({c for w in words for c in w})
    pieces = [*SPECIAL, *letters, *(f"##{c}" for c in letters), *(w for w in words if w not in letters)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}

    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = bert_words
    cls, sep = ("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])
    backend.post_processor = processors.BertProcessing(sep, cls)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=64,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    tokenizer.save_pretrained(str(directory))
    (directory / "vocab.json").write_text(json.dumps(vocabulary))

    with torch.random.fork_rng(devices=[]):  # the same weights in every session, and no test's draws moved
        torch.manual_seed(0)
        model = BertModel(
            BertConfig(
                vocab_size=len(pieces),
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                max_position_embeddings=64,
            )
        )
    model.save_pretrained(str(directory))
    return directory


@pytest.fixture(scope="session")
def wandb_records() -> Callable[[Path], list[Any]]:
    """Read a `.wandb` file back: W&B's own protobuf messages in the records of LevelDB's log format.

    A header of 7 bytes, then blocks of 32 KiB, in which a record is a checksum (4 bytes), a length (2), a
    kind (1: whole, 2: first, 3: middle, 4: last) and its content. Source: LevelDB, doc/log_format.md.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    def read(path: Path) -> list[Any]:
        for _ in range(100):  # W&B's own process may still be writing when the run is finished here
            found = records(path.read_bytes())
            if found and found[-1].WhichOneof("record_type") == "exit":
                break
            time.sleep(0.2)
        return found

    def records(content: bytes) -> list[Any]:
        assert content[:4] == b":W&B"
        found, whole, at = [], b"", 7
        while at + 7 <= len(content):
            left = 32768 - at % 32768
            if left < 7:  # too short for a header: padding
                at += left
                continue
            length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
            if at + 7 + length > len(content):  # not written to its end yet
                break
            whole += content[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):
                found.append(Record.FromString(whole))
                whole = b""
        return found

    return read


@pytest.fixture(scope="session")
def tiny_gpt(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for a decoder: a random Llama of 2 layers and width 32, with that tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    directory = tmp_path_factory.mktemp("tiny-gpt")
    for file in tiny_bert.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            shutil.copy(file, directory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaModel(
            LlamaConfig(
                vocab_size=json.loads((tiny_bert / "config.json").read_text())["vocab_size"],
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                intermediate_size=64,
                max_position_embeddings=64,
            )
        )
    model.save_pretrained(str(directory))
    return directory
