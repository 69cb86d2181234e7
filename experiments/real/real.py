"""Does a click fade on real logs? Every kernel on the same vectors, over seeds of negatives and weights.

python experiments/real/real.py ROOT RUNS [--logs …] [--seeds …]
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from halflife.compare import AGAINST, half_life_text, run

HERE = Path(__file__).resolve().parent
LOGS = {"online_retail": "online-retail", "movielens": "movielens-latest-small"}  # folders below ROOT


def trained(log: str, root: Path, seed: int, runs: Path) -> Path:
    """The directory of a run without decay, made by train.py where it is not there: no kernel had a part in
    its vectors.
    """
    run_dir = runs / log / f"seed-{seed}"
    if not (run_dir / "metrics.json").exists():
        overrides = [f"data={log}", f"data.root={root / LOGS[log]}", "model=bert_frozen", "decay=none"]
        overrides += [
            f"seed={seed}",
            f"data.negatives.seed={seed}",
            "logger=none",
            f"hydra.run.dir={run_dir}",
        ]
        subprocess.run([sys.executable, HERE.parents[1] / "train.py", *overrides], check=True)
    return run_dir


def written(found: dict[str, Any], impressions: int) -> str:
    """The comparison as Markdown, by loss on the test split."""
    lines = [
        f"{impressions:,} test impressions a seed; differences from no decay, with 95 % over users; "
        "half-lives in days, their range over the seeds where one is identified.",
        "",
        "| decay | half-life | AIC − none's | AUC | AUC − none's | loss − none's |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        half_life = half_life_text(row["runs"], "days")
        auc, loss = (
            f"{row[f'{what}_difference']:+.{digits}f} "
            f"[{row[f'{what}_difference_low']:+.{digits}f}, {row[f'{what}_difference_high']:+.{digits}f}]"
            for what, digits in (("auc", 4), ("loss", 5))
        )
        if name == AGAINST:
            auc = loss = ""
        cells = [name, half_life, f"{row['aic_over_none']:+.1f}", f"{row['auc']:.4f}", auc, loss]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train what is missing, compare, and leave a picture and a table beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="folder of the logs")
    parser.add_argument("runs", type=Path, help="where runs are kept; what is there is not run again")
    parser.add_argument("--logs", nargs="+", choices=LOGS, default=list(LOGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    given = parser.parse_args()
    for log in given.logs:
        found = [trained(log, given.root.resolve(), seed, given.runs.resolve()) for seed in given.seeds]
        kernels = run(found, None, seed=1, out=given.runs / log)
        impressions = json.loads((given.runs / log / "compare.json").read_text())["test_impressions"]
        (HERE / f"{log}.md").write_text(written(kernels, impressions))
        (given.runs / log / "compare.png").rename(HERE / f"{log}.png")


if __name__ == "__main__":
    main()
