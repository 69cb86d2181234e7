"""KuaiRand: small files in the publisher's layout."""

from pathlib import Path

import pytest

from halflife.sources import kuairand

LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
)
VIDEOS = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
    "music_id,music_type,tag\n"
    '1,441,NORMAL,2022-04-01,ShortImport,1.0,17200.0,720,1280,989206467,4.0,"12,65"\n'
    "2,441,AD,,ShortImport,1.0,17200.0,720,1280,989206467,4.0,\n"
)
MS = 1_650_485_801_301


def show(user: int, video: int, ms: int, click: int, long: int, rand: int, play: int = 1500) -> str:
    return f"{user},{video},20220421,400,{ms},{click},0,0,0,0,0,{long},{play},104400,0,0,0,{rand},1\n"


STANDARD = show(1, 1, MS, 1, 0, 0) + show(1, 2, MS + 60_000, 0, 0, 0) + show(2, 9, MS, 1, 1, 0)
RANDOM = show(1, 1, MS + 90_000, 1, 1, 1, 30_000)


def write(folder: Path, standard: str = STANDARD, random: str = RANDOM) -> list[Path]:
    (folder / "data").mkdir(exist_ok=True)
    texts = {
        "log_standard_4_08_to_4_21_pure.csv": LOG + standard,
        "log_random_4_22_to_5_08_pure.csv": LOG + random,
        "video_features_basic_pure.csv": VIDEOS,
        "user_features_pure.csv": "user_id\n1\n",
    }
    for name, text in texts.items():
        (folder / "data" / name).write_text(text)
    return sorted((folder / "data").iterdir())


def test_every_show_is_an_impression_and_every_click_an_event(tmp_path, read, rows):
    tables = read("kuairand", write(tmp_path, STANDARD + show(1, 1, MS, 1, 0, 0)))
    got = rows(tables)
    s = MS // 1000
    assert [row[1:] for row in got["impressions"]] == [
        ("1", s, ["1"], [1]),
        ("1", s + 90, ["1"], [1]),
        ("1", s + 60, ["2"], [0]),
    ]
    assert got["events"] == [("1", "1", s, "click", 1.5), ("1", "1", s + 90, "click", 30.0)]
    assert got["items"] == [
        ("1", "NORMAL 12 65", "tag 12", 1_648_771_200),
        ("2", "AD", "unknown", None),
    ]
    assert tables.dropped == {kuairand.REPEATED: 1, kuairand.UNKNOWN_VIDEO: 1}


def test_another_answer_counts_and_random_shows_alone_are_asked(tmp_path, read, rows):
    got = rows(read("kuairand", write(tmp_path), {"label": "long_view", "random_alone": True}))
    assert [row[2:] for row in got["impressions"]] == [(MS // 1000 + 90, ["1"], [1])]
    assert [(e[1], e[3]) for e in got["events"]] == [("1", "long_view")]


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        (show(1, 1, MS // 1000, 1, 0, 0), ["time_ms in", "line 2", "Unix milliseconds"]),
        (show(1, 1, MS, 3, 0, 0), ["is_click in", "line 2", "'3'"]),
        (show(1, 1, MS, 1, 0, 7), ["is_rand in", "line 2"]),
        (show(1, 1, MS, 1, 0, 0, -1), ["play_time_ms in", "line 2", "'-1'"]),
        ("1,2,3\n", ["line 2", "19 fields", "got 3"]),
    ],
)
def test_a_bad_row_is_named(row, parts, tmp_path, read, refused):
    message = refused(lambda: read("kuairand", write(tmp_path, row)))
    for part in ["log_standard_4_08_to_4_21_pure.csv", *parts]:
        assert part in message


def test_files_that_are_missing_and_unknown_answers_are_named(tmp_path, read, refused):
    files = write(tmp_path)
    assert "video_features_basic_*.csv" in refused(lambda: read("kuairand", files[:2]))
    assert "data.source.label" in refused(lambda: read("kuairand", files, {"label": "is_hated"}))
