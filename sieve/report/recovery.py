"""The part of `result.json` on training after pruning, as typed objects."""

from dataclasses import dataclass

from sieve.report.building import Number


@dataclass(frozen=True)
class Check:  # of the model during recovery, on calibration rows that are not trained on
    step: Number
    accuracy: Number
    loss: Number


@dataclass(frozen=True)
class TrainedSize:
    """A size that was tried with a short training, on calibration rows that are not trained on."""

    kept_fraction: Number
    accuracy_before: Number
    accuracy: Number
    margin: Number
    feasible: bool
    steps: Number


@dataclass(frozen=True)
class TrainedSizes:
    """The sizes that were tried with training, and the size that the search chose without."""

    kept_before: Number
    head_start: Number  # of the dense model on calibration rows, which it knows; not counted
    attempts: list[TrainedSize]


@dataclass(frozen=True)
class Recovery:  # training after pruning
    method: str
    taken: bool
    history: list[Check]
    search: TrainedSizes | None
