"""Objectives and constraints, read from the return value of a job."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Values = dict[str, float]
_BOUND = re.compile(r"^\s*(>=|<=)\s*([-+0-9.eE]+)\s*$")


@dataclass(frozen=True)
class Evaluation:
    """The numbers of one genome. If it failed, `values` is empty and `error` says why."""

    values: Values
    error: str = ""

    @property
    def failed(self) -> bool:
        """Whether the genome has no usable numbers."""
        return bool(self.error)


@dataclass(frozen=True)
class Constraint:
    """A bound on a returned number."""

    key: str
    sign: str  # >= or <=
    bound: float

    def violation(self, values: Values) -> float:
        """The distance to the bound: above 0 outside, 0 or less within."""
        gap = self.bound - values[self.key]
        return gap if self.sign == ">=" else -gap


class Objectives:
    """Which returned numbers are minimized, maximized or bounded.

    Raises ValueError for an unknown direction or bound.
    """

    def __init__(self, objectives: Mapping[str, str], constraints: Mapping[str, str]) -> None:
        objectives = objectives or {"objective": "minimize"}
        for key, direction in objectives.items():
            if direction not in ("minimize", "maximize"):
                raise ValueError(
                    f"hydra.sweeper.objectives.{key} is {direction!r}; expected minimize or "
                    "maximize."
                )
        self.directions = dict(objectives)
        self.constraints = [_constraint(key, text) for key, text in constraints.items()]
        self._contradiction()

    @property
    def keys(self) -> list[str]:
        """The keys of the numbers that a job must return."""
        return [*dict.fromkeys([*self.directions, *(c.key for c in self.constraints)])]

    def read(self, returned: Any) -> Evaluation:
        """Read the return value of a job.

        Raises ValueError if a number is missing, because it would be missing for every genome.
        """
        if isinstance(returned, Mapping):
            values = dict(returned)
        elif len(self.keys) == 1:
            values = {self.keys[0]: returned}
        else:
            raise ValueError(
                f"the job returned {_shown(returned)}; expected a mapping with {_names(self.keys)}."
            )
        if "error" in values and not set(self.keys) <= set(values):
            return Evaluation({}, str(values["error"]))
        if missing := [key for key in self.keys if key not in values]:
            raise ValueError(
                f"the job returned no {missing[0]!r}, only {_names(list(values))}; "
                "set hydra.sweeper.objectives and hydra.sweeper.constraints to its keys."
            )
        try:
            numbers = {str(k): float(v) for k, v in values.items() if _is_number(k, v, self.keys)}
        except (TypeError, ValueError):
            raise ValueError(
                f"the job returned {_shown(values)}; expected a number for {_names(self.keys)}."
            ) from None
        if bad := [key for key in self.keys if not math.isfinite(numbers[key])]:
            return Evaluation({}, f"{bad[0]} is {numbers[bad[0]]}")
        return Evaluation(numbers)

    def costs(self, evaluation: Evaluation) -> np.ndarray:
        """(M,) objectives, all to be minimized; maximized ones are negated."""
        if evaluation.failed:
            return np.zeros(len(self.directions))
        signs = {"minimize": 1.0, "maximize": -1.0}
        return np.array([signs[d] * evaluation.values[k] for k, d in self.directions.items()])

    def violations(self, evaluation: Evaluation) -> np.ndarray:
        """(K + 1,) violations, above 0 if violated: K constraints, and whether it failed."""
        if evaluation.failed:
            return np.array([*[0.0] * len(self.constraints), 1e12])
        return np.array([*(c.violation(evaluation.values) for c in self.constraints), 0.0])

    def violation(self, evaluation: Evaluation) -> float:
        """The sum of all violations; 0 means feasible."""
        return float(np.maximum(self.violations(evaluation), 0).sum())

    def order(self, evaluation: Evaluation) -> tuple[float, float]:
        """A sort key, best first: the violation, then the first objective."""
        return self.violation(evaluation), float(self.costs(evaluation)[0])

    def _contradiction(self) -> None:
        """Raise ValueError if two bounds contradict each other."""
        floors = {c.key: c.bound for c in self.constraints if c.sign == ">="}
        for c in self.constraints:
            if c.sign == "<=" and floors.get(c.key, -math.inf) > c.bound:
                raise ValueError(f"the constraints on {c.key} leave no value between them.")


def _constraint(key: str, text: str) -> Constraint:
    match = _BOUND.match(str(text))
    try:
        bound = float(match[2]) if match else math.nan
    except ValueError:
        bound = math.nan
    if match is None or not math.isfinite(bound):
        raise ValueError(
            f'hydra.sweeper.constraints.{key} is {text!r}; expected a bound such as ">= 0".'
        )
    return Constraint(key, match[1], bound)


def _is_number(key: Any, value: Any, needed: list[str]) -> bool:
    """Whether to convert a value: needed ones must be numbers, others may be."""
    return key in needed or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _names(keys: list[str]) -> str:
    return ", ".join(repr(str(key)) for key in keys) or "nothing"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."
