"""python -m halflife.report PATH [--out FILE]"""

import argparse
from pathlib import Path

from halflife.cli import stop
from halflife.errors import InputError
from halflife.report.page import Page, write


def page_of(path: Path) -> Page:
    """The page of whatever a directory holds: a run, a study, or several runs.

    Args:
        path: what train.py wrote, or `python train.py -m`.

    Raises:
        InputError: for a directory that holds none of them.
    """
    if not path.is_dir():
        raise InputError(f"PATH must be a directory, got {path}; give one that train.py wrote")
    if (path / "metrics.json").is_file():
        from halflife.report import run

        return run.page(path)
    if any((path / name).is_file() for name in ("study.log", "study.json", "trials.parquet")):
        from halflife.report import study

        return study.page(path)
    runs = sorted(file.parent for file in path.rglob("metrics.json"))
    if not runs:
        raise InputError(
            f"PATH must hold a run, a multirun or a study, got {path} without metrics.json or study.log; "
            "give a directory that train.py finished"
        )
    from halflife.report import multirun

    return multirun.page(path, runs)


def main() -> None:
    """Command line of `python -m halflife.report`."""
    parser = argparse.ArgumentParser(
        prog="python -m halflife.report",
        description="One run, a multirun or a study → one HTML page that opens offline, and Markdown.",
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="a directory that train.py wrote")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the HTML file (PATH/report.html)")
    given = parser.parse_args()
    try:
        out = given.out if given.out is not None else given.path / "report.html"
        if out.suffix != ".html" or (given.out is not None and not out.resolve().parent.is_dir()):
            raise InputError(
                f"--out must be an .html file in a directory that exists, got {out}; give another one"
            )
        write(page_of(given.path), out)
    except InputError as error:
        stop(str(error))
    print(f"{out} and {out.with_suffix('.md').name} are written")


if __name__ == "__main__":
    main()
