"""Adressa: small days in the publisher's layout."""

import json
from pathlib import Path
from typing import Any

import pytest

from halflife.sources import adressa

FIRST = 1_483_225_227


def view(**changes: Any) -> str:
    record = {
        "profile": [{"item": "0", "groups": [{"count": 1, "group": "adressa.no", "weight": 1.0}]}],
        "eventId": 1010779906,
        "city": "trondheim",
        "userId": "cx:1hq3dqw8dfpnq1pz0zj2gr9dmy:24zrd6kvlfdjp",
        "url": "http://adressa.no/nyheter/trondheim/2016/12/31/article-14.ece",
        "id": "ac36f3fe",
        "title": "Gratulerer med dagen, Trondheim",
        "category1": "nyheter|trondheim",
        "publishtime": "2016-12-31T13:21:03.000Z",
        "time": FIRST,
        "activeTime": 12,
        "canonicalUrl": "http://adressa.no/nyheter/trondheim/2016/12/31/article-14.ece",
        "sessionStart": False,
    }
    return (
        json.dumps({k: v for k, v in (record | changes).items() if v is not None}, ensure_ascii=False) + "\n"
    )


def write(folder: Path, *days: str) -> list[Path]:
    for number, text in enumerate(days, start=1):
        (folder / f"2017010{number}").write_text(text)
    (folder / "README").write_text("read me")
    return sorted(folder.iterdir())


def test_page_views_of_articles_are_events_and_the_first_title_is_kept(tmp_path, read, rows):
    one = view() + view(id=None, title=None, category1=None, publishtime=None, url="http://adressa.no")
    two = view(time=FIRST + 86_400, activeTime=None, title="Retitled", userId="b") + view(title=None, id="x")
    tables = read("adressa", write(tmp_path, one, two))
    assert rows(tables) == {
        "items": [("ac36f3fe", "Gratulerer med dagen, Trondheim", "nyheter", 1_483_190_463)],
        "events": [
            ("b", "ac36f3fe", FIRST + 86_400, "view", None),
            ("cx:1hq3dqw8dfpnq1pz0zj2gr9dmy:24zrd6kvlfdjp", "ac36f3fe", FIRST, "view", 12.0),
        ],
        "impressions": [],
    }
    assert tables.dropped == {adressa.NO_ARTICLE: 1, adressa.NO_TITLE: 1}
    assert tables.has_dwell


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (view(time="soon"), ["time in", "20170101 line 2", "'soon'"]),
        (view(userId=""), ["userId in", "20170101 line 2"]),
        (view(publishtime="yesterday"), ["publishtime in", "20170101 line 2", "'yesterday'"]),
        (view()[:70] + "\n", ["20170101 line 2", "JSON object"]),
    ],
)
def test_a_bad_line_is_named(line, parts, tmp_path, read, refused):
    message = refused(lambda: read("adressa", write(tmp_path, view() + line)))
    for part in parts:
        assert part in message


def test_a_folder_without_days_is_refused(tmp_path, read, refused):
    assert "named by a day such as 20170101, got README" in refused(lambda: read("adressa", write(tmp_path)))
