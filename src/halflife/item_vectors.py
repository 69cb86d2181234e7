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


def write(log: Tables, item_id: pl.Series, directory: Path) -> tuple[dict[str, int] | None, dict[str, int]]:
    """Write `item_vector` (items, V) and `item_vector_mask` (items,), where the log has vectors.

    An item's vector is that of its id, or the mean of those of its entities: Σ_e x_e / n over the n entities
    that have one. Where an id comes twice, the first counts. An item without any is 0, and False in the mask.

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
    given = log.vectors.lazy().select(
        pl.col("item_id").cast(pl.String), pl.col("vector").cast(pl.List(pl.Float32))
    )
    given = given.drop_nulls()
    dimension = given.select(pl.col("vector").list.len()).head(1).collect(engine="streaming")
    if len(dimension) == 0 or dimension.item() == 0:
        raise InputError("data.vectors must hold at least 1 vector, got none; leave it out")
    width = int(dimension.item())
    ids, start, row = _targets(item_id, log.entities)
    out = open_memmap(directory / "item_vector.npy", mode="w+", dtype=np.float32, shape=(len(item_id), width))
    count, taken = np.zeros(len(item_id), np.int64), np.zeros(len(ids), bool)
    places, strangers, again, stranger = pl.Enum(ids), 0, 0, ""
    rows = max(1, CELLS // width)
    for batch in given.collect_batches(chunk_size=rows, maintain_order=True, engine="streaming"):
        vectors = _checked(batch, width)
        code = batch["item_id"].cast(places, strict=False).to_physical()
        known = np.flatnonzero(code.is_not_null().to_numpy())
        if len(known) < len(batch):
            strangers += len(batch) - len(known)
            stranger = stranger or batch["item_id"].filter(code.is_null())[0]
        place = code.fill_null(0).to_numpy()[known].astype(np.int64)
        _, first = np.unique(place, return_index=True)
        first = np.sort(first[~taken[place[first]]])
        again += len(known) - len(first)
        known, place = known[first], place[first]
        taken[place] = True
        each = start[place + 1] - start[place]
        source = np.repeat(known, each)
        target = row[np.repeat(start[place] - (np.cumsum(each) - each), each) + np.arange(int(each.sum()))]
        if log.entities is None:
            out[target] = vectors[source]
        for low in range(0, len(target) if log.entities is not None else 0, rows):
            part = slice(low, low + rows)
            np.add.at(out, target[part], vectors[source[part]])  # in order, wherever the stream was cut
        count += np.bincount(target, minlength=len(count))
    if not count.any():
        raise InputError(
            f"data.vectors must hold vectors of the log's items, got none among {strangers} ids, such as "
            f"{stranger} beside the item {item_id[0]}; give vectors and items the same ids"
        )
    for low in range(0, len(count) if count.max() > 1 else 0, rows):
        out[low : low + rows] /= np.maximum(count[low : low + rows, None], 1).astype(np.float32)
    out.flush()
    np.save(directory / "item_vector_mask.npy", count > 0)
    dropped = {STRANGERS: strangers, AGAIN: again}
    return {"dimension": width, "items": int((count > 0).sum())}, {k: n for k, n in dropped.items() if n}


def _targets(
    item_id: pl.Series, entities: pl.LazyFrame | pl.DataFrame | None
) -> tuple[pl.Series, Array, Array]:
    """Ids that a vector may have, sorted, and the items that each is of, as ranges of the last: items by
    their own id, and by that of their entities.
    """
    own = pl.DataFrame({"id": item_id, "row": np.arange(len(item_id))})
    links = own
    if entities is not None:
        about = entities.lazy().join(own.lazy(), left_on="item_id", right_on="id")
        about = about.select(id=pl.col("entity_id").cast(pl.String), row="row").drop_nulls()
        links = pl.concat([own, about.collect(engine="streaming")]).unique()
    links = links.sort("id", "row")
    each = links.group_by("id", maintain_order=True).len()
    start = np.r_[0, np.cumsum(each["len"].to_numpy().astype(np.int64))]
    return each["id"], start, links["row"].to_numpy()


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
