"""What a run is told about its settings before it starts; what it refuses is tested at the command line."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from halflife import settings
from halflife.errors import InputError

CONF = Path(__file__).parents[1] / "conf"


@pytest.mark.parametrize(
    ("there", "precision", "said"),
    [(False, "bf16-mixed", True), (True, "bf16-mixed", False), (False, "32-true", False)],
)
def test_bf16_on_a_processor_without_it_is_told(
    there: bool,
    precision: str,
    said: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = {"avx2": True, "avx512_bf16": there, "amx_bf16": False}
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: flags)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[f"trainer.precision={precision}"])
    settings.check_trainer(cfg.trainer)
    assert ("no instructions" in capsys.readouterr().out) == said


def test_a_run_without_a_refit_may_not_learn_a_half_life() -> None:
    def composed(*words: str) -> None:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            settings.check(compose("train", overrides=["refit=false", *words]))

    composed("decay=power", "decay.learn=false")
    with pytest.raises(InputError, match="refit must be true where decay learns"):
        composed("decay=weibull", "decay.learn=false")  # its shape still is
