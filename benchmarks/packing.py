"""Texts on end against padded rows of like length: tokens/s of a forward and backward, on GPU or processor.

`model.packed` and `model.chunk_tokens` are set by what this prints. Models have random weights of known
shapes; lengths of texts are drawn as titles (3 to 24 tokens, 14 on average) and as abstracts (10 to 250, 80
on average). On a GPU the work is done in bf16, as trainer=gpu does; on a processor in float32.

    python benchmarks/packing.py --json packing.json
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from halflife import tracking
from halflife.encoders import packing, pooling
from halflife.encoders.chunks import encode
from halflife.progress import bar

SHAPES = {  # hidden size, blocks, heads, of the feed-forward
    "MiniLM, 6 blocks of 384": (384, 6, 12, 1536),
    "BERT-base, 12 blocks of 768": (768, 12, 12, 3072),
}
TEXTS = {"titles": (3, 24, 14.0), "abstracts": (10, 250, 80.0)}  # shortest, longest, mean, in tokens
CHUNKS = {"cuda": [1024, 32768], "cpu": [1024]}
TOKENS = {"cuda": 32768, "cpu": 4096}  # of a step
REPEATS = 5
WARM_UP = 2  # steps of either way that are not counted


def lengths(kind: str, tokens: int) -> Tensor:
    """Lengths of texts with so many tokens in all, drawn log-normal."""
    shortest, longest, mean = TEXTS[kind]
    drawn = np.random.default_rng(1).lognormal(np.log(mean) - 0.18, 0.6, size=tokens)
    length = torch.from_numpy(drawn.round().clip(shortest, longest).astype(np.int64))
    return length[: int((length.cumsum(0) <= tokens).sum())]


def model(shape: tuple[int, int, int, int], device: str) -> Any:
    """A BERT with random weights."""
    from transformers import BertConfig, BertModel

    width, blocks, heads, feed_forward = shape
    config = BertConfig(
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        intermediate_size=feed_forward,
    )
    return BertModel(config, add_pooling_layer=False).to(device).train()


def step(backbone: Any, tokens: Tensor, length: Tensor, chunk_tokens: int, packed: bool) -> float:
    """Seconds of one forward and backward over all the texts."""
    gpu = tokens.is_cuda
    if gpu:
        torch.cuda.synchronize()
    since = time.perf_counter()
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=gpu):
        found = encode(backbone, pooling.mean, tokens, length, chunk_tokens, len(tokens), packed)
    found.float().pow(2).sum().backward()
    backbone.zero_grad()
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - since


def measured(device: str, shapes: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each model, kind of text and chunk; both ways in turn, so that what else runs slows both."""
    cells = [(s, t, c) for s in shapes for t in TEXTS for c in CHUNKS[device]]
    for shape, texts, chunk_tokens in bar(cells, "packing"):
        backbone = model(SHAPES[shape], device)
        packing.prepare(backbone, TEXTS[texts][1])
        length = lengths(texts, TOKENS[device]).to(device)
        tokens = torch.randint(1000, 30000, (int(length.sum()),), device=device)
        found: dict[bool, list[float]] = {False: [], True: []}
        for i in range(REPEATS + WARM_UP):
            for packed, rates in found.items():
                seconds = step(backbone, tokens, length, chunk_tokens, packed)
                if i >= WARM_UP:
                    rates.append(len(tokens) / seconds)
        row = {"model": shape, "texts": texts, "chunk_tokens": chunk_tokens}
        yield row | {"padded_rows": found[False], "on_end": found[True]}


def table_of(rows: list[dict[str, Any]], device: str) -> Table:
    """Medians with ranges, and the ratio of the two ways."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    table = Table(title=f"Forward and backward, {name}")
    for column in ("model", "texts", "chunk_tokens", "padded rows, tokens/s", "on end, tokens/s", "ratio"):
        table.add_column(column, justify="left" if column in ("model", "texts") else "right")
    for row in rows:
        rates = [row["padded_rows"], row["on_end"]]
        middle = [statistics.median(r) for r in rates]
        cells = [f"{m:,.0f} [{min(r):,.0f}, {max(r):,.0f}]" for m, r in zip(middle, rates, strict=True)]
        ratio = f"{middle[1] / middle[0]:.2f}"
        table.add_row(row["model"], row["texts"], f"{row['chunk_tokens']:,}", *cells, ratio)
    return table


def main() -> None:
    """Measure, print the table, write the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="models")
    given = parser.parse_args()
    if given.json is not None and not given.json.absolute().parent.is_dir():
        parser.error(f"--json must be a file in a directory that exists, got {given.json}")
    tracking.quiet()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for row in measured(device, given.shapes):
        rows.append(row)
        if given.json is not None:
            temporary = given.json.with_name(given.json.name + ".tmp")
            temporary.write_text(json.dumps(rows, indent=2) + "\n")
            temporary.replace(given.json)
    tracking.console().print(table_of(rows, device))


if __name__ == "__main__":
    main()
