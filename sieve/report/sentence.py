"""The answer in one sentence, and whether the pruned model meets the tolerance.

With a confidence, the verdict is by the upper confidence bound of the drop; without one, by the
point estimate and the 95 % paired interval. All are measured on the test split.
"""

from dataclasses import dataclass
from typing import Literal

from sieve.report.result import Drop, Result
from sieve.report.units import lost, metric_name, metric_value, unit, word
from sieve.report.values import NOT_MEASURED, count, decimal, percent, points, short_name

Kind = Literal["met", "uncertain", "missed", "unknown"]
_ROUNDING = 1e-9
_CHANCE = (
    "The pruned model's score says nothing. Check the prompt and the labels, or use a model that "
    "can do the task."
)

_NOT_FINITE = (
    "The pruned model's numbers are not finite (NaN or infinity) on {} of {} test rows, which "
    "count as wrong. Run again with model.dtype=float32 or model.dtype=bfloat16."
)


@dataclass(frozen=True)
class Verdict:
    """Whether the drop on the test split is within the tolerance, in one word and in a sentence.

    `uncertain`: only the point estimate is within the tolerance, not the upper confidence bound, or
    without a confidence not the interval's upper end.
    """

    kind: Kind
    text: str


def answer_sentence(result: Result) -> str:
    """One sentence: task, kept fractions, both accuracies, drop and interval, number of rows."""
    task = _task(result)
    if result.baseline.beats_chance is False:
        dense, chance = metric_value(result, result.baseline.accuracy), result.baseline.chance
        compared = f"no better than chance ({percent(chance)})"
        if result.baseline.inverted:
            compared = "significantly worse than chance, so labels may be swapped"
        return (
            f"{short_name(result.model)} does not do {task}: the dense model's "
            f"{metric_name(result)} on {_rows(result)}, {dense}, is {compared}."
        )
    if is_dense(result):
        return _dense_sentence(result)
    whole = result.kept_fraction.model
    kept = (
        f"{percent(result.kept_fraction.prunable)} of {short_name(result.model)}'s prunable "
        f"parameters{'' if whole is None else f' ({percent(whole)} of the whole model)'}"
    )
    if verdict(result).kind == "missed":
        return f"At {kept}, {task} has {_scores(result)}."
    return f"{task} needs {kept}: {_scores(result)}."


def verdict(result: Result) -> Verdict:
    """Compare the drop on the test split with the tolerance."""
    drop, tolerance = result.drop, result.tolerance
    if drop.point is None or tolerance is None:
        return Verdict("unknown", "The drop on the test split was not measured.")
    if result.baseline.beats_chance is False:
        return Verdict("missed", _CHANCE)
    if broken := result.pruned.not_finite:
        return Verdict("missed", _NOT_FINITE.format(count(broken), count(result.examples)))
    if not _is_within(drop.point, tolerance) or _feasible_on_selection(result) is False:
        advice = "More selection rows make such a miss less likely."
        return Verdict("missed", f"{_shortfall(result)}. {advice}")
    noun, limit = word(result), f"the tolerance of {lost(result, tolerance)} on the test split"
    if result.confidence is not None:
        return _confident_verdict(result, f"{100 * result.confidence:g} %")
    if not _is_within(drop.high, tolerance):
        return Verdict(
            "uncertain",
            f"The point estimate of the {noun} is within {limit}. "
            "Set confidence=0.9 to require this of fresh rows with 90 % confidence.",
        )
    return Verdict("met", f"The {noun} is within {limit}, and so is its whole 95 % interval.")


def prompt_sentence(result: Result) -> str:
    """What a row costs with the short prompt and with the long one; "" if both models read one."""
    prompt, parameters = result.prompt, result.parameters
    if prompt is None:
        return ""
    dense, pruned = (
        f"{count(tokens)} tokens"
        + ("" if ms is None else f" in {decimal(ms)} ms")
        + ("" if size is None else f" with {count(size)} parameters")
        for tokens, ms, size in (
            (prompt.dense_tokens_per_row, prompt.dense_ms_per_row, parameters.model_dense),
            (prompt.pruned_tokens_per_row, prompt.pruned_ms_per_row, parameters.model_kept),
        )
    )
    return f"For one row the dense model reads {dense}; the pruned model reads {pruned}."


