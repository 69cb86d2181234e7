"""Errors a person can act on: one sentence, raised where the value is known."""

import difflib
import math
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """The user's input is wrong; the message is one sentence: `NAME must be RULE (unit), got VALUE; WHAT TO
    DO`.

    The command line prints it alone and exits with code 2. Any other exception is a defect of ours and keeps
    its traceback.
    """


def near(name: str, options: Iterable[str]) -> str:
    """The choices closest to a mistyped name, as the end of a sentence.

    >>> near("exponentail", ["exponential", "power", "none"])
    'did you mean exponential?'
    >>> near("zzz", ["power", "none"])
    'choose one of none, power'
    """
    names = sorted(set(options))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"choose one of {', '.join(names)}"


def number(
    name: str,
    value: Any,
    unit: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    hint: str = "",
) -> float:
    """Check that a setting is a finite number in its range, and return it as a float.

    Args:
        name: the setting as the user typed it, for example `decay.half_life_days`.
        value: what was given.
        unit: its unit, for the message.
        above, at_least, at_most: the range; a bound left out is open.
        hint: what to do instead; the range is repeated when empty.

    Raises:
        InputError: when the value is not a number, not finite or out of range.

    >>> number("decay.half_life_days", 5, "days", above=0)
    5.0
    >>> number("interest.sink", -1, "clicks", above=0)
    Traceback (most recent call last):
    halflife.errors.InputError: interest.sink must be a number above 0 (clicks), got -1; give a number above 0
    """
    bounds = [
        f"above {above:g}" if above is not None else "",
        f"at least {at_least:g}" if at_least is not None else "",
        f"at most {at_most:g}" if at_most is not None else "",
    ]
    rule = "a number " + (" and ".join(b for b in bounds if b) or "that is finite")
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    ok = ok and (above is None or value > above) and (at_least is None or value >= at_least)
    if not ok or (at_most is not None and value > at_most):
        raise InputError(f"{name} must be {rule} ({unit}), got {value}; {hint or 'give ' + rule}")
    return float(value)


def choice(name: str, value: Any, options: Iterable[str]) -> str:
    """Check that a setting is one of a few words, and return it.

    >>> choice("data.age", "rank", ["days", "rank"])
    'rank'
    """
    names = list(options)
    if value not in names:
        raise InputError(f"{name} must be one of {', '.join(names)}, got {value}; {near(str(value), names)}")
    return str(value)
