"""The worked example of docs/data.md does what the page says."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "data.md").read_text()
BLOCKS = dict(re.findall(r"^```(csv|json|yaml)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[2::-1])


def test_the_worked_example_reads_as_the_page_says(tmp_path):
    (tmp_path / "orders.csv").write_text(BLOCKS["csv"])
    (tmp_path / "articles.jsonl").write_text(BLOCKS["json"])
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        table = compose("train", overrides=["data=table"]).data
    OmegaConf.set_struct(table, True)
    shop = OmegaConf.create(BLOCKS["yaml"])
    del shop["defaults"]
    tables = instantiate(OmegaConf.merge(table, shop).source)(sorted(tmp_path.iterdir()))
    texts = tables.items.lazy().collect()["text"].to_list()
    for text in texts[:2]:
        assert f"`{text}`" in PAGE
    assert texts[2] == "Standing desk by Upright"
    events = tables.events.lazy().collect()
    assert events.height == 6
    assert events["timestamp_s"][0] == 1_709_280_900  # 09:15 in Berlin
    assert events["value"].sum() == 7


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "conf" / "data").glob("*.yaml")))
def test_every_log_has_its_section(name):
    sections = [
        s.lower().replace("-", "").replace(" ", "_") for s in re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    ]
    called = {"table": "your_own_log", "amazon": "amazon_reviews"}.get(name, name)
    assert called in sections or name == "synthetic"
