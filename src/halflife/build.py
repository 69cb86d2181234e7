"""Builds the Store of a log without training, and describes it: a table, card.json and card.html.

python -m halflife.build data=movielens data.root=DIR
"""

import json
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from halflife.cli import CONFIG_DIR, guarded, run_app
from halflife.errors import text, whole


def table(found: dict[str, Any]) -> Any:
    """The card for a terminal."""
    from rich.markup import escape
    from rich.table import Table

    from halflife.card_page import date
    from halflife.splits import duration

    counts, events, splits = found["counts"], found["events"], found["split"]
    out = Table(title=escape(f"Data card: {found['source']} · {found['fingerprint']}"), show_header=False)
    out.add_column("")
    out.add_column("", justify="right")
    for name in ("users", "items", "events", "impressions", "candidates"):
        out.add_row(name, f"{counts[name]:,}")
    out.add_row("candidates clicked", f"{counts['positives'] / counts['candidates']:.2%}")
    if found["best_auc"] is not None:
        out.add_row("best possible AUC", f"{found['best_auc']:.4f}")
    out.add_section()
    out.add_row("from", date(found["timeline"]["first_s"]))
    out.add_row("to (UTC)", date(found["timeline"]["last_s"]))
    out.add_row("events of a user, median", f"{events['per_user']['p50']:,.0f}")
    if "gap_days" in events:
        out.add_row("gap between a user's events, median", duration(events["gap_days"]["p50"]))
        out.add_row("user span, median", duration(events["user_span_days"]["p50"]))
        if events["one_sitting_share"] is not None:
            out.add_row("users of several events in one sitting", f"{events['one_sitting_share']:.1%}")
    out.add_row("events that repeat an item", f"{events['repeat_share']:.1%}")
    if "text" in found:
        out.add_row("tokens of a text, median", f"{found['text']['median']:g}")
    if "vectors" in found:
        out.add_row("items with a vector", f"{found['vectors']['share']:.1%}")
        out.add_row("numbers of a vector", f"{found['vectors']['dimension']:,}")
    out.add_section()
    out.add_row("split", escape(found["split_rule"]["name"]))
    for split, s in splits.items():
        out.add_row(f"{split}: impressions", f"{s['impressions']:,}")
        out.add_row(f"{split}: from (UTC)", date(s["first_s"]))
        out.add_row(f"{split}: clicked", f"{s['positive_rate']:.2%}")
        if "cold_users" in s:
            out.add_row(f"{split}: impressions of cold users", f"{s['cold_user_impressions']:.1%}")
            out.add_row(f"{split}: candidates that are cold items", f"{s['cold_item_candidates']:.1%}")
    out.add_section()
    for reason, rows in found["dropped"].items():
        out.add_row(escape(f"left out: {reason}"), f"{rows:,}")
    for f in found["quality"]:
        if f["kept"]:  # the others are among those left out
            out.add_row(escape(f"kept, but looks wrong: {f['what']}"), f"{f['rows']:,}")
    out.add_row("histories checked for the future", f"{found['leakage']['histories_checked']:,}")
    out.add_row("events found that lie in it", f"{found['leakage']['future_events_found']:,}")
    return out


def run(cfg: DictConfig, run_dir: Path) -> int:
    """Build, describe, write `card.json`, `card.html` and `card.txt`, and print the card.

    Returns:
        How many impressions the Store holds.
    """
    from hydra.utils import instantiate

    from halflife.card import describe
    from halflife.card_page import page
    from halflife.tracking import console, quiet, write_table

    quiet()
    if cfg.pretrained is not None:
        text("pretrained", cfg.pretrained, "a model, or null to count no tokens")
    max_tokens = whole("max_tokens", cfg.max_tokens, "tokens", at_least=1)
    data = instantiate(cfg.data)
    found = describe(data, cfg.pretrained, max_tokens)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "card.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
    (run_dir / "card.html").write_text(page(found), encoding="utf-8")
    write_table(run_dir / "card.txt", [table(found)])
    for warning in found["warnings"]:
        console().print(f"note: {warning}", markup=False)
    console().print(
        f"Store: {data.store.directory}\ncard: {run_dir / 'card.html'}", markup=False, soft_wrap=True
    )
    return int(found["counts"]["impressions"])


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="build")
def main(cfg: DictConfig) -> int:
    """Called by Hydra."""
    return int(guarded(run, cfg, CONFIG_DIR / "build.yaml"))


if __name__ == "__main__":
    run_app(main, run, CONFIG_DIR / "build.yaml")
