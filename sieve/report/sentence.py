"""The answer in one sentence, and the verdict on the tolerance, in words that never flatter.

"Within the tolerance" means the upper end of the 95 % paired interval when a guarantee was asked
for, else the point estimate; both are judged on the test split, and the words say which.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sieve.report.units import lost, metric_name, metric_value, word
from sieve.report.values import count, look, measure, percent, points, short_name

Kind = Literal["met", "uncertain", "missed", "unknown"]
_ROUNDING = 1e-9
_MISSED = (
    "Not within the tolerance: this model is a candidate, not a result. "
    "More selection rows make such a miss less likely."
)
_IGNORANT = (
    "Nothing follows for the pruned model. Check the prompt and the labels, or bring a model that "
    "can do the task."
)


@dataclass(frozen=True)
class Verdict:
    """Whether the drop on the test split stayed within the tolerance, and the words for it.

    `uncertain`: the point estimate is within the tolerance, the interval's upper end is not (or
    was not measured), and no guarantee was asked for.
    """

    kind: Kind
    text: str


def answer_sentence(result: Mapping[str, Any]) -> str:
    """One sentence: task, kept fractions, both accuracies, the drop with its interval, the rows."""
    if _is_ignorant(result):
        dense, chance = look(result, "baseline.accuracy"), look(result, "baseline.chance")
        return (
            f"{_model(result)} does not do {_task(result)}: the dense model's "
            f"{metric_name(result)} on {_rows(result)}, {metric_value(result, dense)}, is no "
            f"better than chance ({percent(chance)})."
        )
    if is_dense(result):
        return _dense_sentence(result)
    kept = (
        f"{percent(look(result, 'kept_fraction.prunable'))} of "
        f"{_model(result)}'s prunable parameters{_whole_model(result)}"
    )
    found = verdict(result)
    if found.kind == "missed":
        return f"At {kept}, {_task(result)} has {_scores(result)}; {_shortfall(result)}."
    if found.kind == "uncertain":
        return f"{_task(result)} needs {kept}: {_scores(result)}; {_reservation(result)}."
    return f"{_task(result)} needs {kept}: {_scores(result)}."


def verdict(result: Mapping[str, Any]) -> Verdict:
    """Judge the drop on the test split against the tolerance."""
    drop, tolerance = measure(result, "drop.point"), measure(result, "tolerance")
    if drop is None or tolerance is None:
        return Verdict("unknown", "The drop on the test split was not measured.")
    if _is_ignorant(result):
        return Verdict("missed", _IGNORANT)
    if _fails(result):
        return Verdict("missed", _MISSED)
    high, within = measure(result, "drop.high"), f"the tolerance of {lost(result, tolerance)}"
    if high is None or high > tolerance + _ROUNDING:
        judged = (
            f"Judged by the point estimate, the {word(result)} is within {within} on the test split"
        )
        return Verdict("uncertain", f"{judged}; guarantee=true holds the whole interval to it.")
    if look(result, "guarantee"):
        text = f"The guarantee holds: the whole 95 % interval is within {within} on the test split."
    else:
        text = (
            f"The {word(result)} is within {within} on the test split, and so is its whole 95 % "
            "interval."
        )
    return Verdict("met", text)


def is_dense(result: Mapping[str, Any]) -> bool:
    """True when every prunable matrix kept all its parameters."""
    kept = measure(result, "kept_fraction.prunable")
    return kept is not None and kept >= 1 - _ROUNDING


def _is_ignorant(result: Mapping[str, Any]) -> bool:
    """Whether the dense model itself is no better than guessing."""
    return look(result, "baseline.beats_chance") is False


def _fails(result: Mapping[str, Any]) -> bool:
    """The test split, or the selection split before it, refused the chosen genome."""
    judged = measure(result, "drop.high" if look(result, "guarantee") else "drop.point")
    tolerance = measure(result, "tolerance")
    too_large = judged is None or tolerance is None or judged > tolerance + _ROUNDING
    return too_large or _met_on_selection(result) is False


def _met_on_selection(result: Mapping[str, Any]) -> bool | None:
    """What the search said of the chosen genome; None when it left no chosen point."""
    for point in look(result, "search.curve") or []:
        if point.get("chosen"):
            feasible = point.get("feasible")
            return None if feasible is None else bool(feasible)
    return None


def _shortfall(result: Mapping[str, Any]) -> str:
    """Why the tolerance was missed: a clause without its full stop."""
    tolerance = measure(result, "tolerance")
    limit = f"the tolerance of {lost(result, tolerance)}"
    drop, high = measure(result, "drop.point"), measure(result, "drop.high")
    on_selection = _met_on_selection(result)
    if drop is not None and tolerance is not None and drop <= tolerance + _ROUNDING:
        if on_selection is False:
            return f"{limit} was not met on the selection split, though it was on the test split"
        if high is None:
            return f"the guarantee of {limit} cannot be judged without an interval"
        return (
            f"the guarantee was not kept: the interval's upper end on the test split, "
            f"{lost(result, high)}, exceeds {limit}"
        )
    if on_selection is None:
        return f"{limit} was not met on the test split"
    if on_selection:
        return f"{limit} was met on the selection split but not on the test split"
    return f"{limit} was met neither on the selection split nor on the test split"


def _reservation(result: Mapping[str, Any]) -> str:
    """What a good point estimate leaves open: a clause without its full stop."""
    high, tolerance = measure(result, "drop.high"), measure(result, "tolerance")
    if high is None:
        return "no interval was measured"
    return f"the interval's upper end exceeds the tolerance of {lost(result, tolerance)}"


def _dense_sentence(result: Mapping[str, Any]) -> str:
    """The honest sentence when nothing was pruned."""
    tried = [p for p in look(result, "search.curve") or [] if (p.get("kept_fraction") or 0) < 1]
    if tried and not any(point.get("feasible") for point in tried):
        limit = lost(result, measure(result, "tolerance"))
        start = (
            f"Nothing of {_model(result)} could be pruned for {_task(result)} within the tolerance "
            f"of {limit} on the selection split"
        )
    else:
        start = f"Nothing of {_model(result)} was pruned for {_task(result)}"
    end = f"; {_shortfall(result)}" if verdict(result).kind == "missed" else ""
    scores = _scores(result)
    if measure(result, "drop.point") == 0 == measure(result, "drop.high"):
        scores = (
            f"{metric_name(result)} stays {metric_value(result, look(result, 'pruned.accuracy'))} "
            f"on {_rows(result)}"
        )
    return f"{start}, so all its parameters stay: {scores}{end}."


def _scores(result: Mapping[str, Any]) -> str:
    """Both accuracies, the drop with its interval and the number of test rows, as a clause."""
    metric = metric_name(result)
    pruned, dense = look(result, "pruned.accuracy"), look(result, "baseline.accuracy")
    if measure(result, "pruned.accuracy") is None:
        return f"{metric} not measured on the test split"
    compared = (
        ""
        if measure(result, "baseline.accuracy") is None
        else f" instead of {metric_value(result, dense)}"
    )
    return f"{metric} {metric_value(result, pruned)}{compared}{_drop(result)} on {_rows(result)}"


def _drop(result: Mapping[str, Any]) -> str:
    point = measure(result, "drop.point")
    if point is None:
        return ""
    gained = points(point) != points(abs(point))
    bounds = drop_interval(result)
    of_what = f" of the {word(result)}" if gained else ""
    interval = f" (95 % interval{of_what} {bounds})" if bounds else ""
    return f", a {word(result, gained)} of {lost(result, abs(point))}{interval}"


def drop_interval(result: Mapping[str, Any]) -> str:
    """ "−0.4 to 1.6": the interval of the drop in points, positive is worse; "" if not measured."""
    low, high = measure(result, "drop.low"), measure(result, "drop.high")
    return "" if low is None or high is None else f"{points(low)} to {points(high)}"


def _whole_model(result: Mapping[str, Any]) -> str:
    kept = measure(result, "kept_fraction.model")
    return "" if kept is None else f" ({percent(kept)} of the whole model)"


def _rows(result: Mapping[str, Any]) -> str:
    rows = measure(result, "examples")
    return "the test split" if rows is None else f"{count(rows)} test row{'s' * (rows != 1)}"


def _model(result: Mapping[str, Any]) -> str:
    return short_name(look(result, "model"))


def _task(result: Mapping[str, Any]) -> str:
    return str(look(result, "task") or "the task")
