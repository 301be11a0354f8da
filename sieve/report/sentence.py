"""The answer in one sentence, and the drop with its interval on the test split."""

from typing import NamedTuple

from sieve.report.result import Comparison, Drop, Result
from sieve.report.units import lost, metric_name, metric_value, unit, word
from sieve.report.values import (
    NOT_MEASURED,
    count,
    counted,
    decimal,
    percent,
    points,
    rounded_up,
    short_name,
)
from sieve.report.verdict import has_no_answer, is_dense, loses_nothing, verdict
from sieve.tasks.metrics import AGREEMENT


def answer_sentence(result: Result) -> str:
    """One sentence: task, kept fractions, both accuracies, drop and interval, number of rows."""
    task = _task(result)
    if has_no_answer(result):
        dense, chance = metric_value(result, result.baseline.accuracy), result.baseline.chance
        compared = f"no better than chance ({percent(chance)})"
        if result.baseline.inverted:
            compared = "significantly worse than chance, so labels may be swapped"
        return (
            f"{short_name(result.model)} does not do {task}: the dense model's "
            f"{metric_name(result)} on {_rows(result)}, {dense}, is {compared}."
        )
    if is_dense(result) and result.vocabulary is None:
        return _dense_sentence(result)
    kept = _kept(result)
    if verdict(result).kind == "missed":
        return f"At {kept}, {task} has {_scores(result)}."
    return f"{task} needs {kept}: {_scores(result)}."


class Figure(NamedTuple):
    """The large figure of a result, such as "35.0 %", "kept", "of the prunable parameters"."""

    value: str
    verb: str  # "" without an answer
    of: str


def figure(result: Result) -> Figure:
    """The kept fraction, of all parameters if embeddings shrank too; or that there is no answer."""
    fraction = result.kept_fraction
    if has_no_answer(result):
        return Figure("no answer", "", "because the dense model does not do the task")
    if result.whole_first:
        return Figure(percent(fraction.model), "kept", "of all parameters")
    return Figure(percent(fraction.prunable), "kept", "of the prunable parameters")


def _kept(result: Result) -> str:
    """Both kept fractions; the whole model's first if its embeddings shrank."""
    model, fraction = short_name(result.model), result.kept_fraction
    if result.whole_first:
        prunable = f"({percent(fraction.prunable)} of the prunable ones)"
        return f"{percent(fraction.model)} of {model}'s parameters {prunable}"
    whole = "" if fraction.model is None else f" ({percent(fraction.model)} of the whole model)"
    return f"{percent(fraction.prunable)} of {model}'s prunable parameters{whole}"


def vocabulary_sentence(result: Result) -> str:
    """How many tokens stay, and what that means for the test rows; "" with all tokens."""
    words = result.vocabulary
    if words is None:
        return ""
    same = (
        ""
        if words.same is None
        else f" The answer is the dense model's on {count(words.same_kept)} of these rows, and on "
        f"{count(words.same)} of all."
    )
    return (
        f"The vocabulary has {count(words.tokens)} of {count(words.dense_tokens)} tokens; "
        f"{count(words.rows_kept)} of {count(words.rows)} test rows use no others.{same}"
    )


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


def unlabelled_sentence(result: Result) -> str:
    """What rows without labels say of the drop; "" if there were none."""
    rows = result.unlabelled
    if rows is None or rows.changed is None or rows.upper is None or not rows.rows:
        return ""
    differ = "answer differs" if rows.changed == 1 else "answers differ"
    most = rounded_up(rows.upper)
    return (
        f"On {counted(rows.rows, 'row')} without labels {count(rows.changed)} {differ} from the "
        f"dense model's: with {100 * (rows.confidence or 0):g} % confidence at most "
        f"{percent(most)} do, so the drop is at most {lost(result, most)}."
    )


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
    if result.metric == AGREEMENT:
        metric, compared = f"{metric} with the dense model", ""
    return (
        f"{metric} {metric_value(result, pruned)}{compared}{drop_clause(result)} on {_rows(result)}"
    )


def drop_clause(result: Comparison) -> str:
    """ ", a drop of 0.8 points (95 % interval 0.4 to 1.3)"; "" if it was not measured."""
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
