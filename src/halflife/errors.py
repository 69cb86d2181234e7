"""Errors a person can act on: one sentence, raised where the value is known."""

import difflib
import math
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """The user's input is wrong; the message is one sentence: `NAME must be RULE (unit), got VALUE; TO DO`.

    The command line prints it alone and exits with code 2. Any other exception is a defect of ours and keeps
    its traceback.
    """


def shown(value: Any) -> str:
    """A value as the user typed it, for a sentence.

    >>> shown(None), shown(""), shown(True), shown(2.5)
    ('null', 'nothing', 'true', '2.5')
    """
    words = {None: "null", "": "nothing", True: "true", False: "false"}
    return words[value] if value is None or value == "" or isinstance(value, bool) else str(value)


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


def meant(value: Any, options: Iterable[str]) -> str:
    """`near` for a sentence that has listed the choices already.

    >>> meant("zzz", ["power", "none"])
    'choose one of them'
    """
    end = near(str(value), options)
    return "choose one of them" if end.startswith("choose") else end


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
        raise InputError(f"{name} must be {rule} ({unit}), got {shown(value)}; {hint or 'give ' + rule}")
    return float(value)


def whole(name: str, value: Any, unit: str, *, at_least: int, at_most: int | None = None) -> int:
    """Check that a setting is a whole number in its range, and return it as an int.

    A float without a fraction is one: YAML reads 1e3 so.

    Args:
        name: the setting as the user typed it, for example `data.batch_size`.
        value: what was given.
        unit: its unit, for the message.
        at_least, at_most: the range; without `at_most` it is open.

    Raises:
        InputError: when the value is not a whole number or out of range.

    >>> whole("data.batch_size", 1e3, "impressions", at_least=1)
    1000
    >>> whole("data.batch_size", 2.5, "impressions", at_least=1)
    Traceback (most recent call last):
    halflife.errors.InputError: data.batch_size must be a whole number (impressions), got 2.5; give 1 or more
    """
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not ok or value != int(value) or value < at_least or (at_most is not None and value > at_most):
        fit = f"{at_least} or more" if at_most is None else f"{at_least} to {at_most}"
        raise InputError(f"{name} must be a whole number ({unit}), got {shown(value)}; give {fit}")
    return int(value)


def flag(name: str, value: Any) -> bool:
    """Check that a setting is true or false, and return it; a mistyped word would otherwise count as true.

    >>> flag("data.negatives.exclude_seen", "flase")
    Traceback (most recent call last):
    halflife.errors.InputError: data.negatives.exclude_seen must be true or false, got flase; give one of them
    """
    if not isinstance(value, bool):
        raise InputError(f"{name} must be true or false, got {shown(value)}; give one of them")
    return value


def text(name: str, value: Any, what: str) -> str:
    """Check that a setting is a word or path, and return it.

    >>> text("cache_dir", None, "a directory")
    Traceback (most recent call last):
    halflife.errors.InputError: cache_dir must be a directory, got null; give its name
    """
    if not isinstance(value, str) or not value:
        raise InputError(f"{name} must be {what}, got {shown(value)}; give its name")
    return value


def listed(name: str, value: Any, what: str) -> list[str]:
    """Check that a setting is a list, and return it as words; a bare word would otherwise count as letters.

    >>> listed("data.files", "ratings.csv", "globs")
    Traceback (most recent call last):
    halflife.errors.InputError: data.files must be a list of globs, got ratings.csv; write [ratings.csv]
    """
    if isinstance(value, str) or not isinstance(value, Iterable):
        example = f"[{value}]" if value and isinstance(value, str) else "it in brackets"
        raise InputError(f"{name} must be a list of {what}, got {shown(value)}; write {example}")
    return [str(word) for word in value]


def choice(name: str, value: Any, options: Iterable[str]) -> str:
    """Check that a setting is one of a few words, and return it.

    >>> choice("data.age", "rank", ["days", "rank"])
    'rank'
    """
    names = list(options)
    if value not in names:
        raise InputError(
            f"{name} must be one of {', '.join(names)}, got {shown(value)}; {meant(value, names)}"
        )
    return str(value)
