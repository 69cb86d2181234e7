"""The pages that are made from the code name what the code has."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "conf" / "decay").glob("*.yaml"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_kernels", ROOT / "docs" / "kernels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_says_of_every_kernel_when_to_use_it(script: ModuleType) -> None:
    assert sorted(script.WHEN) == NAMES


@pytest.mark.parametrize("name", ["power", "by_category", "rank_exponential", "fourier"])
def test_the_page_of_kernels_is_as_the_script_writes_it(
    name: str, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kernels").mkdir()
    monkeypatch.setattr(script, "DOCS", tmp_path)
    assert script.section(name) in (ROOT / "docs" / "kernels.md").read_text()
    assert (tmp_path / "kernels" / f"{name}.png").stat().st_size > 0


def test_every_kernel_has_its_picture_and_no_picture_is_left_over() -> None:
    assert sorted(p.stem for p in (ROOT / "docs" / "kernels").glob("*.png")) == NAMES
