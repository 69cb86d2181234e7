"""What a study searches: Hydra's override syntax → ranges, choices and what hangs on them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, QuotedString, RangeSweep
from hydra.errors import HydraException

from halflife.errors import InputError, near, shown
from hydra_plugins.halflife_sweeper._trial import first_line

Value = bool | int | float | str | None


@dataclass(frozen=True)
class Fixed:
    """An override that is the same in every trial that reaches it."""

    key: str
    text: str

    def suggest(self, trial: Any) -> list[str]:
        """The override."""
        return [self.text]

    def examples(self) -> list[list[str]]:
        """The override."""
        return [[self.text]]

    def described(self) -> Any:
        """What a resumed study compares."""
        return self.text


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included; whole ones, or in steps, or uniform in their logarithm."""

    key: str
    low: float
    high: float
    whole: bool
    log: bool = False
    step: float | None = None

    def suggest(self, trial: Any) -> list[str]:
        """The override with the number that the sampler picks."""
        if self.whole:
            number = trial.suggest_int(self.key, self.low, self.high, log=self.log, step=self.step or 1)
        else:
            number = trial.suggest_float(self.key, self.low, self.high, log=self.log, step=self.step)
        return [f"{self.key}={number!r}"]

    def examples(self) -> list[list[str]]:
        """Its lower end."""
        return [[f"{self.key}={self.low!r}"]]

    def described(self) -> Any:
        """What a resumed study compares."""
        return [self.low, self.high, self.step, "log" if self.log else "linear"]

    def grid(self) -> list[Value]:
        """Its numbers, where they can be counted."""
        if self.step is None and not self.whole:
            raise InputError(
                f"{self.key} must be a range or a choice for a grid, got an interval; write range(…) or "
                "choose another sampler"
            )
        step = self.step or 1
        return [self.low + i * step for i in range(round((self.high - self.low) / step) + 1)]


@dataclass(frozen=True)
class Choice:
    """One of several values, each with a space of its own that is searched only where it is chosen."""

    key: str
    values: list[Value]
    texts: list[str]
    below: list[list["Node"]] = field(default_factory=list)

    def suggest(self, trial: Any) -> list[str]:
        """The override with the value that the sampler picks, and those of the space below it."""
        picked = trial.suggest_categorical(self.key, self.values)
        # 1, 1.0 and true are equal and yet three overrides, and nan does not equal itself
        at = [repr(value) for value in self.values].index(repr(picked))
        return [f"{self.key}={self.texts[at]}", *suggest(self.below[at], trial)]

    def examples(self) -> list[list[str]]:
        """Each value, with each example of the space below it."""
        return [
            [f"{self.key}={text}", *example]
            for text, below in zip(self.texts, self.below, strict=True)
            for example in examples(below)
        ]

    def described(self) -> Any:
        """What a resumed study compares."""
        return {t: described(b) for t, b in zip(self.texts, self.below, strict=True)}

    def grid(self) -> list[Value]:
        """Its values, where nothing hangs on them."""
        if any(self.below):
            raise InputError(
                f"{self.key} must be a choice without a space below it for a grid, got one; choose "
                "hydra/sweeper/sampler=brute_force"
            )
        return self.values


Node = Fixed | Range | Choice


def suggest(nodes: list[Node], trial: Any) -> list[str]:
    """The overrides of one trial."""
    return [override for node in nodes for override in node.suggest(trial)]


def described(nodes: list[Node]) -> dict[str, Any]:
    """What is searched, to compare with what a study was begun with."""
    return {node.key: node.described() for node in nodes if not isinstance(node, Fixed)}


def examples(nodes: list[Node]) -> Iterator[list[str]]:
    """Overrides of a few trials that between them pick each value of each choice.

    >>> list(examples([Choice("a", [1, 2], ["1", "2"], [[], []]), Range("b", 0.5, 1.0, whole=False)]))
    [['a=1', 'b=0.5'], ['a=2', 'b=0.5']]
    """
    each = [node.examples() for node in nodes]
    yield [override for one in each for override in one[0]]
    for at, alternatives in enumerate(each):
        for other in alternatives[1:]:
            yield [o for i, one in enumerate(each) for o in (other if i == at else one[0])]


