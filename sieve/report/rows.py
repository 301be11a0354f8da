"""Which test rows changed, and which class lost the most, in sentences for the page."""

from collections.abc import Sequence

from sieve.report.flips import FlippedRow
from sieve.report.result import Result
from sieve.report.units import lost, metric_name, metric_value, word
from sieve.report.values import NOT_MEASURED, count, counted, decimal
from sieve.tasks.flips import MOST_TEXTS, ClassScore, hardest_hit


def flips_sentence(result: Result) -> str:
    """How many test rows changed and how; "" if the run did not compare them."""
    flips = result.flips
    if flips is None or flips.rows is None:
        return ""
    if not flips.rows:
        return "No test row changed its answer."
    if result.relative:
        return (
            f"The score of every text changes, so the {count(flips.rows)} texts that lost the most "
            f"are listed (at most {MOST_TEXTS}). A score is the mean log-likelihood in nats."
        )
    rows = f"{count(flips.rows)} of {counted(result.examples or flips.rows, 'test row')}"
    parts = [f"{count(flips.lost)} lost", f"{count(flips.won)} won"]
    if flips.changed:
        parts.append(f"{count(flips.changed)} gave another answer with the same score")
    return f"{rows} changed: {', '.join(parts[:-1])} and {parts[-1]}."


def flip_cell(result: Result, row: FlippedRow, model: str) -> str:
    """A model's answer to a flipped row, with its score where that is not just right or wrong."""
    answer = row.dense if model == "dense" else row.pruned
    score = row.dense_score if model == "dense" else row.pruned_score
    if score is None:
        return answer or NOT_MEASURED
    if answer and score in (0, 1):
        return answer
    value = decimal(score, 2)
    return f"{answer} ({value})" if answer else value


def has_answers(rows: Sequence[FlippedRow]) -> bool:
    """Whether the rows have a right answer to show."""
    return any(row.right for row in rows)


def class_sentence(result: Result) -> str:
    """Which class lost far more than the mean; "" if none did."""
    worst = hardest_hit(_classes(result))
    if worst is None:
        return ""
    mean = lost(result, max(0.0, result.drop.point or 0.0))
    return (
        f"“{worst.answer}” lost far more than the mean: its {metric_name(result)} fell from "
        f"{metric_value(result, worst.dense)} to {metric_value(result, worst.pruned)} on "
        f"{counted(worst.rows, 'row')}, a {word(result)} of "
        f"{lost(result, worst.dense - worst.pruned)}; over all rows it is {mean}."
    )


def _classes(result: Result) -> list[ClassScore]:
    """The records of classes without a missing number."""
    classes = []
    for one in result.classes:
        means, counts = (one.dense, one.pruned), (one.lost, one.won)
        if one.rows and None not in (*means, *counts):
            dense, pruned = (mean or 0.0 for mean in means)
            rows_lost, rows_won = (int(number or 0) for number in counts)
            score = ClassScore(one.answer, int(one.rows), dense, pruned, rows_lost, rows_won)
            classes.append(score)
    return classes
