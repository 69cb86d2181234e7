"""Pages of real runs and studies: whole, escaped, and complete without a network."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from halflife.report.__main__ import main, page_of
from halflife.report.page import Page, Section, Table, render, write

HOSTILE = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def written(multirun: Path, study_dir: Path, front_dir: Path, tmp_path_factory: Any) -> dict[str, Path]:
    """An HTML file for each kind of directory."""
    place = tmp_path_factory.mktemp("pages")
    kinds = {"run": multirun / "2", "multirun": multirun, "study": study_dir, "front": front_dir}
    for name, directory in kinds.items():
        write(page_of(directory), place / f"{name}.html")
    return {name: place / f"{name}.html" for name in kinds}


@pytest.mark.parametrize("kind", ["run", "multirun", "study", "front"])
def test_a_page_is_well_formed_and_asks_for_nothing_from_outside(
    kind: str, written: dict[str, Path], outline: Any
) -> None:
    html = written[kind].read_text()
    page = outline(html)
    assert page.open == []
    assert page.fetched() == []
    assert "http" not in re.sub(r"PATH|https?-equiv", "", html), (
        "no address of another site, not even in text"
    )
    assert {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "link", "img"} == set()
    assert not re.search(r"@import|url\((?!#)", html)


@pytest.mark.parametrize("kind", ["run", "multirun", "study", "front"])
def test_every_picture_says_what_it_shows_and_ids_are_unique(
    kind: str, written: dict[str, Path], outline: Any
) -> None:
    page = outline(written[kind].read_text())
    pictures = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert pictures
    assert all(a["role"] == "img" and len(a["aria-label"]) > 20 for a in pictures)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    used = re.findall(r'(?:url\(#|href="#)([^)"]+)', written[kind].read_text())
    assert set(used) <= set(ids)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("kind", ["run", "multirun", "study", "front"])
def test_markdown_stands_beside_the_page_with_the_same_answer_and_its_pictures(
    kind: str, written: dict[str, Path], outline: Any
) -> None:
    text = written[kind].with_suffix(".md").read_text()
    pictures = re.findall(r"!\[(.+?)\]\((.+?)\)", text)
    assert pictures
    for _, path in pictures:
        assert (written[kind].parent / path).read_bytes().startswith(b"\x89PNG")
    page = outline(written[kind].read_text())
    headline = page.text[page.text.index("\n") :]
    assert text.splitlines()[0].removeprefix("# ").replace("\\", "") in "".join(headline)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.rstrip().endswith("|") for line in rows)


def test_strings_of_users_cannot_break_out_of_a_page(written: dict[str, Path]) -> None:
    html, text = written["study"].read_text(), written["study"].with_suffix(".md").read_text()
    assert "<script" not in html
    assert "<script" not in text
    assert "&lt;script&gt;alert" in html
    page = Page(HOSTILE, HOSTILE, HOSTILE, [(HOSTILE, "a|b", "*")], [Section(HOSTILE, [HOSTILE])])
    table = Section("t", tables=[Table(["a|b"], [["c|d\ne"]], HOSTILE)], code=HOSTILE)
    for part in (page, Page("t", "h", "l", [], [table])):
        assert "<script" not in render(part, "page.html.jinja", "x")
    assert "a\\|b" in render(page, "page.md.jinja", "x")
    assert "| c\\|d e |" in render(Page("t", "h", "l", [], [table]), "page.md.jinja", "x")


def test_the_command_writes_beside_the_run_or_where_it_is_told(
    front_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.html"
    monkeypatch.setattr("sys.argv", ["report", str(front_dir), "--out", str(out)])
    main()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "mine.html", "mine.md"]
    assert str(out) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "out", "said"),
    [
        (None, None, "PATH must be a directory"),
        ([], None, "PATH must hold a run, a multirun or a study"),
        (["metrics.json"], None, "without decay.json; run it again"),
        (["trials.parquet"], None, "without study.log"),
        ([], "page.pdf", "--out must be an .html file"),
        ([], "nowhere/page.html", "--out must be an .html file"),
    ],
)
def test_a_mistake_ends_in_one_sentence_and_writes_nothing(
    make: list[str] | None,
    out: str | None,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "given"
    for name in make or []:
        place.mkdir(exist_ok=True)
        (place / name).write_text(json.dumps({}))
    if make == []:
        place.mkdir()
    before = sorted(tmp_path.rglob("*"))
    words = [] if out is None else ["--out", str(tmp_path / out)]
    monkeypatch.setattr("sys.argv", ["report", str(place), *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
