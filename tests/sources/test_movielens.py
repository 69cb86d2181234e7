"""MovieLens: small files in the publisher's layout, and the real small log where it is at hand."""

import gzip
import os
from pathlib import Path

import polars as pl
import pytest

from halflife.sources import movielens
from halflife.tables import EVENT_COLUMNS, ITEM_COLUMNS, check_columns
from tests.refusals import refusal

SHARED = Path(os.environ.get("HALFLIFE_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
REAL = SHARED / "movielens-latest-small"
DAY = 86_400

MOVIES = """movieId,title,genres
1,Toy Story (1995),Adventure|Animation
2571,"Matrix, The (1999)",Action|Sci-Fi|Thriller
58,"Postman, The (Postino, Il) (1994)",Comedy
293,"Léon: The Professional (a.k.a. Professional, The) (Léon) (1994)",Action
7,"Avventura, L' (Adventure, The) (1960)",Drama
8,"Good, the Bad and the Ugly, The (Buono, il brutto, il cattivo, Il) (1966)",Western
9,"11'09""01 - September 11 (2002)",(no genres listed)
"""
RATINGS = f"""userId,movieId,rating,timestamp
1,1,4.0,1000000000
1,2571,3.5,{1_000_000_000 + 7 * DAY}
1,58,5.0,{1_000_000_000 + 3 * DAY}
2,1,5.0,1000000000
2,58,5.0,1000000060
3,1,1.0,1000000000
3,999,5.0,{1_000_000_000 + 8 * DAY}
"""


def write(folder: Path, ratings: str | bytes = RATINGS, movies: str | bytes = MOVIES) -> list[Path]:
    for name, text in {"ratings.csv": ratings, "movies.csv": movies}.items():
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return [folder / "ratings.csv", folder / "movies.csv"]


def events(files: list[Path], **settings: float) -> list[tuple]:
    tables = movielens.read(files, **settings)
    return sorted(check_columns("events", tables.events, EVENT_COLUMNS).collect().rows())


def refused(files: list[Path], *parts: str, **settings: float) -> str:
    message = refusal(lambda: movielens.read(files, **settings))
    for part in parts:
        assert part in message
    return message


def test_liked_films_of_users_with_a_long_span_become_events(tmp_path):
    assert events(write(tmp_path)) == [
        ("1", "1", 1_000_000_000, "rating", 4.0),
        ("1", "58", 1_000_000_000 + 3 * DAY, "rating", 5.0),
    ]


def test_what_is_left_out_is_counted_once_by_its_reason(tmp_path):
    tables = movielens.read(write(tmp_path))
    assert tables.dropped == {
        movielens.UNKNOWN_MOVIE: 1,
        movielens.SHORT_SPAN: 2,
        movielens.LOW_RATING: 2,
        movielens.SHORT_USERS: 1,
    }
    assert tables.has_click_times
    assert not tables.has_impressions


def test_the_settings_move_both_limits(tmp_path):
    assert len(events(write(tmp_path), min_rating=0, min_span_days=0)) == 6
    assert len(events(write(tmp_path), min_rating=5, min_span_days=8)) == 0


def test_titles_read_as_a_reader_would_write_them(tmp_path):
    items = check_columns("items", movielens.read(write(tmp_path)).items, ITEM_COLUMNS).collect()
    texts = dict(items.select("item_id", "text").rows())
    assert texts == {
        "1": "Toy Story (1995). Adventure, Animation",
        "2571": "The Matrix (1999). Action, Sci-Fi, Thriller",
        "58": "The Postman (Il Postino) (1994). Comedy",
        "293": "Léon: The Professional (a.k.a. The Professional) (Léon) (1994). Action",
        "7": "L'Avventura (The Adventure) (1960). Drama",
        "8": "The Good, the Bad and the Ugly (Il Buono, il brutto, il cattivo) (1966). Western",
        "9": "11'09\"01 - September 11 (2002)",
    }
    categories = dict(items.select("item_id", "category").rows())
    assert categories["2571"] == "Action"
    assert categories["9"] == "unknown"


def test_gzipped_files_with_windows_line_ends_and_a_byte_order_mark_read_the_same(tmp_path):
    plain = events(write(tmp_path))
    files = [tmp_path / "ratings.csv.gz", tmp_path / "movies.csv.gz"]
    for file, text in zip(files, (RATINGS, MOVIES), strict=True):
        file.write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()))
    assert events(files) == plain


