"""Amazon Reviews: what customers reviewed, in any category, of the 2018 and the 2023 release."""

import json
from pathlib import Path
from typing import NamedTuple

import polars as pl

from halflife.errors import InputError, listed, number
from halflife.sources import templates
from halflife.sources.download import Remote
from halflife.sources.rows import scan_json_lines
from halflife.sources.text_files import Rule, lines
from halflife.tables import Tables

LOW_RATING = "reviews below min_rating"
TWICE = "products listed twice"


class _Release(NamedTuple):
    """What a release calls its fields, and how many of its time units are a second."""

    user: str
    item: str
    stars: str
    time: str
    per_second: int
    brand: str
    features: str
    categories: str


_2018 = _Release("reviewerID", "asin", "overall", "unixReviewTime", 1, "brand", "feature", "category")
_2023 = _Release("user_id", "parent_asin", "rating", "timestamp", 1000, "store", "features", "categories")


def read(files: list[Path], min_rating: float, text: str) -> Tables:
    """Amazon Reviews 2018 or 2023: the reviews of one or more categories and their meta_ files.

    The log holds the time of every review: the millisecond in 2023, the day alone in 2018, where all reviews
    of a day are one basket. A review is not a purchase: it comes days or weeks later. It holds no impressions
    (negatives are sampled). Variants of a product are one item in 2023 (parent_asin), each its own in 2018.

    Args:
        files: CATEGORY.jsonl.gz and meta_CATEGORY.jsonl.gz of 2023, or .json.gz of 2018, as published or
            unpacked; the release is told by the fields of the first line.
        min_rating: a review is an event from this many stars up, in [1, 5].
        text: template over title, brand, features, description and categories.

    Returns:
        Lazy tables; an event's value is its stars. A product's category is the second, finer one of its
        categories. Products that are listed twice keep their first line.

    Raises:
        InputError: for a malformed file, named with its line, or reviews without their meta_ file.

    Licence: for research (amazon-reviews-2023.github.io, nijianmo.github.io/amazon).
    Source: Hou et al., Bridging Language and Items for Retrieval and Recommendation (arXiv:2403.03952);
    Ni et al., Justifying Recommendations using Distantly-Labeled Reviews (EMNLP 2019).
    """
    min_rating = number("data.source.min_rating", min_rating, "stars", at_least=1, at_most=5)
    logs = [f for f in files if ".json" in f.name and not f.name.startswith("meta_")]
    metas = [f for f in files if ".json" in f.name and f.name.startswith("meta_")]
    if not logs or not metas:
        got = ", ".join(f.name for f in files[:10]) or "no files"
        raise InputError(
            "data.files must hold reviews (CATEGORY.jsonl.gz) and products (meta_CATEGORY.jsonl.gz), got "
            f"{got}; add the other file of the category"
        )
    products = pl.concat([_products(file, text) for file in metas])
    items = products.unique("item_id", keep="first", maintain_order=True).collect()
    reviews = pl.concat([_reviews(file) for file in logs])
    low = reviews.select((pl.col("value") < min_rating).sum()).collect(engine="streaming").item()
    return Tables(
        items=items,
        events=reviews.filter(pl.col("value") >= min_rating),
        impressions=None,
        has_click_times=True,
        dropped={
            LOW_RATING: low,
            TWICE: products.select(pl.len()).collect(engine="streaming").item() - len(items),
        },
    )


def _release(file: Path, field: str) -> _Release:
    """The release of a file, by whether its first line has the field that 2023 calls so."""
    try:
        first = json.loads(next(lines(file)))
    except ValueError:
        return _2023  # the check of all lines says what is wrong with this one
    return _2023 if field in first else _2018


def _reviews(file: Path) -> pl.LazyFrame:
    """Every review of one file."""
    of = _release(file, _2023.user)
    rows = scan_json_lines(file, [of.user, of.item, of.stars, of.time], [])
    stars = pl.col(of.stars).cast(pl.Float32, strict=False)
    moment = pl.col(of.time).cast(pl.Int64, strict=False)
    rows.check(
        [
            Rule(of.user, pl.col(of.user).str.len_bytes() > 0, "be filled in"),
            Rule(of.item, pl.col(of.item).str.len_bytes() > 0, "be filled in"),
            Rule(of.stars, stars.is_between(0, 5), "be a number from 0 to 5 (stars)"),
            Rule(
                of.time,
                (moment >= 0) & (moment < 10**11 * of.per_second),
                f"be a whole number (Unix {'milliseconds' if of.per_second > 1 else 'seconds'})",
            ),
        ]
    )
    return rows.frame.select(
        user_id=of.user,
        item_id=of.item,
        timestamp_s=moment // of.per_second,
        kind=pl.lit("review"),
        value=stars,
    )


def _products(file: Path, text: str) -> pl.LazyFrame:
    """Every product of one meta_ file."""
    of = _release(file, _2023.item)
    lists = [of.features, "description", of.categories]
    rows = scan_json_lines(file, [of.item, "title", of.brand, *lists], lists)
    rows.check([Rule(of.item, pl.col(of.item).str.len_bytes() > 0, "be filled in")])
    kinds = pl.col(of.categories)
    category = pl.coalesce(kinds.list.get(1, null_on_oob=True), kinds.list.first(), pl.lit("unknown"))
    named = rows.frame.select(
        pl.col(of.item).alias("item_id"),
        "title",
        pl.col(of.brand).alias("brand"),
        pl.col(of.features).list.join(". ", ignore_nulls=True).alias("features"),
        pl.col("description").list.join(" ", ignore_nulls=True),
        kinds.list.join(", ", ignore_nulls=True).alias("categories"),
        category.alias("category"),
    )
    names = ["title", "brand", "features", "description", "categories"]
    return named.select(
        "item_id",
        text=templates.fill("data.source.text", text, names),
        category="category",
        published_s=pl.lit(None, dtype=pl.Int64),
    )


def remote(categories: list[str]) -> list[Remote]:
    """The reviews and products of categories of 2023; the publisher tells no checksums.

    Args:
        categories: as the publisher spells them, such as All_Beauty.
    """
    site = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw"
    return [
        Remote(f"{site}/{folder}/{before}{category}.jsonl.gz", None)
        for category in listed("data.remote.categories", categories, "categories")
        for folder, before in (("review_categories", ""), ("meta_categories", "meta_"))
    ]