def read_space(params: Mapping[str, Any], arguments: list[str], loader: ConfigLoader | None) -> list[Node]:
    """The space of a study, and the overrides that are the same in every trial.

    A value of `params` is an override's value, or a mapping: then it is a choice of its keys, and what stands
    under a key is searched only where that key is chosen. An argument of the command line takes the place of
    the same key, wherever that stands.

    Args:
        params: `hydra.sweeper.params`.
        arguments: overrides of the command line.
        loader: finds what `glob` matches.

    Raises:
        InputError: for a space that is empty, reversed or contradicts itself.
    """
    parser = OverridesParser.create(config_loader=loader)
    given = {o.get_key_element().lstrip("+~"): o for o in parser.parse_overrides(arguments)}
    used: set[str] = set()

    def read(params: Mapping[str, Any]) -> list[Node]:
        nodes: list[Node] = []
        for key, value in params.items():
            spaces = value if isinstance(value, Mapping) else {}
            bare = key.lstrip("+~")
            override = given.get(bare)
            used.add(bare)
            if override is not None:
                nodes += _of_override(override, spaces, read)
            elif isinstance(value, Mapping):
                nodes.append(_branches(key, list(value), list(map(str, value)), spaces, read))
            else:
                nodes += _of_override(_parsed(parser, key, value), {}, read)
        return nodes

    nodes = read(params)
    nodes = [n for key, o in given.items() if key not in used for n in _of_override(o, {}, read)] + nodes
    if not any(isinstance(node, Range | Choice) for node in nodes):
        raise InputError(
            "hydra.sweeper.params must hold something to search, got nothing; give it there or on the "
            "command line, for example 'x=interval(0,1)'"
        )
    _check_agreement(nodes, {})
    return nodes


def _parsed(parser: OverridesParser, key: str, value: Any) -> Override:
    """A value of `hydra.sweeper.params` as the override that it stands for."""
    text = value if isinstance(value, str) else json.dumps(value)
    try:
        return parser.parse_override(f"{key}={text}")
    except HydraException as error:
        reason = first_line(error).rpartition(": ")[2]
        raise InputError(
            f"{key} must be a value or a sweep in Hydra's syntax, got {text} ({reason}); write for example "
            "'interval(0,1)' or 'choice(a,b)'"
        ) from error


def _of_override(override: Override, spaces: Mapping[str, Any], read: Any) -> list[Node]:
    """The node of an override, and the space that hangs on the value it has."""
    key, value = override.get_key_element(), override.value()
    if not override.is_sweep_override():
        text = override.input_line or key
        # decay=power brings the shape that stands under power
        return [Fixed(key, text), *read(spaces.get(str(value)) or {})]
    if isinstance(value, IntervalSweep):
        return [_interval(key, value)]
    if isinstance(value, RangeSweep):
        return [_range(key, value)]
    if getattr(value, "tags", None):
        _refuse_tags(key, value.tags)  # type: ignore[union-attr]
    elements = list(override.sweep_iterator())
    values = [_category(e) for e in elements]
    return [_branches(key, values, list(override.sweep_string_iterator()), spaces, read)]


def _category(element: Any) -> Value:
    """A choice as Optuna stores it."""
    if isinstance(element, QuotedString):
        return element.text
    return element if isinstance(element, bool | int | float | str) else json.dumps(element, default=str)


def _branches(key: str, values: list[Any], texts: list[str], spaces: Mapping[str, Any], read: Any) -> Choice:
    if not values:
        raise InputError(f"{key} must be a choice of at least one value, got none; add values")
    if len(set(texts)) < len(texts):
        double = next(t for t in texts if texts.count(t) > 1)
        raise InputError(f"{key} must be a choice of different values, got {double} twice; leave one out")
    return Choice(key, values, texts, [read(spaces.get(text) or {}) for text in texts])


def _interval(key: str, sweep: IntervalSweep) -> Range:
    """`interval(low, high)`, with both ends; whole numbers for `int(interval(low, high))`."""
    _refuse_tags(key, sweep.tags - {"log"})
    low, high, log = sweep.start, sweep.end, "log" in sweep.tags
    assert low is not None
    assert high is not None
    if not low < high:
        raise InputError(
            f"{key} must be an interval from a smaller to a larger number, got {shown(low)} to {shown(high)}"
            "; turn it round or widen it"
        )
    if log and low <= 0:
        raise InputError(
            f"{key} must be above 0 on a log scale, got an interval from {shown(low)}; raise its lower end "
            "or leave out tag(log, …)"
        )
    return Range(key, low, high, whole=isinstance(low, int) and isinstance(high, int), log=log)


