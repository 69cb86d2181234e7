"""Which impressions are train, val and test: cut-offs by the clock, sliding windows, leave-last-out."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halflife.errors import InputError, choice, near, number, shown, whole
from halflife.negatives import baskets

Array = NDArray[Any]

UNITS_S = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
LEAKS = "leave-last-out leaks: train holds impressions later than test's"


@dataclass(frozen=True)
class Split:
    """How impressions are split.

    By time, train < val < test, and impressions that share a second stay on one side. Each of val and test is

        a number: the fraction of the impressions, the newest being test's;
        a duration such as `7d` (m, h, d, w): val ends where test begins, test with the log;
        a date such as `2019-11-14` or `2019-11-14T06:00` (UTC): where the part begins.

    Leave-last-out takes each user's last moment for test and the one before for val, of users with at least
    three: the usual protocol, under which a model trains on a time that test has yet to reach. A moment is
    all impressions of a user within one second, so that no basket is split.

    Args:
        val, test: as above; both of one kind. Leave-last-out reads neither, nor may it be given what follows.
        by: `time`, or `last` for leave-last-out.
        train: a duration before val, so that train has one length in every window; None takes everything.
        window: with durations, how many lengths of test all cut-offs are moved into the past, at least 0;
            0, 1, 2 … are the sliding windows of a rolling evaluation.

    Raises:
        InputError: for a value out of range, or kinds that do not go together.

    Source: Meng et al., Exploring Data Splitting Strategies for the Evaluation of Recommendation Models
    (RecSys 2020), on the leak; Tashman, Out-of-sample tests of forecasting accuracy (Int. J. Forecasting
    2000), on rolling origins.
    """

    val: float | str
    test: float | str
    by: str
    train: str | None
    window: int

    def __post_init__(self) -> None:
        choice("data.split.by", self.by, ["time", "last"])
        whole("data.split.window", self.window, "lengths of test", at_least=0)
        for name, nothing in (("train", None), ("window", 0)):
            if self.by == "last" and getattr(self, name) != nothing:
                raise InputError(
                    f"data.split.{name} must be {shown(nothing)} with data.split.by=last, which cuts at no "
                    f"time, got {getattr(self, name)}; leave it out or add data.split.by=time"
                )
        kinds = [_kind(f"data.split.{name}", getattr(self, name)) for name in ("val", "test")]
        if kinds[0] != kinds[1]:
            raise InputError(
                f"data.split.val must be of the same kind as data.split.test, got a {kinds[0]} and a "
                f"{kinds[1]}; give two fractions, two durations or two dates"
            )
        if kinds[0] == "fraction":
            for name in ("val", "test"):
                number(f"data.split.{name}", getattr(self, name), "fraction", above=0, at_most=0.8)
            both = float(self.val) + float(self.test)
            number("data.split.val + data.split.test", both, "fraction", at_most=0.95)
        if self.train is not None and _kind("data.split.train", self.train) != "duration":
            raise InputError(
                f"data.split.train must be a duration or null, got {self.train}; give one such as 30d"
            )
        if self.window and kinds[0] != "duration":
            raise InputError(
                f"data.split.window must be 0 unless val and test are durations, got {self.window}; give "
                "for example data.split.val=1d data.split.test=1d"
            )

    @property
    def name(self) -> str:
        """The split in a few words, for every output."""
        if self.by == "last":
            return LEAKS
        parts = [f"val {self.val:g}, test {self.test:g}"] if isinstance(self.val, float) else []
        parts = parts or [f"val {self.val}, test {self.test}"]
        parts += [f"train {self.train}"] if self.train else []
        return ", ".join(parts + ([f"window {self.window}"] if self.window else []))

    @property
    def leaks(self) -> bool:
        """Whether train holds impressions that are later than some of test's."""
        return self.by == "last"

    def rows(self, time: Array, user: Array) -> dict[str, Array]:
        """Rows of train, val and test, each ascending.

        Args:
            time: sorted, seconds, one entry an impression.
            user: of each impression.

        Raises:
            InputError: when a split would be empty.
        """
        if self.by == "last":
            found = _last(np.asarray(time), np.asarray(user))
        else:
            cuts = self._cuts(np.asarray(time))
            first, val, test, end = np.searchsorted(time, cuts)
            found = {
                "train": np.arange(first, val),
                "val": np.arange(val, test),
                "test": np.arange(test, end),
            }
        for name, rows in found.items():
            if len(rows) == 0:
                raise InputError(
                    f"data.split must leave every part at least 1 impression, got {name}=0 of {len(time)}; "
                    "give another cut-off or a longer log"
                )
        return found

    def _cuts(self, time: Array) -> list[int]:
        """Where train, val and test begin, and where test ends, in seconds."""
        n = len(time)
        if n == 0:
            return [0, 0, 0, 0]
        end = int(time[-1]) + 1
        kind = _kind("data.split.val", self.val)
        if kind == "fraction":
            older = (1 - float(self.val) - float(self.test), 1 - float(self.test))
            val, test = (int(time[min(round(n * share), n - 1)]) for share in older)
        elif kind == "date":
            val, test = _moment(str(self.val)), _moment(str(self.test))
            if val >= test:
                raise InputError(
                    f"data.split.val must begin before data.split.test (date), got {self.val} and "
                    f"{self.test}; swap them or correct one"
                )
        else:
            end -= self.window * _seconds(str(self.test))
            test = end - _seconds(str(self.test))
            val = test - _seconds(str(self.val))
        first = val - _seconds(self.train) if self.train else min(int(time[0]), val)
        return [first, val, test, end]