def test_columns_in_another_order_read_the_same(tmp_path):
    rows = [line.split(",") for line in RATINGS.splitlines()]
    swapped = "\n".join(",".join([r[3], r[0], r[2], r[1]]) for r in rows) + "\n"
    assert events(write(tmp_path, swapped)) == events(write(tmp_path))


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("1,1,many,5", ["rating in", "ratings.csv line 4", "'many'"]),
        ("1,1,5.5,5", ["rating in", "line 4", "'5.5'"]),
        ("1,1,nan,5", ["rating in", "line 4", "'nan'"]),
        ("1,1,5,soon", ["timestamp in", "line 4", "'soon'"]),
        ("1,1,5,-3", ["timestamp in", "line 4", "'-3'"]),
        (",1,5,3", ["userId in", "line 4", "got nothing"]),
        ("1,1,5", ["ratings.csv line 4", "4 fields", "got 3"]),
        ("1,1,5,3,9", ["ratings.csv line 4", "4 fields", "got 5"]),
        ("", ["ratings.csv line 4", "4 fields", "got 0"]),
        ('1,"1,5,3', ["ratings.csv line 4", "quotes closed"]),
    ],
)
def test_a_bad_line_is_named_with_file_line_and_value(tmp_path, line, parts):
    lines = RATINGS.splitlines()
    lines[3] = line
    refused(write(tmp_path, "\n".join(lines) + "\n"), *parts)


def test_a_file_that_stops_inside_its_last_field_is_refused(tmp_path):
    last = RATINGS.count("\n")
    for cut in (1, 4):
        files = write(tmp_path, RATINGS[:-cut])
        refused(files, f"ratings.csv line {last} must end in a line break", "download the file again")
    zipped = gzip.compress(RATINGS[:-1].encode())  # cut off, it would say so itself
    (tmp_path / "ratings.csv.gz").write_bytes(zipped)
    movielens.read([tmp_path / "ratings.csv.gz", tmp_path / "movies.csv"])


def test_the_first_of_many_bad_lines_is_named(tmp_path):
    rows = "".join(f"1,1,4.0,{i}\n" for i in range(200_000))
    bad = "userId,movieId,rating,timestamp\n" + rows + "1,1,x,1\n1,1,4.0,y\n"
    refused(write(tmp_path, bad), "rating in", "line 200002", "'x'")


def test_a_line_after_a_field_that_spans_lines_is_numbered_as_an_editor_does(tmp_path):
    movies = 'movieId,title,genres\n1,"Toy\nStory",Comedy\n2,,Drama\n'
    refused(write(tmp_path, movies=movies), "title in", "movies.csv line 4", "got nothing")


def test_a_missing_column_is_named_beside_those_found(tmp_path):
    text = RATINGS.replace("rating,", "stars,")
    refused(write(tmp_path, text), "ratings.csv", "userId, movieId, stars, timestamp", "add rating")


def test_a_film_listed_twice_is_refused(tmp_path):
    refused(write(tmp_path, movies=MOVIES + "1,Again,Drama\n"), "movieId in", "movies.csv line 9", "'1'")


def test_empty_and_header_only_files_are_refused(tmp_path):
    refused(write(tmp_path, ""), "ratings.csv", "empty file")
    refused(write(tmp_path, "userId,movieId,rating,timestamp\n"), "ratings.csv", "header alone")


def test_bytes_that_are_not_utf8_are_named_with_their_line(tmp_path):
    refused(write(tmp_path, movies=MOVIES.encode("latin-1")), "movies.csv line 5", "UTF-8", "0xe9")


