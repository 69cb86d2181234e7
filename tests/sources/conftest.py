"""What the tests of sources share: a `read` by its yaml, and what is refused."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from halflife.tables import EVENT_COLUMNS, IMPRESSION_COLUMNS, ITEM_COLUMNS, Tables, check_columns
from tests.refusals import refusal

CONF = Path(__file__).parents[2] / "conf"


@cache
def composed(name: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=[f"data={name}"]).data


def read_as(name: str, files: list[Path], settings: dict[str, Any] | None = None) -> Tables:
    """The Tables of files under `data=NAME`, some settings of its source changed."""
    source = OmegaConf.create({"source": composed(name).source})
    OmegaConf.set_struct(source, True)
    merged = OmegaConf.merge(source, {"source": settings or {}})
    return instantiate(merged.source)(files)


def rows_of(tables: Tables) -> dict[str, list[tuple[Any, ...]]]:
    """The three frames as the Store takes them, sorted; without impressions, an empty list."""
    frames = {
        "items": check_columns("items", tables.items, ITEM_COLUMNS),
        "events": check_columns("events", tables.events, EVENT_COLUMNS),
    }
    if tables.impressions is not None:
        frames["impressions"] = check_columns("impressions", tables.impressions, IMPRESSION_COLUMNS)
    found = {name: sorted(frame.collect().rows(), key=str) for name, frame in frames.items()}
    return {"impressions": []} | found


@pytest.fixture
def read() -> Callable[..., Tables]:
    return read_as


@pytest.fixture
def rows() -> Callable[[Tables], dict[str, list[tuple[Any, ...]]]]:
    return rows_of


@pytest.fixture
def refused() -> Callable[[Callable[[], Any]], str]:
    return refusal