def _range(key: str, sweep: RangeSweep) -> Range:
    """`range(start, stop, step)` without its stop, as in Python."""
    _refuse_tags(key, sweep.tags)
    start, stop, step = sweep.start, sweep.stop, sweep.step
    assert start is not None
    assert stop is not None
    numbers = [] if step == 0 or (stop - start) * step <= 0 else list(sweep.range())
    if not numbers:
        raise InputError(
            f"{key} must be a range that holds a number, got {shown(start)} to {shown(stop)} in steps of "
            f"{shown(step)}; turn it round or widen it"
        )
    whole = all(isinstance(n, int) for n in (start, stop, step))
    low, high = min(numbers), max(numbers)
    return Range(key, low, high, whole=whole, step=abs(step) if low < high else None)


def _refuse_tags(key: str, tags: set[str]) -> None:
    """Raise the InputError for a tag that nothing here would heed."""
    if tags:
        raise InputError(
            f"{key} must be tagged log on an interval or not at all, got the tag {', '.join(sorted(tags))}; "
            "leave it out"
        )


def _check_agreement(nodes: list[Node], seen: dict[str, Any]) -> None:
    """Raise the InputError for a key that two branches search in two ways: Optuna knows it by name."""
    for node in nodes:
        if isinstance(node, Fixed):
            continue
        what = node.texts if isinstance(node, Choice) else node.described()
        if seen.setdefault(node.key, what) != what:
            raise InputError(
                f"{node.key} must be searched alike wherever it stands, got {shown(seen[node.key])} and "
                f"{shown(what)}; make them the same"
            )
        for below in node.below if isinstance(node, Choice) else []:
            _check_agreement(below, seen)


def check_composes(nodes: list[Node], loader: ConfigLoader, config: Any) -> None:
    """Compose the configuration of a few trials that between them pick each value of each choice.

    Args:
        nodes: the space.
        loader: Hydra's.
        config: of the sweep itself.

    Raises:
        InputError: for a key or a choice that the configuration does not have.
    """
    for node in nodes:
        options = loader.get_group_options(node.key) if isinstance(node, Choice) else []
        for text in node.texts if options and isinstance(node, Choice) else []:
            if text not in options:
                raise InputError(f"{node.key} must be one of its choices, got {text}; {near(text, options)}")
    for overrides in examples([_shortened(node, loader) for node in nodes]):
        try:
            loader.load_sweep_config(config, overrides)
        except HydraException as error:
            raise InputError(_sentence(error, overrides, loader, config)) from error


def _shortened(node: Node, loader: ConfigLoader) -> Node:
    """A choice of plain values by its first one: the others compose alike."""
    if not isinstance(node, Choice) or any(node.below) or loader.get_group_options(node.key):
        return node
    return Choice(node.key, node.values[:1], node.texts[:1], node.below[:1])


def _sentence(error: HydraException, overrides: list[str], loader: ConfigLoader, config: Any) -> str:
    """The sentence for a trial that does not compose; it names the override that is at fault."""
    from omegaconf import OmegaConf

    generic = f"the configuration must compose, got: {first_line(error)}; correct the override"
    # choices go first and together: what hydra's own overrides name may be there with one of them alone
    groups = [o for o in overrides if loader.get_group_options(_key(o))]
    values = [o for o in overrides if o not in groups]
    for override in groups:
        text, options = override.partition("=")[2], loader.get_group_options(_key(override))
        if text not in options and text[:1].isalnum():
            return f"{_key(override)} must be one of its choices, got {text}; {near(text, options)}"
    for at in range(len(values) + 1):
        try:
            known = loader.load_sweep_config(config, [*groups, *values[:at]])
        except HydraException as first:
            if at == 0:
                return generic
            bare, text = _key(values[at - 1]), values[at - 1].partition("=")[2]
            parent = bare.rpartition(".")[0]
            node = OmegaConf.select(known, parent) if parent else known
            beside = [f"{parent}.{k}".lstrip(".") for k in map(str, node)] if OmegaConf.is_dict(node) else []
            if bare in beside:
                reason = first_line(first.__cause__ or first).rstrip(".")
                return f"{bare} must be a value that it takes, got {text} ({reason}); correct it"
            hint = near(bare, beside) if beside else "check its spelling"
            return f"{bare} must be a key of the configuration, got an unknown one; {hint}"
    return generic


def _key(override: str) -> str:
    """What an override names, without what marks it as added or deleted.

    >>> _key("+decay.alpha=3")
    'decay.alpha'
    """
    return override.partition("=")[0].lstrip("+~")
