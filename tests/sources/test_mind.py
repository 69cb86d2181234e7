"""MIND: small folders in the publisher's layout."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halflife.arrays import build
from halflife.errors import InputError
from halflife.sources import mind, vectors
from halflife.store import Store
from halflife.tables import EVENT_COLUMNS, IMPRESSION_COLUMNS, ITEM_COLUMNS, Tables, check_columns
from tests.refusals import refusal


def news(*ids: str) -> str:
    return "".join(f"{i}\tsports\tgolf\tTitle of {i}\tAbstract\thttps://x/{i}\t[]\t[]\n" for i in ids)


NEWS = news("N1", "N2", "N3", "N4", "N5")
TRAIN = (
    "1\tU1\t11/11/2019 9:05:58 AM\tN1 N2\tN3-0 N4-1\n"
    "2\tU1\t11/11/2019 12:05:58 AM\tN1 N2\tN5-1\n"
    "3\tU2\t11/12/2019 1:00:00 PM\t\tN5-0 N1-0 N2-1\n"
)
FIRST_S = int(datetime(2019, 11, 11, 0, 5, 58, tzinfo=UTC).timestamp())
DEV_S = int(datetime(2019, 11, 15, 8, 0, 0, tzinfo=UTC).timestamp())


def write(folder: Path, behaviors: str | bytes = TRAIN, items: str | bytes = NEWS) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"news.tsv": items, "behaviors.tsv": behaviors}.items():
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return [folder / "news.tsv", folder / "behaviors.tsv"]


def dev(*rows: tuple[str, str]) -> str:
    return "".join(
        f"{i}\t{user}\t11/15/2019 8:00:00 AM\t{history}\tN1-1 N2-0\n"
        for i, (user, history) in enumerate(rows, start=1)
    )


def clicks(tables: Tables, user: str) -> list[tuple[str, int]]:
    rows = check_columns("events", tables.events, EVENT_COLUMNS).collect().sort("timestamp_s")
    assert set(rows["kind"]) <= {"history"}
    return [(item, when) for who, item, when, *_ in rows.rows() if who == user]


def refused(files: list[Path], *parts: str) -> None:
    message = refusal(lambda: mind.read(files))
    for part in parts:
        assert part in message


def test_one_folder_gives_its_impressions_as_logged(tmp_path):
    tables = mind.read(write(tmp_path))
    rows = check_columns("impressions", tables.impressions, IMPRESSION_COLUMNS).collect().rows()
    assert rows == [
        ("1", "U1", FIRST_S + 9 * 3600, ["N3", "N4"], [0, 1]),
        ("2", "U1", FIRST_S, ["N5"], [1]),
        ("3", "U2", int(datetime(2019, 11, 12, 13, tzinfo=UTC).timestamp()), ["N5", "N1", "N2"], [0, 0, 1]),
    ]
    assert tables.has_impressions
    assert not tables.has_click_times


def test_a_history_keeps_its_order_before_the_first_impression(tmp_path):
    tables = mind.read(write(tmp_path))
    assert clicks(tables, "U1") == [("N1", FIRST_S - 2), ("N2", FIRST_S - 1)]
    assert clicks(tables, "U2") == []
    assert tables.dropped == {mind.UNKNOWN_CLICKS: 0, mind.NO_SECOND: 0, mind.OTHER_HISTORIES: 0}


def test_a_later_history_that_extends_the_earlier_adds_only_what_is_new(tmp_path):
    later = dev(("U1", "N1 N2 N4 N5"), ("U2", "N3"), ("U3", ""))
    tables = mind.read(write(tmp_path / "dev", later) + write(tmp_path / "train"))
    assert clicks(tables, "U1") == [
        ("N1", FIRST_S - 2),
        ("N2", FIRST_S - 1),
        ("N4", DEV_S - 2),
        ("N5", DEV_S - 1),
    ]
    assert clicks(tables, "U2") == [("N3", DEV_S - 1)]


def test_the_same_or_an_empty_later_history_adds_nothing(tmp_path):
    train = TRAIN.replace("U2", "U1")
    for later in (dev(("U1", "N1 N2")), dev(("U1", ""))):
        tables = mind.read(
            write(tmp_path / "train", train.replace("\t\t", "\tN1 N2\t")) + write(tmp_path / "dev", later)
        )
        assert clicks(tables, "U1") == [("N1", FIRST_S - 2), ("N2", FIRST_S - 1)]


def test_a_later_history_that_is_no_extension_is_appended_whole_and_newest(tmp_path):
    for later in ("N2 N3", "N1", "N1 N22 N3"):
        files = write(tmp_path / "train") + write(tmp_path / "dev", dev(("U1", later)), NEWS + news("N22"))
        names = [item for item, _ in clicks(mind.read(files), "U1")]
        assert names == ["N1", "N2", *later.split(" ")]


def test_folders_that_follow_within_seconds_keep_the_newest_clicks_that_fit_between(tmp_path):
    second = TRAIN.replace("9:05:58 AM", "12:06:00 AM").replace("12:05:58 AM", "12:06:00 AM")
    tables = mind.read(
        write(tmp_path / "a") + write(tmp_path / "b", second.replace("N1 N2\t", "N1 N2 N3 N4 N5\t"))
    )
    # the impression at FIRST_S, which is of its own second, sees none of what was clicked after it
    assert clicks(tables, "U1") == [
        ("N1", FIRST_S - 2),
        ("N2", FIRST_S - 1),
        ("N4", FIRST_S),
        ("N5", FIRST_S + 1),
    ]
    assert tables.dropped[mind.NO_SECOND] == 1


MOMENTS = st.lists(st.tuples(st.integers(0, 25), st.integers(0, 1), st.booleans()), min_size=2, max_size=25)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(two_users=st.tuples(MOMENTS, MOMENTS))
def test_no_impression_sees_a_click_after_it_in_whatever_order_two_folders_come(tmp_path, two_users):
    """Users click and see impressions in a few seconds, each dealt to either folder; a history is what was
    clicked before a user's first impression there.
    """
    lines: tuple[list[str], list[str]] = ([], [])
    clicked, seen, first = {}, [], {}
    for user, moments in enumerate(two_users):
        past: list[str] = []
        for n, (second, folder, is_click) in enumerate(sorted(moments)):
            if is_click:
                past.append(f"C{user}x{n}")
                clicked[past[-1]] = (user, second)
                continue
            name = first.setdefault((user, folder), (second, [c for c in past if clicked[c][1] < second]))
            when = datetime.fromtimestamp(FIRST_S + second, UTC).strftime("%m/%d/%Y %I:%M:%S %p")
            row = len(lines[folder]) + 1
            lines[folder].append(f"{row}\tU{user}\t{when}\t{' '.join(name[1])}\tN1-1 N2-0\n")
            seen.append((user, second))
    files = [
        file
        for folder, rows in enumerate(lines)
        if rows
        for file in write(tmp_path / str(folder), "".join(rows), NEWS + news(*clicked))
    ]
    if not files:
        return
    tables = mind.read(files)
    events = check_columns("events", tables.events, EVENT_COLUMNS).collect()
    placed = sorted((user, when - FIRST_S, item) for user, item, when, *_ in events.rows())
    assert len({(user, when) for user, when, _ in placed}) == len(placed)
    for user, second in seen:
        history = [item for who, when, item in placed if who == f"U{user}" and when < second]
        assert all(clicked[item][1] < second for item in history)
        assert history == sorted(history, key=list(clicked).index)
    for (user, _), (second, logged) in first.items():
        history = [item for who, when, item in placed if who == f"U{user}" and when < second]
        assert tables.dropped[mind.NO_SECOND] or history == logged
    longest = [max(len(logged) for (who, _), (_, logged) in first.items() if who == u) for u, _ in first]
    whole = {user: n for (user, _), n in zip(first, longest, strict=True)}
    assert len(placed) + tables.dropped[mind.NO_SECOND] == sum(whole.values())


def test_impression_ids_of_several_folders_carry_the_folder(tmp_path):
    files = write(tmp_path / "x" / "train") + write(tmp_path / "x" / "dev", dev(("U1", "N1")))
    ids = mind.read(files).impressions.lazy().collect()["impression_id"].to_list()
    assert sorted(ids) == ["dev-1", "train-1", "train-2", "train-3"]
    files = write(tmp_path / "x" / "train") + write(tmp_path / "y" / "train")
    ids = mind.read(files).impressions.lazy().collect()["impression_id"].to_list()
    assert len(set(ids)) == 6


def test_items_are_the_union_of_the_folders_and_quotes_are_text(tmp_path):
    more = (
        "N1\tother\tx\tOther\t\t\t[]\t[]\n"
        'N6\t\tx\t"Half a quote\tAbs\t\t\t\n'
        "N7\tnews\tx\t\tAbstract only\t\t[]\t[]\n"
    )
    files = write(tmp_path / "train") + write(tmp_path / "dev", dev(("U1", "N1")), more)
    items = check_columns("items", mind.read(files).items, ITEM_COLUMNS).collect()
    assert items["item_id"].is_unique().all()
    assert items.height == 7
    by_id = {row[0]: row[1:3] for row in items.rows()}
    assert by_id["N2"] == ("Title of N2", "sports")
    assert by_id["N6"] == ('"Half a quote', "unknown")
    assert by_id["N7"] == ("Abstract only", "news")


def test_unknown_news_in_a_history_are_dropped_and_counted(tmp_path):
    tables = mind.read(write(tmp_path, TRAIN.replace("N1 N2\t", "N1 N99 N2\t")))
    assert [item for item, _ in clicks(tables, "U1")] == ["N1", "N2"]
    assert tables.dropped[mind.UNKNOWN_CLICKS] == 1


def test_a_history_that_grows_within_a_file_is_the_one_at_the_first_impression(tmp_path):
    """A later one would show an impression what was clicked after it."""
    lines = TRAIN.splitlines()
    first = next(line for line in lines if line.split("\t")[1] == "U1").split("\t")
    later = ["9", "U1", first[2].replace("11/11/2019", "11/12/2019"), f"{first[3]} N3", first[4]]
    tables = mind.read(write(tmp_path, "\n".join(["\t".join(later), *lines]) + "\n"))
    assert [item for item, _ in clicks(tables, "U1")] == first[3].split()
    assert tables.dropped[mind.OTHER_HISTORIES] == 1


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (
            "2\tU1\t11/11/2019 9:05:58 AM\tN1\tN3 N4",
            ["impressions in", "line 2", "'N3'", "labels are missing"],
        ),
        ("2\tU1\t11/11/2019 9:05:58 AM\tN1\tN3-0 N4-2", ["impressions in", "line 2", "'N4-2'"]),
        ("2\tU1\t11/11/2019 9:05:58 AM\tN1\tN3-0 N98-1", ["impressions in", "line 2", "'N98-1'"]),
        ("2\tU1\t11/11/2019 9:05:58 AM\tN1\t", ["impressions in", "line 2", "got nothing"]),
        ("2\tU1\t2019-11-11 09:05\tN1\tN3-0", ["time in", "line 2", "'2019-11-11 09:05'"]),
        ("1\tU1\t11/11/2019 9:05:58 AM\tN1\tN3-0", ["impression_id in", "line 2", "'1'"]),
        ("2\t\t11/11/2019 9:05:58 AM\tN1\tN3-0", ["user_id in", "line 2", "got nothing"]),
        ("2\tU1\t11/11/2019 9:05:58 AM\tN1", ["line 2", "5 fields", "got 4"]),
        ("2\tU1\t11/11/2019 9:05:58 AM\tN1\tN3-0\tx", ["line 2", "5 fields", "got 6"]),
        ("", ["line 2", "5 fields", "got 1"]),
    ],
)
def test_a_bad_line_is_named_with_file_line_and_value(tmp_path, line, parts):
    lines = TRAIN.splitlines()
    lines[1] = line
    refused(write(tmp_path, "\n".join(lines) + "\n"), str(tmp_path / "behaviors.tsv"), *parts)


def test_a_short_news_line_is_named(tmp_path):
    refused(write(tmp_path, items=NEWS + "N6\tsports\n"), "news.tsv line 6", "8 fields", "got 2")


def test_empty_and_wrongly_encoded_files_are_refused(tmp_path):
    refused(write(tmp_path, ""), "behaviors.tsv", "empty file")
    refused(write(tmp_path, items=NEWS.encode() + b"N6\t\xff"), "news.tsv line 6", "UTF-8", "0xff")


def test_a_folder_with_one_of_the_two_files_is_named(tmp_path):
    files = write(tmp_path / "train") + write(tmp_path / "dev")
    refused(files[:3], str(tmp_path / "dev"), "got no behaviors.tsv")
    refused([tmp_path / "README.txt"], "data.files", "README.txt")


def test_the_published_labels_cannot_be_missing_from_a_whole_folder(tmp_path):
    test_rows = "1\tU1\t11/16/2019 9:05:58 AM\tN1\tN3 N4\n"
    refused(
        write(tmp_path / "train") + write(tmp_path / "test", test_rows),
        "test/behaviors.tsv line 1",
        "missing",
    )


def test_click_times_are_reconstructed_from_the_impressions_when_asked_and_marked(tmp_path):
    tables = mind.read(write(tmp_path), click_times="reconstructed")
    assert tables.has_click_times
    assert tables.note == mind.RECONSTRUCTED
    rows = check_columns("events", tables.events, EVENT_COLUMNS).collect().rows()
    assert sorted(rows) == [
        ("U1", "N4", FIRST_S + 9 * 3600, "click", 1.0),
        ("U1", "N5", FIRST_S, "click", 1.0),
        ("U2", "N2", int(datetime(2019, 11, 12, 13, tzinfo=UTC).timestamp()), "click", 1.0),
    ]
    assert tables.dropped == {mind.UNTIMED_CLICKS: 2}
    with pytest.raises(
        InputError, match=r"data\.source\.click_times must be one of absent, reconstructed, got days"
    ):
        mind.read(write(tmp_path), click_times="days")


def test_the_text_follows_a_template_and_falls_back_where_it_is_empty(tmp_path):
    files = write(tmp_path, items=NEWS + "N6\tsports\tgolf\t\t\t\t\t\n")
    items = check_columns(
        "items", mind.read(files, text="{title} ({subcategory})").items, ITEM_COLUMNS
    ).collect()
    assert items["text"][0] == "Title of N1 (golf)"
    items = check_columns("items", mind.read(files).items, ITEM_COLUMNS).collect()
    assert items["text"][5] == "sports"


def test_popularity_counts_every_history_from_the_folders_first_impression_on(tmp_path):
    late = (
        "1\tU1\t11/11/2019 9:00:00 AM\tN1\tN1-0 N2-1 N3-0\n2\tU2\t11/13/2019 9:00:00 AM\tN1 N3\tN1-1 N2-0\n"
    )
    (tmp_path / "store").mkdir()
    build(mind.read(write(tmp_path / "log", late)), None, tmp_path / "store")
    store = Store(tmp_path / "store")
    assert store.candidate_popularity.tolist() == [2, 0, 1, 2, 0]


def entity(*ids: str) -> str:
    return str([{"Label": 'A "x" b', "WikidataId": i, "Confidence": 1.0} for i in ids]).replace("'", '"')


def test_items_take_the_mean_of_the_publishers_vectors_of_their_entities(tmp_path):
    about = {"N1": (["Q1"], ["Q2", "Q1"]), "N2": (["Q2"], []), "N3": ([], ["Q9"]), "N4": ([], [])}
    lines = [
        f"{i}\tsports\tgolf\tTitle\tAbstract\tu\t{entity(*title)}\t{entity(*abstract)}\n"
        for i, (title, abstract) in about.items()
    ]
    files = write(tmp_path / "train", items="".join(lines) + news("N5"))
    files += write(tmp_path / "dev", dev(("U1", "N1")), items=lines[0] + lines[1])
    for folder, body in (
        ("train", "Q1\t1.0\t0.0\t\nQ2\t0.5\t2.0\t\n"),
        ("dev", "Q2\t0.5\t2.0\t\nQ7\t1\t1\t\n"),
    ):
        (tmp_path / folder / "entity_embedding.vec").write_text(body)
    tables = mind.read(files)
    given = vectors.read(vectors.located("**/entity_embedding.vec", str(tmp_path)))
    (tmp_path / "store").mkdir()
    build(replace(tables, vectors=given), None, tmp_path / "store")
    store = Store(tmp_path / "store")
    assert store.items["item_id"].to_list() == ["N1", "N2", "N3", "N4", "N5"]
    assert store.item_vector.tolist() == [[0.75, 1.0], [0.5, 2.0], [0, 0], [0, 0], [0, 0]]
    assert store.item_vector_mask.tolist() == [True, True, False, False, False]
    dropped = store.about["dropped"]
    assert dropped["item vectors of ids that had one before"] == 1
    assert dropped["item vectors of ids that are not in the catalogue"] == 1