def test_a_gzip_cut_short_is_named_with_its_last_line(tmp_path):
    write(tmp_path)
    text = "userId,movieId,rating,timestamp\n" + "".join(f"{i},1,4.0,{i * i}\n" for i in range(50_000))
    whole = gzip.compress(text.encode())
    file = tmp_path / "ratings.csv.gz"
    file.write_bytes(whole[: len(whole) // 2])
    message = refused([file, tmp_path / "movies.csv"], "ratings.csv.gz", "ends early after line ")
    assert 1_000 < int(message.split("after line ")[1].split(";")[0]) < 49_000
    file.write_bytes(whole[:5_000] + b"\0\0\0\0" + whole[5_004:])
    refused([file, tmp_path / "movies.csv"], "ratings.csv.gz", "gzip file", "line ")


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    files = write(tmp_path)
    files[0].unlink()
    files[0].mkdir()
    refused(files, "ratings.csv", "got a folder")


def test_a_missing_or_doubled_file_is_refused(tmp_path):
    files = write(tmp_path)
    refused(files[:1], "one movies.csv")
    refused([*files, tmp_path / "b" / "ratings.csv"], "one ratings.csv")


def test_a_setting_out_of_range_is_refused(tmp_path):
    refused(write(tmp_path), "data.source.min_rating", "got 6", min_rating=6)
    refused(write(tmp_path), "data.source.min_span_days", "got -1", min_span_days=-1)


RATINGS_DAT = RATINGS.split("\n", 1)[1].replace(",", "::")
MOVIES_DAT = (
    "1::Toy Story (1995)::Adventure|Animation\n2571::Matrix, The (1999)::Action\n58::Léon (1994)::Comedy\n"
)
GENRES = "|".join("01"[name in (1, 15)] for name in range(19))  # Action and Sci-Fi, of 19 flags
U_ITEM = (
    f"1|Toy Story (1995)|01-Jan-1995||http://us.imdb.com/M/title-exact?Toy%20Story%20(1995)|{GENRES}\n"
    f"58|Léon (1994)|01-Jan-1994||http://x|1{'|0' * 18}\n"
    f"2571|unknown|||{'|0' * 19}\n"
)


@pytest.mark.parametrize("encoding", ["utf-8", "iso-8859-1"])
def test_the_editions_of_1m_and_10m_read_as_the_others(tmp_path, encoding):
    (tmp_path / "ratings.dat").write_text(RATINGS_DAT)
    (tmp_path / "movies.dat").write_bytes(MOVIES_DAT.encode(encoding))
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n")
    files = sorted(tmp_path.iterdir())
    (tmp_path / "csv").mkdir()
    assert events(files) == events(write(tmp_path / "csv"))
    items = check_columns("items", movielens.read(files).items, ITEM_COLUMNS).collect()
    assert items["text"].to_list() == [
        "Toy Story (1995). Adventure, Animation",
        "The Matrix (1999). Action",
        "Léon (1994). Comedy",
    ]


def test_the_edition_of_100k_reads_its_flags_and_letters(tmp_path):
    (tmp_path / "u.data").write_text(RATINGS_DAT.replace("::", "\t"))
    (tmp_path / "u.item").write_bytes(U_ITEM.encode("iso-8859-1"))
    (tmp_path / "u.genre").write_text("unknown|0\n")
    files = sorted(tmp_path.iterdir())
    items = check_columns("items", movielens.read(files).items, ITEM_COLUMNS).collect()
    assert items.rows() == [
        ("1", "Toy Story (1995). Action, Sci-Fi", "Action", None),
        ("58", "Léon (1994)", "unknown", None),
        ("2571", "unknown", "unknown", None),
    ]
    assert len(events(files)) == 2


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("ratings.dat", "1::1::5\n", ["ratings.dat line 1", "4 fields", "got 3"]),
        ("ratings.dat", "1:1:5:3\n", ["ratings.dat line 1", "4 fields", "got 1"]),
        ("ratings.dat", "1::1::9::3\n", ["rating in", "ratings.dat line 1", "'9'"]),
        ("movies.dat", "1::Léon\n", ["movies.dat line 1", "3 fields", "got 2"]),
        ("movies.dat", "1::Léon::x\n1::Léon::x\n", ["movieId in", "movies.dat line 2", "listed once"]),
    ],
)
def test_a_bad_line_of_an_older_edition_is_named(tmp_path, name, text, parts):
    (tmp_path / "ratings.dat").write_text(RATINGS_DAT)
    (tmp_path / "movies.dat").write_text(MOVIES_DAT)
    (tmp_path / name).write_bytes(text.encode("iso-8859-1"))
    refused(sorted(tmp_path.glob("*.dat")), *parts)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real log is not at {REAL}")
def test_the_real_small_log_has_the_published_counts():
    tables = movielens.read(sorted(REAL.glob("*.csv")))
    rows = check_columns("events", tables.events, EVENT_COLUMNS).collect()
    items = check_columns("items", tables.items, ITEM_COLUMNS).collect()
    assert items.height == 9_742
    assert tables.dropped[movielens.UNKNOWN_MOVIE] == 0
    assert 610 - tables.dropped[movielens.SHORT_USERS] == rows["user_id"].n_unique() == 198
    of_ratings = [movielens.UNKNOWN_MOVIE, movielens.SHORT_SPAN, movielens.LOW_RATING]
    assert rows.height + sum(tables.dropped[reason] for reason in of_ratings) == 100_836
    assert rows["value"].min() == 4.0
    assert items.filter(pl.col("text").str.contains(r", The( \(|\))")).height == 0