def _confident_verdict(result: Result, sure: str) -> Verdict:
    """The verdict at the confidence `sure` if the point estimate is within the tolerance."""
    if loses_nothing(result):
        return Verdict("met", "Nothing was pruned, so nothing is lost.")
    noun, upper = word(result), result.drop.upper
    limit = f"the tolerance of {lost(result, result.tolerance)}"
    if _is_within(upper, result.tolerance or 0.0):
        return Verdict(
            "met",
            f"With {sure} confidence, over draws of test rows, the {noun} on fresh rows is at most "
            f"{lost(result, upper)}, which is within {limit}.",
        )
    bound = "not measured" if upper is None else lost(result, upper)
    return Verdict(
        "uncertain",
        f"With {sure} confidence, over draws of selection rows, the {noun} on fresh rows is within "
        f"{limit}. On the test split the point estimate is within it, and its upper bound at this "
        f"confidence, {bound}, is not; more test rows lower the bound.",
    )


def is_dense(result: Result) -> bool:
    """Whether every prunable matrix kept all its parameters."""
    kept = result.kept_fraction.prunable
    return kept is not None and kept >= 1 - _ROUNDING


def loses_nothing(result: Result) -> bool:
    """Whether the result is the dense model as it was, so that its drop is 0 for certain."""
    same = result.prompt is None and result.quantization is None
    return is_dense(result) and same and result.drop.point == 0


def _is_within(drop: float | None, tolerance: float) -> bool:
    return drop is not None and drop <= tolerance + _ROUNDING


def _feasible_on_selection(result: Result) -> bool | None:
    """Whether the chosen genome met the tolerance there; None if no genome is marked as chosen."""
    return next((genome.feasible for genome in result.search.curve if genome.chosen), None)


def _shortfall(result: Result) -> str:
    """Why the verdict is `missed`, without a full stop."""
    limit = f"tolerance of {lost(result, result.tolerance)}"
    drop, feasible = result.drop, _feasible_on_selection(result)
    if not _is_within(drop.point, result.tolerance or 0.0):
        also = ", though it was on the selection split" if feasible else ""
        also = " or the selection split" if feasible is False else also
        return f"The {limit} was not met on the test split{also}"
    return f"The {limit} was not met on the selection split, though it was on the test split"


def _dense_sentence(result: Result) -> str:
    """The answer when nothing was pruned."""
    model, task = short_name(result.model), _task(result)
    pruned = [genome for genome in result.search.curve if (genome.kept_fraction or 0) < 1]
    start = f"Nothing of {model} was pruned for {task}"
    if pruned and not any(genome.feasible for genome in pruned):
        start = (
            f"Nothing of {model} could be pruned for {task} within the tolerance of "
            f"{lost(result, result.tolerance)} on the selection split"
        )
    scores = _scores(result)
    if loses_nothing(result):
        value = metric_value(result, result.pruned.accuracy)
        scores = f"{metric_name(result)} stays {value} on {_rows(result)}"
    return f"{start}, so all its parameters stay: {scores}."


def _scores(result: Result) -> str:
    """Both accuracies, the drop with its interval and the number of test rows, as a clause."""
    metric, dense, pruned = metric_name(result), result.baseline.accuracy, result.pruned.accuracy
    if pruned is None:
        return f"{metric} not measured on the test split"
    compared = "" if dense is None else f" instead of {metric_value(result, dense)}"
    return f"{metric} {metric_value(result, pruned)}{compared}{_drop(result)} on {_rows(result)}"


def _drop(result: Result) -> str:
    point = result.drop.point
    if point is None:
        return ""
    gained = points(point) != points(abs(point))
    of_what = f" of the {word(result)}" if gained else ""
    bounds = drop_interval(result.drop)
    interval = f" (95 % interval{of_what} {bounds})" if bounds else ""
    return f", a {word(result, gained)} of {lost(result, abs(point))}{interval}"


def drop_interval(drop: Drop) -> str:
    """The interval of the drop, "−0.4 to 1.6", where positive is worse; "" if not measured."""
    measured = drop.low is not None and drop.high is not None
    return f"{points(drop.low)} to {points(drop.high)}" if measured else ""


def drop_text(result: Result) -> str:
    """The drop with its unit and its 95 % interval, "0.6 points (95 % interval −0.4 to 1.6)"."""
    if result.drop.point is None:
        return NOT_MEASURED
    if loses_nothing(result):
        return f"{points(0)} {unit(result)}"
    bounds = drop_interval(result.drop)
    interval = f" (95 % interval {bounds})" if bounds else ""
    return f"{points(result.drop.point)} {unit(result)}{interval}"


def _rows(result: Result) -> str:
    rows = result.examples
    return "the test split" if rows is None else f"{count(rows)} test row{'s' * (rows != 1)}"


def _task(result: Result) -> str:
    return result.task or "the task"
