"""The search space: variables, seeds, and the overrides of a genome.

A genome is a tuple with one number (gene) per variable: the index of the value of a discrete
variable, or the value of a continuous one (its logarithm with `log`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    RangeSweep,
    Sweep,
    Transformer,
)

Genome = tuple[float, ...]
TAGS = ("log", "ordered")


@dataclass(frozen=True)
class Discrete:
    """A variable with a list of values.

    Args:
        name: the setting.
        values: all values.
        ordered: whether neighbors are similar, so that mutation changes a value to a nearby one.
        costs: the cost of each value, in a unit that all variables share; a level switch keeps
            the total cost about equal.
    """

    name: str
    values: tuple[Any, ...]
    ordered: bool = True
    costs: tuple[float, ...] | None = None

    discrete = True

    @property
    def low(self) -> float:
        """The lowest gene, 0."""
        return 0.0

    @property
    def high(self) -> float:
        """The highest gene."""
        return float(len(self.values) - 1)

    def encode(self, value: Any) -> float:
        """The index of a value; ValueError if it is not in the list."""
        if value not in self.values:
            raise ValueError(
                f"a seed has {self.name}={value!r}; expected one of {list(self.values)}."
            )
        return float(self.values.index(value))

    def decode(self, number: float) -> Any:
        """The value at an index."""
        return self.values[int(number)]


@dataclass(frozen=True)
class Continuous:
    """A real number between two bounds, mutated on a logarithmic scale if `log`."""

    name: str
    lowest: float
    highest: float
    log: bool = False

    discrete = False
    ordered = True
    costs = None

    @property
    def low(self) -> float:
        """The lower bound as a gene."""
        return math.log(self.lowest) if self.log else self.lowest

    @property
    def high(self) -> float:
        """The upper bound as a gene."""
        return math.log(self.highest) if self.log else self.highest

    def encode(self, value: Any) -> float:
        """The gene of a value; ValueError if it is out of bounds."""
        number = float(value)
        if not self.lowest <= number <= self.highest:
            raise ValueError(
                f"a seed has {self.name}={value!r}; expected {self.lowest} to {self.highest}."
            )
        return math.log(number) if self.log else number

    def decode(self, number: float) -> float:
        """The value of a gene."""
        return min(max(math.exp(number) if self.log else number, self.lowest), self.highest)


Variable = Discrete | Continuous


@dataclass(frozen=True)
class Space:
    """The variables, and seeds for the first population."""

    variables: tuple[Variable, ...]
    seeds: tuple[Genome, ...] = ()

    def values(self, genome: Genome) -> dict[str, Any]:
        """The value of every variable, by name."""
        return {v.name: v.decode(x) for v, x in zip(self.variables, genome, strict=True)}

    def overrides(self, genome: Genome) -> list[str]:
        """The overrides of a job that evaluates this genome alone."""
        return [f"{name}={_quoted(value)}" for name, value in self.values(genome).items()]

    def encode(self, seed: Mapping[str, Any] | Sequence[Any]) -> Genome:
        """The genome of a seed, which has values by name or in the order of the variables."""
        names = [v.name for v in self.variables]
        if isinstance(seed, Mapping):
            if stray := set(names) ^ set(seed):
                raise ValueError(
                    f"a seed and the variables have different names: {', '.join(sorted(stray))}."
                )
            seed = [seed[name] for name in names]
        if len(seed) != len(names):
            raise ValueError(f"a seed has {len(seed)} values; expected {len(names)}.")
        return tuple(v.encode(x) for v, x in zip(self.variables, seed, strict=True))


def from_mapping(described: Any) -> Space:
    """Convert the return value of a `space` function; ValueError if it is malformed.

    Args:
        described: {"variables": [{"name", "values", "ordered"?, "costs"?} or {"name", "low",
            "high", "integer"?, "log"?}, ...], "seeds": [[value, ...], ...]}.
    """
    if not isinstance(described, Mapping) or "variables" not in described:
        raise ValueError(
            f"hydra.sweeper.space returned {type(described).__name__}; expected a mapping with "
            '"variables", a list of {"name", "values"} or {"name", "low", "high"}.'
        )
    variables = tuple(_variable(dict(entry)) for entry in described["variables"])
    _check(variables, "hydra.sweeper.space returned")
    bare = Space(variables)
    return Space(variables, tuple(bare.encode(seed) for seed in described.get("seeds") or ()))


def from_params(
    params: Mapping[str, Any], parser: OverridesParser, fixed: Sequence[str] = ()
) -> tuple[Space, list[str]]:
    """The space of `params` in Hydra's grammar, and overrides for entries with a single value.

    Args:
        params: setting and values.
        parser: Hydra's parser of overrides.
        fixed: keys that the command line sets, which are not searched.

    Raises:
        ValueError: if an entry has bad bounds or tags.
    """
    variables: list[Variable] = []
    constant: list[str] = []
    for override in parser.parse_overrides([f"{k}={v}" for k, v in params.items()]):
        key = override.get_key_element()
        if key in fixed:
            continue
        if override.is_sweep_override():
            variables.append(_of_override(key, override))
        else:
            constant.append(f"{key}={override.get_value_element_as_str()}")
    _check(tuple(variables), "hydra.sweeper.params has")
    return Space(tuple(variables)), constant


def _of_override(key: str, override: Override) -> Variable:
    sweep = override.value()
    assert isinstance(sweep, Sweep)
    if stray := sorted(set(map(str, sweep.tags)) - set(TAGS)):
        raise ValueError(
            f"hydra.sweeper.params.{key} has the tag {stray[0]!r}; expected {' or '.join(TAGS)}."
        )
    log = "log" in sweep.tags
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start, sweep.end
        integer = isinstance(low, int) and isinstance(high, int)
        return _between(key, low, high, integer, log)
    if log:
        raise ValueError(
            f"hydra.sweeper.params.{key} has the tag 'log', which needs interval(low, high)."
        )
    if isinstance(sweep, RangeSweep):
        values = tuple(sweep.range())
        return Discrete(key, values)
    assert isinstance(sweep, ChoiceSweep)
    return Discrete(
        key, tuple(override.sweep_iterator(Transformer.identity)), "ordered" in sweep.tags
    )


def _variable(entry: dict[str, Any]) -> Variable:
    name = str(entry.get("name", ""))
    if "values" in entry:
        costs = entry.get("costs")
        values = tuple(entry["values"])
        if costs is not None and len(costs) != len(values):
            raise ValueError(f"{name} has {len(values)} values and {len(costs)} costs.")
        return Discrete(
            name, values, bool(entry.get("ordered", True)), None if costs is None else tuple(costs)
        )
    if "low" in entry and "high" in entry:
        return _between(
            name, entry["low"], entry["high"], bool(entry.get("integer")), bool(entry.get("log"))
        )
    raise ValueError(f'the variable {name!r} has neither "values" nor "low" and "high".')


def _between(name: str, low: Any, high: Any, integer: bool, log: bool) -> Variable:
    if not (low < high and math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"the bounds of {name} are {low} and {high}; expected low below high.")
    if log and low <= 0:
        raise ValueError(f"the lower bound of {name} is {low}; 'log' needs a bound above 0.")
    if integer and log:
        raise ValueError(
            f"{name} is an integer with 'log'. List its values instead: choice(1, 2, 4, 8)."
        )
    if integer:
        return Discrete(name, tuple(range(int(low), int(high) + 1)))
    return Continuous(name, float(low), float(high), log)


def _check(variables: tuple[Variable, ...], subject: str) -> None:
    if not variables:
        raise ValueError(
            f"{subject} nothing to search. Set hydra.sweeper.params, such as "
            "hydra.sweeper.params.x='range(0, 10)', or hydra.sweeper.space."
        )
    names = [variable.name for variable in variables]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{subject} the variable {min(twice)!r} more than once.")
    for variable in variables:
        if isinstance(variable, Discrete) and not variable.values:
            raise ValueError(f"{subject} no values for {variable.name}.")


def _quoted(value: Any) -> str:
    """A value, quoted for an override."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value)
    return str(Transformer.encode(value))
