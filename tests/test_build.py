"""The build command: what the card says is what the log holds, and the page asks nothing of a network."""

import json
import re
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig

from halflife.build import run
from halflife.card import Tally, describe
from halflife.card_page import page
from halflife.cli import CONFIG_DIR
from halflife.datamodule import DataModule
from halflife.errors import InputError
from halflife.tables import Tables

START = 1_700_000_000
DAY = 86_400


def configured(tmp_path: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        small = [
            "data.source.users=60",
            "data.source.items=48",
            "data.source.days=30",
            f"cache_dir={tmp_path}",
        ]
        return compose("build", overrides=[*small, *overrides])


def of_log(events: list[tuple[str, str, int]], tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """The card of a log of these events, whose impressions are ten of each user behind them."""
    user, item, moment = zip(*events, strict=True)
    people = sorted(set(user))
    items = pl.DataFrame({"item_id": list("abcde"), "text": ["<b>A</b>", "B", "C", "D", ""], "category": "x"})
    late = [START + 400 * DAY + 60 * i for i in range(10 * len(people))]
    impressions = pl.DataFrame(
        {
            "impression_id": [str(i) for i in range(len(late))],
            "user_id": people * 10,
            "timestamp_s": late,
            "candidates": [["a", "e"]] * len(late),
            "labels": [[1, 0]] * len(late),
        }
    )
    given: dict[str, Any] = {
        "items": items,
        "events": pl.DataFrame({"user_id": user, "item_id": item, "timestamp_s": moment}).with_columns(
            kind=pl.lit("<i>click</i>"), value=pl.lit(1.0)
        ),
        "impressions": impressions,
        "has_click_times": True,
    }
    log = Tables(**(given | changes))
    data = DataModule(
        source=partial(read, log=log),
        root=None,
        files=[],
        cache_dir=str(tmp_path),
        negatives=None,
        split={"val": 0.2, "test": 0.2},
        age="days" if log.has_click_times else "rank",
        max_history=50,
        min_history=0,
        targets_per_history=1,
        batch_size=8,
        batch_tokens=None,
        eval_batch_size=8,
        num_workers=0,
        seed=1,
    )
    return describe(data, None, 32)


def read(files: list[Path], log: Tables) -> Tables:
    return log


SPREAD = [("u", "a", START), ("u", "b", START + DAY), ("u", "a", START + 3 * DAY), ("v", "c", START)]
SITTING = [
    ("u", "a", START),
    ("u", "b", START + 60),
    ("v", "a", START),
    ("v", "c", START + 1700),
    ("w", "a", START),
]


def test_counts_gaps_spans_and_repeats_are_those_of_the_log(tmp_path: Path) -> None:
    found = of_log(SPREAD, tmp_path)
    assert found["counts"]["events"] == 4
    assert found["events"]["repeat_share"] == 0.25
    assert found["events"]["gap_days"]["count"] == 2
    assert found["events"]["gap_days"]["p25"] == pytest.approx(1.0, rel=0.01)
    assert found["events"]["user_span_days"]["p50"] == pytest.approx(3.0, rel=0.01)
    assert found["events"]["one_sitting_share"] == 0.0
    assert found["events"]["per_user"]["count"] == 2
    assert found["events"]["by_hour_utc"][START % DAY // 3600] == 4
    assert sum(found["timeline"]["events"]) == 4
    assert sum(found["timeline"]["impressions"]) == found["counts"]["impressions"] == 20


def test_cold_users_and_items_are_those_without_an_event_before_the_split(tmp_path: Path) -> None:
    late = ("w", "e", START + 400 * DAY + 60 * 24)  # behind where val begins, before its impressions in test
    found = of_log([*SPREAD, late], tmp_path)
    assert found["split"]["train"].keys().isdisjoint({"cold_users", "cold_items"})
    assert found["split"]["val"]["cold_users"] == 1
    assert found["split"]["val"]["cold_item_candidates"] == 0.5
    assert found["split"]["test"]["positive_rate"] == 0.5
    first = {split: facts["first_s"] for split, facts in found["split"].items()}
    assert first["train"] < found["split"]["train"]["last_s"] < first["val"] < first["test"]


def test_a_log_of_sittings_is_warned_of_and_one_of_visits_is_not(tmp_path: Path) -> None:
    found = of_log(SITTING, tmp_path)
    assert found["events"]["one_sitting_share"] == 1.0
    assert any("one sitting" in warning for warning in found["warnings"])
    assert not any("one sitting" in warning for warning in of_log(SPREAD, tmp_path)["warnings"])


def test_a_log_without_click_times_has_no_gaps_and_says_so(tmp_path: Path) -> None:
    found = of_log([(u, i, n) for n, (u, i, _) in enumerate(SPREAD)], tmp_path, has_click_times=False)
    assert "gap_days" not in found["events"]
    assert found["history_ages"]["unit"] == "rank"
    assert found["warnings"][0].startswith("This log has no click times")
    assert "newest 0" in page(found)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=60), st.sampled_from([0.05, 0.5, 0.95]))
def test_a_quantile_of_a_tally_is_right_to_one_percent(values: list[int], share: float) -> None:
    tally = Tally()
    for part in np.array_split(np.array(values), 3):
        tally.add(part)
    exact = sorted(values)[max(int(np.ceil(share * len(values) - 1e-9)), 1) - 1]
    got = tally.quantile(share)
    assert got == pytest.approx(exact, rel=0.01)
    facts = tally.facts()
    assert sum(facts["bars"]) + facts["zeros"] == facts["count"] == len(values)
    assert len(facts["edges"]) == len(facts["bars"]) + 1


class Page(HTMLParser):
    """Tags that are opened and closed, and every address."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "rect", "line") and not tag.startswith("!"):
            self.open.append(tag)
        self.addresses += [f"{k}={v}" for k, v in attrs if k in ("src", "href", "srcset", "data")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "line"):
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)


def test_the_page_is_whole_asks_nothing_of_a_network_and_escapes_the_log(tmp_path: Path) -> None:
    found = of_log(SPREAD, tmp_path, dropped={'<script>alert("x")</script>': 3})
    text = page(found)
    parser = Page()
    parser.feed(text)
    assert parser.open == []
    assert parser.addresses == []
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert re.search(r"url\(|@import|https?:", text) is None
    assert "nan" not in re.sub("<[^>]*>", "", text)


def test_the_command_writes_the_card_and_training_finds_its_store(tmp_path: Path) -> None:
    cfg = configured(tmp_path)
    impressions = run(cfg, tmp_path / "card")
    card = json.loads((tmp_path / "card" / "card.json").read_text())
    assert card["counts"]["impressions"] == impressions > 0
    assert sum(card["text"]["bars"]) == card["counts"]["items"] == 48
    assert card["source"] == "halflife.sources.synthetic.read"
    assert (tmp_path / "card" / "card.html").read_text() == page(card)
    assert "histories checked for the future" in (tmp_path / "card" / "card.txt").read_text()
    stores = list((tmp_path / "stores").glob("*/store.json"))
    run(cfg, tmp_path / "card")
    assert list((tmp_path / "stores").glob("*/store.json")) == stores
    assert len(stores) == 1


@pytest.mark.parametrize(
    ("override", "start"),
    [("max_tokens=0", "max_tokens must be a whole"), ("pretrained=''", "pretrained must be")],
)
def test_a_setting_that_will_not_do_is_refused(tmp_path: Path, override: str, start: str) -> None:
    with pytest.raises(InputError, match=f"^{start}"):
        run(configured(tmp_path, override), tmp_path / "card")
    assert not (tmp_path / "card").exists()