def split_of(settings: Any) -> Split:
    """The split of a configuration; what is not named is as usual: by time, all of train, the newest window.

    Raises:
        InputError: for a key that is unknown or missing, or a value out of range.
    """
    if not isinstance(settings, Mapping):
        raise InputError(
            f"data.split must be two fractions, got {shown(settings)}; give data.split.val and "
            "data.split.test"
        )
    known = ["val", "test", "by", "train", "window"]
    for key in map(str, settings):
        if key not in known:
            raise InputError(f"data.split.{key} must be a key of it, got an unknown one; {near(key, known)}")
    given = {"by": "time", "train": None, "window": 0} | dict(settings)
    for key in ("val", "test"):
        if key not in given:
            raise InputError(
                f"data.split.{key} must be given, got nothing; give a fraction, duration or date"
            )
        if isinstance(given[key], int) and not isinstance(given[key], bool):
            given[key] = float(given[key])
    return Split(**given)


def _last(time: Array, user: Array) -> dict[str, Array]:
    """Leave-last-out: by how many of its user's moments lie behind each impression.

    >>> {name: rows.tolist() for name, rows in _last(np.array([1, 2, 3, 3]), np.zeros(4, int)).items()}
    {'train': [0], 'val': [1], 'test': [2, 3]}
    """
    order = np.argsort(user, kind="stable")  # rows are in the order of time
    moment, _ = baskets(user[order], time[order], len(user))
    _, start, size = np.unique(user[order], return_index=True, return_counts=True)
    first, last = moment[start], moment[start + size - 1]
    place = np.empty(len(user), np.int64)
    place[order] = np.where(np.repeat(last - first >= 2, size), np.repeat(last, size) - moment, 2)
    return {
        "train": np.flatnonzero(place >= 2),
        "val": np.flatnonzero(place == 1),
        "test": np.flatnonzero(place == 0),
    }


def _kind(name: str, value: Any) -> str:
    """`fraction`, `duration` or `date`."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "fraction"
    if isinstance(value, str):
        if re.fullmatch(r"[1-9]\d*[mhdw]", value):
            return "duration"
        if _moment_or_none(value) is not None:
            return "date"
    raise InputError(
        f"{name} must be a fraction, a duration or a date, got {shown(value)}; give one such as 0.1, 7d or "
        "2019-11-14"
    )


def _seconds(duration: str) -> int:
    """A duration in seconds.

    >>> _seconds("7d")
    604800
    """
    return int(duration[:-1]) * UNITS_S[duration[-1]]


def _moment_or_none(text: str) -> datetime | None:
    """The date that a text names, if it names one."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _moment(text: str) -> int:
    """A date in Unix seconds, UTC where it names no zone.

    >>> _moment("1970-01-02")
    86400
    """
    moment = datetime.fromisoformat(text)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def duration(days: float | None) -> str:
    """A time in its natural unit.

    >>> duration(0.5), duration(400.0), duration(None)
    ('12 h', '1.1 years', 'none')
    """
    if days is None:
        return "none"
    for unit, size in (("years", 365.25), ("days", 1.0), ("h", 1 / 24), ("min", 1 / 1_440)):
        if days >= size:
            return f"{days / size:.3g} {unit}"
    return f"{days * 86_400:.3g} s"
