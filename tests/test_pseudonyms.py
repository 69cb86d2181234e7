"""Pseudonyms: the original ids are nowhere, the key is nowhere, and nothing else of the log changes."""

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hydra import compose, initialize_config_dir

from halflife.build import run
from halflife.cli import CONFIG_DIR
from halflife.errors import InputError
from halflife.pseudonyms import VARIABLE, pseudonym
from halflife.store import Store

KEY = "a key of these tests alone"
SMALL = ["data.source.users=60", "data.source.items=48", "data.source.days=30", "pretrained=null"]


def card(tmp_path: Path, name: str, *overrides: str) -> Store:
    """Run the build command; its Store."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        run(
            compose("build", overrides=[*SMALL, f"cache_dir={tmp_path / name}", *overrides]),
            tmp_path / name / "run",
        )
    [about] = (tmp_path / name / "stores").glob("*/store.json")
    return Store(about.parent)


def everything(directory: Path) -> bytes:
    """All names and bytes below a directory, compressed tables unpacked."""
    found = b""
    for path in sorted(directory.rglob("*")):
        found += path.name.encode()
        if path.suffix == ".parquet":
            found += pl.read_parquet(path).write_csv().encode()
        elif path.is_file():
            found += path.read_bytes()
    return found


def test_original_ids_and_the_key_are_nowhere_in_run_and_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    plain = card(tmp_path, "plain")
    ids = plain.users["user_id"].to_list()
    assert len(ids) > 50
    assert all(name.encode() in everything(tmp_path / "plain") for name in ids)  # the search does find them
    hidden = card(tmp_path, "hidden", "data.pseudonymize=true")
    written = everything(tmp_path / "hidden")
    assert re.search(rb"U\d{5}", written) is None
    assert KEY.encode() not in written
    assert hidden.about["pseudonymous"]
    assert "keyed hashes" in (tmp_path / "hidden" / "run" / "card.html").read_text()


def test_a_log_is_the_same_under_pseudonyms_but_for_the_order_of_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    plain, hidden = card(tmp_path, "plain"), card(tmp_path, "hidden", "data.pseudonymize=true")
    assert plain.impression_ids.equals(hidden.impression_ids)
    np.testing.assert_array_equal(plain.candidate_item, hidden.candidate_item)
    np.testing.assert_array_equal(plain.candidate_popularity, hidden.candidate_popularity)
    length = [s.history_end - s.user_start[s.impression_user] for s in (plain, hidden)]
    np.testing.assert_array_equal(*length)
    monkeypatch.setenv(VARIABLE, KEY + "!")
    other = card(tmp_path, "other", "data.pseudonymize=true")
    assert set(other.users["user_id"]).isdisjoint(hidden.users["user_id"])
    assert other.directory.name != hidden.directory.name


@pytest.mark.parametrize("key", [None, "", "short"])
def test_a_missing_key_is_one_sentence_before_anything_is_written(
    key: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if key is not None:
        monkeypatch.setenv(VARIABLE, key)
    with pytest.raises(
        InputError, match=f"^{VARIABLE} must be at least 16 characters .*, got {len(key or '')};"
    ):
        card(tmp_path, "none", "data.pseudonymize=true")
    assert list(tmp_path.rglob("*")) == []


def test_pseudonyms_do_not_collide_and_depend_on_the_key() -> None:
    names = {pseudonym(f"U{i}", b"k") for i in range(10_000)}
    assert len(names) == 10_000
    assert pseudonym("U1", b"k") != pseudonym("U1", b"l")
