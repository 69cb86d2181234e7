"""Recovery: settings are refused, what is planted is found, controls claim nothing, the report adds up."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from halflife.cli import CONFIG_DIR
from halflife.errors import InputError
from halflife.recovery import check, run, summarise


def settings(tmp_path: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        small = ["impressions=1000", "days=30", "seeds=2", "workers=1", f"cache_dir={tmp_path}"]
        return compose("recovery", overrides=[*small, *overrides])


def found(tmp_path: Path, *overrides: str) -> dict[str, Any]:
    run(settings(tmp_path, *overrides), tmp_path)
    return json.loads((tmp_path / "recovery.json").read_text())


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("kernel=linear", "kernel must be one of"),
        ("kernels=[exponential,foo]", "kernels must be one of"),
        ("half_life_days=0", "half_life_days must be a number above 0"),
        ("impressions=3", "impressions must be a number at least 100"),
        ("control=shufled", "control must be one of"),
        ("seeds=0", "seeds must be a whole number .logs., got 0"),
        ("seeds=2.5", "seeds must be a whole number .logs., got 2.5"),
        ("user_sd=-1", "user_sd must be a number at least 0"),
        ("composition=scale", "composition must be one of"),
        ("kernels=exponential", "kernels must be a list of kernels, got exponential"),
        ("first_seed=-2", "first_seed must be a whole number"),
        ("first_seed=x", "first_seed must be a whole number"),
        ("by_topic=maybe", "by_topic must be true or false, got maybe"),
        ("topic_sd=-1", "topic_sd must be a number at least 0"),
    ],
)
def test_a_setting_that_will_not_do_is_refused(tmp_path: Path, override: str, start: str) -> None:
    with pytest.raises(InputError, match=f"^{start}"):
        check(settings(tmp_path, override))


def test_what_is_planted_is_found_and_the_kernel_told(tmp_path: Path) -> None:
    report = found(tmp_path, "half_life_days=3")
    assert (report["failures"], report["not_identified"]) == (0, 0)
    assert abs(report["bias"]) < 0.4  # two logs of 1,000 impressions: sd of log half-life is about 0.1 each
    assert sum(report["chosen_kernel"].values()) == 2
    assert all(set(r["aic"]) == {"exponential", "power", "weibull", "gaussian"} for r in report["logs"])
    assert all(r["gain"] > 2 for r in report["logs"])
    assert (tmp_path / "recovery.png").stat().st_size > 0


@pytest.mark.parametrize("control", ["none", "shuffled"])
def test_a_control_claims_no_half_life(tmp_path: Path, control: str) -> None:
    # under `sink` the ages of a history tell how long its reader stayed away, however they are dealt
    report = found(tmp_path, f"control={control}", "composition=normalised", "kernels=[]")
    assert report["not_identified"] == 2
    assert report["bias"] is None


def test_readers_who_differ_are_told_from_a_power_law_by_the_alternative_beside_it(tmp_path: Path) -> None:
    report = found(tmp_path, "user_sd=1.2", "by_user=true", "kernels=[power]", "seeds=1", "impressions=3000")
    (log,) = report["logs"]
    assert log["aic"]["exponential by user"] < log["aic"]["exponential"] - 2
    assert log["user_sd"] == pytest.approx(1.2, abs=0.7)


def test_half_lives_of_topics_are_found_beside_each_other(tmp_path: Path) -> None:
    report = found(tmp_path, "topic_sd=0.8", "by_topic=true", "kernels=[]", "impressions=3000")
    assert report["chosen_kernel"] == {"exponential by topic": 2}
    together = report["topics"]
    assert (together["topics"], together["not_identified"]) == (24, 0)
    assert abs(together["bias"]) < 0.3
    assert together["coverage"] > 0.75
    drawn = [t["planted"] for t in report["logs"][0]["topics"]["by_topic"].values()]
    assert len(set(drawn)) == 12
    assert (tmp_path / "topics.png").stat().st_size > 0


def test_topics_that_are_alike_are_told_apart_by_nothing(tmp_path: Path) -> None:
    report = found(tmp_path, "by_topic=true", "kernels=[]", "seeds=1", "impressions=3000", "half_life_days=3")
    assert report["topics"]["sd_between"] < 0.2
    (log,) = report["logs"]
    assert log["aic"]["exponential by topic"] > log["aic"]["exponential"]
    assert all(t["planted"] == 3 for t in log["topics"]["by_topic"].values())


def test_where_nothing_fades_no_topic_is_beside_a_planted_half_life(tmp_path: Path) -> None:
    report = found(tmp_path, "control=none", "by_topic=true", "kernels=[]", "seeds=1")
    assert (report["topics"]["topics"], report["topics"]["coverage"]) == (0, None)
    assert (tmp_path / "topics.png").stat().st_size > 0


def test_a_setting_that_no_log_can_be_fitted_with_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r" must .*, got .*; "):
        found(tmp_path, "interest=attention", "composition=normalised", "kernels=[]")
    assert not (tmp_path / "recovery.json").exists()


def test_a_log_that_fails_is_reported_and_not_counted(tmp_path: Path) -> None:
    told = {
        "identified": True, "half_life_days": 5.5, "low": 5.1, "high": 6.0, "sd_log_half_life": 0.04,
        "impressions": 10, "chosen": "power", "topics": None,
    }  # fmt: skip
    wide = told | {"low": 4.0}
    rows = [told, wide, told | {"identified": False}, {"seed": 3, "failure": "InputError: no"}]
    report = summarise(rows, settings(tmp_path, "half_life_days=5"))
    assert (report["seeds"], report["failures"], report["not_identified"]) == (4, 1, 1)
    assert report["coverage"] == 0.5
    assert report["bias"] == pytest.approx(0.1)
    assert report["chosen_kernel"] == {"power": 3}
