"""Amazon Reviews: small categories in the layouts of 2018 and 2023."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from halflife.sources import amazon

MS = 1_588_687_728_923


def review_2023(**changes: Any) -> dict[str, Any]:
    return {
        "rating": 5.0,
        "title": "Such a lovely scent",
        "text": "This spray is really nice.",
        "images": [],
        "asin": "B00YQ6X8EO",
        "parent_asin": "B0",
        "user_id": "AGKHLEW2SOWHNMFQIJGBECAF7INQ",
        "timestamp": MS,
        "helpful_vote": 0,
        "verified_purchase": True,
    } | changes


def product_2023(**changes: Any) -> dict[str, Any]:
    return {
        "main_category": "All Beauty",
        "title": "Howard LC0008 Leather Conditioner",
        "average_rating": 4.8,
        "rating_number": 10,
        "features": ["Soft", "Clean"],
        "description": [],
        "price": None,
        "images": [{"thumb": "https://m"}],
        "videos": [],
        "store": "Howard Products",
        "categories": ["Beauty", "Leather Care"],
        "details": {"UPC": "617390882781"},
        "parent_asin": "B0",
        "bought_together": None,
    } | changes


def review_2018(**changes: Any) -> dict[str, Any]:
    return {
        "overall": 4.0,
        "verified": True,
        "reviewTime": "09 1, 2016",
        "reviewerID": "A3CIUOJXQ5VDQ2",
        "asin": "B0000530HU",
        "style": {"Size:": " 7.0 oz"},
        "reviewerName": "Shelly F",
        "reviewText": "As advertised.",
        "summary": "Five Stars",
        "unixReviewTime": 1_472_688_000,
    } | changes


def product_2018(**changes: Any) -> dict[str, Any]:
    return {
        "category": ["Beauty"],
        "tech1": "",
        "description": ["Nice."],
        "fit": "",
        "title": "Aqua Velva",
        "also_buy": [],
        "brand": "Aqua",
        "feature": [],
        "rank": "2,938,573 in Beauty",
        "date": "5 star",
        "asin": "B0000530HU",
    } | changes


def write(folder: Path, files: dict[str, list[dict[str, Any]]]) -> list[Path]:
    for name, data in files.items():
        body = "".join(json.dumps(row) + "\n" for row in data).encode()
        (folder / name).write_bytes(gzip.compress(body) if name.endswith(".gz") else body)
    return sorted(folder.iterdir())


def test_the_release_of_2023_reads_parents_and_milliseconds(tmp_path, read, rows):
    reviews = [review_2023(), review_2023(rating=3.0), review_2023(user_id="B", timestamp=MS + 1000)]
    products = [
        product_2023(),
        product_2023(title="again"),
        product_2023(parent_asin="B1", categories=[], store=None),
    ]
    tables = read("amazon", write(tmp_path, {"X.jsonl.gz": reviews, "meta_X.jsonl.gz": products}))
    assert rows(tables) == {
        "items": [
            ("B0", "Howard LC0008 Leather Conditioner. Howard Products", "Leather Care", None),
            ("B1", "Howard LC0008 Leather Conditioner", "unknown", None),
        ],
        "events": [
            ("AGKHLEW2SOWHNMFQIJGBECAF7INQ", "B0", MS // 1000, "review", 5.0),
            ("B", "B0", MS // 1000 + 1, "review", 5.0),
        ],
        "impressions": [],
    }
    assert tables.dropped == {amazon.LOW_RATING: 1, amazon.TWICE: 1}


def test_the_release_of_2018_reads_seconds_and_its_own_names(tmp_path, read, rows):
    files = write(tmp_path, {"All_Beauty.json.gz": [review_2018()], "meta_All_Beauty.json": [product_2018()]})
    got = rows(read("amazon", files, {"text": "{title}. {description}"}))
    assert got["items"] == [("B0000530HU", "Aqua Velva. Nice.", "Beauty", None)]
    assert got["events"] == [("A3CIUOJXQ5VDQ2", "B0000530HU", 1_472_688_000, "review", 4.0)]


@pytest.mark.parametrize(
    ("bad", "parts"),
    [
        (review_2023(rating=None), ["rating in", "X.jsonl.gz line 2", "got nothing"]),
        (review_2023(rating=11), ["rating in", "line 2", "'11'"]),
        (review_2023(timestamp="2020"), None),
        (review_2023(timestamp=-1), ["timestamp in", "line 2", "Unix milliseconds"]),
        (review_2023(user_id=""), ["user_id in", "line 2"]),
    ],
)
def test_a_bad_line_is_named(bad, parts, tmp_path, read, refused):
    files = write(tmp_path, {"X.jsonl.gz": [review_2023(), bad], "meta_X.jsonl.gz": [product_2023()]})
    if parts is None:  # a number is a number, quoted or not
        read("amazon", files)
        return
    message = refused(lambda: read("amazon", files))
    for part in parts:
        assert part in message


def test_a_category_without_its_products_is_refused(tmp_path, read, refused):
    files = write(tmp_path, {"X.jsonl.gz": [review_2023()]})
    assert "meta_CATEGORY.jsonl.gz" in refused(lambda: read("amazon", files))
