"""Vectors that come with the items: matched by id and streamed into one mapped array."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from halflife.errors import InputError
from halflife.tables import Tables

Array = NDArray[Any]

CELLS = 4_000_000  # numbers that are looked at together
STRANGERS = "item vectors of ids that are not in the catalogue"
AGAIN = "item vectors of ids that had one before"


class Match:
    """Which items the id of a vector stands for: the item of this id, and those about the entity of this id.

    Args:
        item_id: the catalogue in the order of the Store.
        entities: `item_id, entity_id`, several rows an item, or None.
    """

    def __init__(self, item_id: pl.Series, entities: pl.LazyFrame | pl.DataFrame | None) -> None:
        links = own = pl.DataFrame({"id": item_id, "row": np.arange(len(item_id))})
        if entities is not None:
            about = entities.lazy().join(own.lazy(), left_on="item_id", right_on="id")
            about = about.select(id=pl.col("entity_id").cast(pl.String), row="row").drop_nulls()
            links = pl.concat([own, about.collect(engine="streaming")]).unique()
        links = links.sort("id", "row")
        each = links.group_by("id", maintain_order=True).len()
        self.ids, self.row = pl.Enum(each["id"]), links["row"].to_numpy()
        self.start = np.r_[0, np.cumsum(each["len"].to_numpy().astype(np.int64))]
        self.taken = np.zeros(len(each), bool)
        self.strangers = self.again = 0
        self.stranger = ""

    def of(self, given: pl.Series) -> tuple[Array, Array]:
        """Rows of some ids that count, one for each of its items, and these items.

        An id that is none, or was here before, is counted and has no row.
        """
        code = given.cast(self.ids, strict=False).to_physical()
        known = np.flatnonzero(code.is_not_null().to_numpy())
        if len(known) < len(given):
            self.strangers += len(given) - len(known)
            self.stranger = self.stranger or given.filter(code.is_null())[0]
        place = code.fill_null(0).to_numpy()[known].astype(np.int64)
        _, first = np.unique(place, return_index=True)
        first = np.sort(first[~self.taken[place[first]]])
        self.again += len(known) - len(first)
        known, place = known[first], place[first]
        self.taken[place] = True
        each = self.start[place + 1] - self.start[place]
        at = np.repeat(self.start[place] - (np.cumsum(each) - each), each) + np.arange(int(each.sum()))
        return np.repeat(known, each), self.row[at]


def write(log: Tables, item_id: pl.Series, directory: Path) -> tuple[dict[str, int] | None, dict[str, int]]:
    """Write `item_vector` (items, V) and `item_vector_mask` (items,), where the log has vectors.

    An item's vector is the mean of those of its id and of its entities': Σ_k x_k / n, over the n that are
    there. Where an id comes twice, the first counts. An item without any is 0, and False in the mask.

    Args:
        log: its `vectors` and `entities` are read, the vectors as a stream.
        item_id: the catalogue in the order of the Store.
        directory: where the arrays go.

    Returns:
        how many numbers a vector holds and how many items have one, None without vectors; and the rows that
        were left out, by reason.

    Raises:
        InputError: for vectors of unlike length, not of finite numbers, or of none of the log's items.
    """
    if log.vectors is None:
        return None, {}
    item, vector = pl.col("item_id").cast(pl.String), pl.col("vector").cast(pl.List(pl.Float32))
    given = log.vectors.lazy().select(item, vector).drop_nulls()
    first = given.select(pl.col("vector").list.len()).head(1).collect(engine="streaming").to_series()
    width = int(first.sum())
    if width == 0:
        raise InputError("data.vectors must hold at least 1 vector, got none; leave it out")
    match, rows = Match(item_id, log.entities), max(1, CELLS // width)
    out = open_memmap(directory / "item_vector.npy", mode="w+", dtype=np.float32, shape=(len(item_id), width))
    count = np.zeros(len(item_id), np.int64)
    for batch in given.collect_batches(chunk_size=rows, maintain_order=True, engine="streaming"):
        vectors = _checked(batch, width)
        source, target = match.of(batch["item_id"])
        if log.entities is None:  # each item once
            out[target] = vectors[source]
        else:
            for low in range(0, len(target), rows):
                part = slice(low, low + rows)
                np.add.at(out, target[part], vectors[source[part]])  # in order, wherever the stream was cut
        count += np.bincount(target, minlength=len(count))
    if not count.any():
        raise InputError(
            f"data.vectors must hold vectors of the log's items, got none among {match.strangers} ids, such "
            f"as {match.stranger} beside the item {item_id[0]}; give vectors and items the same ids"
        )
    for low in range(0, len(count) if count.max() > 1 else 0, rows):
        out[low : low + rows] /= np.maximum(count[low : low + rows, None], 1).astype(np.float32)
    out.flush()
    np.save(directory / "item_vector_mask.npy", count > 0)
    dropped = {STRANGERS: match.strangers, AGAIN: match.again}
    about = {"dimension": width, "items": int((count > 0).sum())}
    return about, {reason: n for reason, n in dropped.items() if n}


def _checked(batch: pl.DataFrame, width: int) -> Array:
    """The vectors of some rows, (rows, V), each of finite numbers."""
    odd = (batch["vector"].list.len() != width).arg_true()
    if len(odd):
        raise InputError(
            f"data.vectors must hold {width} numbers a row, got {batch['vector'].list.len()[odd[0]]} for "
            f"{batch['item_id'][odd[0]]}; give vectors of one length"
        )
    vectors = batch["vector"].explode().to_numpy().reshape(-1, width)
    bad = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(bad):
        raise InputError(
            f"data.vectors must hold finite numbers, got another value for {batch['item_id'][int(bad[0])]}; "
            "correct the row or leave it out"
        )
    return vectors
