"""Times as logs write them → Unix seconds: numbers of any unit, ISO 8601, or a declared format."""

import re
import zoneinfo

import polars as pl

from halflife.errors import InputError
from halflife.sources.text_files import quoted

UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_SMALLEST = 10**8
"""Unix seconds of March 1973: a smaller number is a counter, a date such as 20210301 or a very old time."""

_ISO = [
    f"%Y-%m-%d{between}{clock}{zone}"
    for between in ("T", " ")
    for clock in ("%H:%M:%S%.f", "%H:%M")
    for zone in ("", "%#z")
] + ["%Y-%m-%d"]


def check_zone(zone: str) -> str:
    """Return the name of a time zone, or refuse it.

    >>> check_zone("Europe/Oslo")
    'Europe/Oslo'
    """
    try:
        zoneinfo.ZoneInfo(zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise InputError(
            f"data.source.time_zone must be a time zone of the IANA list, got {zone}; "
            "give one such as UTC or Europe/Oslo"
        ) from None
    return zone


def check_time(time: str) -> str:
    """Return `detect`, a unit or a format with % codes, or refuse it."""
    if not isinstance(time, str) or not (time == "detect" or time in UNITS or "%" in time):
        raise InputError(
            f"data.source.time must be detect, {', '.join(UNITS)} or a format such as '%d/%m/%Y %H:%M', "
            f"got {time}; give one of them"
        )
    if "%" in time:
        try:
            pl.Series(["x"]).str.to_datetime(time, strict=False)
        except pl.exceptions.PolarsError:
            raise InputError(
                f"data.source.time must be a format that tells year, month and day, got {time}; "
                "see strftime for its codes"
            ) from None
    return time


def detect(column: str, where: str, sample: pl.Series) -> str:
    """How a column writes its times, from a sample: a unit, a format of ISO 8601, or `typed` for dates.

    The unit of a number is told by its size: a value below 1e11 is in seconds, below 1e14 in milliseconds,
    and so on, which holds for every moment from 1973 to 5138.

    Args:
        column: its name, for the message.
        where: the file or query, for the message.
        sample: the column's first values.

    Raises:
        InputError: when the values are of no such form, or too small to tell.

    >>> detect("at", "clicks.csv", pl.Series(["1609459200000"]))
    'ms'
    >>> detect("at", "clicks.csv", pl.Series(["2021-01-01 10:00"]))
    '%Y-%m-%d %H:%M'
    """
    if sample.dtype.is_temporal():
        return "typed"
    words = sample.cast(pl.String).str.strip_chars().replace("", None).drop_nulls()
    if len(words) == 0:
        raise InputError(f"{column} in {where} must hold times, got empty values alone; name another column")
    numbers = words.cast(pl.Float64, strict=False)
    if numbers.null_count() * 2 < len(words):
        middle = float(numbers.abs().median() or 0)  # type: ignore[arg-type]
        if middle < _SMALLEST:
            raise InputError(
                f"{column} in {where} must be Unix time or a date that can be told apart, got {words[0]}; "
                "say what it is: data.source.time=s for seconds, or a format such as data.source.time=%Y%m%d"
            )
        return unit_of(middle)
    parsed = {form: words.str.to_datetime(form, strict=False).null_count() for form in _ISO}
    best = min(_ISO, key=lambda form: parsed[form])
    if parsed[best] * 2 > len(words):
        raise InputError(
            f"{column} in {where} must be Unix time or ISO 8601 such as 2021-03-01 10:00:00, got "
            f"{quoted(words[0])}; declare its form, for example data.source.time='%d/%m/%Y %H:%M'"
        )
    return best


def unit_of(value: float) -> str:
    """The unit in which a number is a moment between 1973 and 5138, told by its size.

    >>> unit_of(1.6e9), unit_of(1.6e12), unit_of(1.6e18)
    ('s', 'ms', 'ns')
    """
    return next((unit for unit, factor in UNITS.items() if abs(value) < 10**11 * factor), "ns")


def seconds(column: str, dtype: pl.DataType, time: str, zone: str) -> pl.Expr:
    """Unix seconds (int64, rounded down) of a column, null where a value is of another form.

    A local time without offset is taken as of `zone`: one that an autumn change repeats as the first of the
    two, one that a spring change skips as if the clock had not been changed yet.

    Args:
        column: its name.
        dtype: its type.
        time: a unit, a format, or `typed`.
        zone: IANA name, for times that carry no offset.

    >>> frame = pl.DataFrame({"at": ["1956-03-01", "soon"]})
    >>> frame.select(seconds("at", pl.String(), "%Y-%m-%d", "UTC")).to_series().to_list()
    [-436665600, None]
    """
    value = pl.col(column)
    if dtype.is_temporal():
        return _utc(value.cast(pl.Datetime("us")) if dtype == pl.Date else value, _aware(dtype), zone)
    if time in UNITS:
        factor = UNITS[time]
        if dtype.is_integer():
            return value.cast(pl.Int64) // factor
        broken = (value.cast(pl.Float64, strict=False) / factor).floor().cast(pl.Int64, strict=False)
        if dtype.is_float():
            return broken
        return pl.coalesce(value.str.strip_chars().cast(pl.Int64, strict=False) // factor, broken)
    parsed = value.cast(pl.String).str.strip_chars().str.to_datetime(time, strict=False, time_unit="us")
    return _utc(parsed, bool(re.search(r"%[#:]*z|%s|%\+", time)), zone)


def of_one_unit(column: str, dtype: pl.DataType, time: str) -> pl.Expr:
    """True where a number has the size that its unit gives it, or is too small to have another."""
    if time not in UNITS or dtype.is_temporal():
        return pl.lit(True)
    return pl.col(column).cast(pl.Float64, strict=False).abs() < 10**11 * UNITS[time]


def described(time: str) -> str:
    """A form of times in words, the end of "must …"."""
    if time in UNITS:
        return f"be a number (Unix {_NAMES[time]})"
    example = {
        "%Y": "2021",
        "%m": "03",
        "%d": "01",
        "%H": "10",
        "%M": "05",
        "%S": "00",
        "%.f": "",
        "%#z": "Z",
    }
    return "be a time such as " + re.sub(r"%(#z|\.f|.)", lambda m: example.get(m.group(), m.group()), time)


def name_of(unit: str) -> str:
    """A unit in words."""
    return _NAMES[unit]


def _aware(dtype: pl.DataType) -> bool:
    return isinstance(dtype, pl.Datetime) and dtype.time_zone is not None


def _utc(moment: pl.Expr, aware: bool, zone: str) -> pl.Expr:
    """Unix seconds of datetimes that carry a time zone, or are local to one."""
    if aware or zone == "UTC":
        return moment.dt.epoch("s").cast(pl.Int64)
    hour = pl.duration(hours=1)
    local, later = (
        at.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null").dt.epoch("s")
        for at in (moment, moment + hour)
    )
    return pl.coalesce(local, later).cast(pl.Int64)
