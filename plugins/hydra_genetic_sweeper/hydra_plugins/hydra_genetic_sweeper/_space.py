"""What is searched: variables, seeds, and the overrides of a genome.

A genome is a tuple with one number per variable: the position among its values for a discrete
variable, the value itself (its logarithm for `log`) for a continuous one.
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

    ordered: neighbouring values are alike, and mutation moves among them; costs: what each value
    costs, in any unit the variables share, for a level switch that keeps the sum.
    """

    name: str
    values: tuple[Any, ...]
    ordered: bool = True
    costs: tuple[float, ...] | None = None

    discrete = True

    @property
    def low(self) -> float:
        """Lowest position."""
        return 0.0

    @property
    def high(self) -> float:
        """Highest position."""
        return float(len(self.values) - 1)

    def encode(self, value: Any) -> float:
        """Position of a value; ValueError when it is none of them."""
        if value not in self.values:
            raise ValueError(
                f"the value {value!r} of a seed is none of {self.name}: {list(self.values)}."
            )
        return float(self.values.index(value))

    def decode(self, number: float) -> Any:
        """The value at a position."""
        return self.values[int(number)]


@dataclass(frozen=True)
class Continuous:
    """A real number between two bounds, mutated on a logarithmic scale where `log`."""

    name: str
    lowest: float
    highest: float
    log: bool = False

    discrete = False
    ordered = True
    costs = None

    @property
    def low(self) -> float:
        """Lower bound as a gene."""
        return math.log(self.lowest) if self.log else self.lowest

    @property
    def high(self) -> float:
        """Upper bound as a gene."""
        return math.log(self.highest) if self.log else self.highest

    def encode(self, value: Any) -> float:
        """The gene of a value; ValueError when it is out of bounds."""
        number = float(value)
        if not self.lowest <= number <= self.highest:
            raise ValueError(
                f"the value {value!r} of a seed for {self.name} is outside "
                f"{self.lowest} to {self.highest}."
            )
        return math.log(number) if self.log else number

    def decode(self, number: float) -> float:
        """The value of a gene."""
        return min(max(math.exp(number) if self.log else number, self.lowest), self.highest)


Variable = Discrete | Continuous


@dataclass(frozen=True)
class Space:
    """Variables, and genomes to begin with."""

    variables: tuple[Variable, ...]
    seeds: tuple[Genome, ...] = ()

    def values(self, genome: Genome) -> dict[str, Any]:
        """Value of every variable by name."""
        return {v.name: v.decode(x) for v, x in zip(self.variables, genome, strict=True)}

    def overrides(self, genome: Genome) -> list[str]:
        """What a job of its own gets for a genome."""
        return [f"{name}={_quoted(value)}" for name, value in self.values(genome).items()]

    def encode(self, seed: Mapping[str, Any] | Sequence[Any]) -> Genome:
        """The genome of a seed: values by name, or in the order of the variables."""
        names = [v.name for v in self.variables]
        if isinstance(seed, Mapping):
            if stray := set(names) ^ set(seed):
                raise ValueError(f"a seed and the variables differ in {', '.join(sorted(stray))}.")
            seed = [seed[name] for name in names]
        if len(seed) != len(names):
            raise ValueError(f"a seed has {len(seed)} values, expected {len(names)}.")
        return tuple(v.encode(x) for v, x in zip(self.variables, seed, strict=True))


def from_mapping(described: Any) -> Space:
    """The space that a `space` callable describes.

    described: {"variables": [{"name", "values", "ordered"?, "costs"?} or {"name", "low", "high",
    "integer"?, "log"?}, ...], "seeds": [[value, ...], ...]}. Raises ValueError where that does
    not hold.
    """
    if not isinstance(described, Mapping) or "variables" not in described:
        raise ValueError(
            f"hydra.sweeper.space returned {type(described).__name__}, expected a mapping with "
            '"variables", a list of {"name", "values"} or {"name", "low", "high"}.'
        )
    variables = tuple(_variable(dict(entry)) for entry in described["variables"])
    _check(variables, "hydra.sweeper.space returned")
    bare = Space(variables)
    return Space(variables, tuple(bare.encode(seed) for seed in described.get("seeds") or ()))


def from_params(
    params: Mapping[str, Any], parser: OverridesParser, fixed: Sequence[str] = ()
) -> tuple[Space, list[str]]:
    """The space of `params` in Hydra's grammar, and the overrides of those that are no sweep.

    fixed: keys the command line sets, which are left out. ValueError where one does not hold.
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
            f"hydra.sweeper.params.{key} has the tag {stray[0]!r}, expected {' or '.join(TAGS)}."
        )
    log = "log" in sweep.tags
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start, sweep.end
        integer = isinstance(low, int) and isinstance(high, int)
        return _between(key, low, high, integer, log)
    if log:
        raise ValueError(
            f"hydra.sweeper.params.{key} has the tag 'log', which goes with interval(low, high)."
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
        raise ValueError(f"the bounds of {name} are {low} and {high}, expected low below high.")
    if log and low <= 0:
        raise ValueError(f"the lower bound of {name} is {low}, expected above 0 with 'log'.")
    if integer and log:
        raise ValueError(f"{name} is an integer with 'log'; list its values: choice(1, 2, 4, 8).")
    if integer:
        return Discrete(name, tuple(range(int(low), int(high) + 1)))
    return Continuous(name, float(low), float(high), log)


def _check(variables: tuple[Variable, ...], subject: str) -> None:
    if not variables:
        raise ValueError(
            f"{subject} nothing to search; set hydra.sweeper.params, such as "
            "hydra.sweeper.params.x='range(0, 10)', or hydra.sweeper.space."
        )
    names = [variable.name for variable in variables]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{subject} the variable {min(twice)!r} more than once.")
    for variable in variables:
        if isinstance(variable, Discrete) and not variable.values:
            raise ValueError(f"{subject} no value for {variable.name}.")


def _quoted(value: Any) -> str:
    """A value in the grammar of overrides."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value)
    return str(Transformer.encode(value))
