"""Data flows one way: a module imports only from those before it."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "halflife"

ORDER = [
    "errors",
    "progress",
    "settings",
    "explain",
    "tables",
    "quality",
    "pools",
    "negatives",
    "splits",
    "pseudonyms",
    "sources",
    "spill",
    "item_vectors",
    "shards",
    "engines",
    "impressions",
    "users",
    "arrays",
    "pretrained",
    "store",
    "ranges",
    "draws",
    "sampler",
    "batches",
    "datamodule",
    "encoders",
    "decay",
    "interest",
    "losses",
    "metrics",
    "recommender",
    "checkpoints",
    "parts",
    "likelihood",
    "heterogeneity",
    "estimate",
    "loggers",
    "tracking",
    "curves",
    "summary",
    "mlm",
    "cli",
    "card",
    "card_page",
    "build",
    "profile",
    "compare",
    "recovery_report",
    "recovery",
    "dashboard",
    "report",
    "multirun",
]


def imported(path: Path) -> set[str]:
    """Rooms of the package that a module imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "halflife":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("halflife.")}
    return found


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda p: str(p.relative_to(SRC)))
def test_a_module_imports_only_from_rooms_before_it(path: Path) -> None:
    room = path.relative_to(SRC).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    assert room in ORDER, f"{room} has no place in the order of flow"
    for other in imported(path):
        assert ORDER.index(other) <= ORDER.index(room), f"{path.name} imports {other}, which comes after it"


def test_the_order_names_no_room_that_is_gone() -> None:
    assert {p.name.removesuffix(".py") for p in SRC.iterdir() if p.name[0] not in "_."} == set(ORDER)


def test_help_needs_no_torch() -> None:
    early = {"errors", "explain", "cli"}
    for name in early:
        assert "torch" not in (SRC / f"{name}.py").read_text().split("def ")[0]
