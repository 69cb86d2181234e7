"""A progress bar on a terminal, nothing elsewhere."""

import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def bar(steps: Sequence[T], what: str) -> Iterable[T]:
    """Iterate with a bar on standard error, which goes away when done; silent where nobody watches.

    >>> list(bar([1, 2], "count"))
    [1, 2]
    """
    if len(steps) < 2 or not sys.stderr.isatty():
        return steps
    from rich.console import Console
    from rich.progress import track

    return track(steps, description=what, console=Console(stderr=True), transient=True)
