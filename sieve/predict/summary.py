"""All answers in a sentence or two: how often each label was chosen, and how many are right."""

import math
from collections import Counter
from collections.abc import Sequence

from sieve.exports.task_file import TaskFile
from sieve.predict.tables import NATS, PREDICTED, SCORED, Answer
from sieve.report.values import count, counted, percent
from sieve.tasks.example import Row
from sieve.tasks.row_values import exact_match, relevant

MOST_LABELS = 12  # that a sentence counts


def summary(task: TaskFile, rows: Sequence[Row], answers: Sequence[Answer]) -> list[str]:
    """Sentences on the answers to all rows."""
    if task.config.kind == "perplexity":
        return [_perplexity(task.config.unit, answers)]
    said = [_counts(answers)] if task.config.kind == "classification" else []
    columns = [path for name in task.config.answer_columns for path in task.paths(name)]
    if not any(column in row for row in rows for column in columns):
        return said
    values = [is_right(task, row, answer) for row, answer in zip(rows, answers, strict=True)]
    known = [value for value in values if value is not None]
    if known:
        name = "Exact match" if task.config.kind == "generation" else "Accuracy"
        share = percent(sum(known) / len(known))
        said.append(f"{name}: {share} of {counted(len(known), 'row')} with a right answer.")
    else:
        said.append(f"No row has a right answer in {' or '.join(columns)} that fits the task.")
    return said


def is_right(task: TaskFile, row: Row, answer: Answer) -> bool | None:
    """Whether an answer is right; None if the row has no valid right answer."""
    example = task.labelled(row)
    if example is None:
        return None
    predicted = answer[PREDICTED]
    if (writing := task.task().writing) is not None:
        references = writing.targets(example.references)
        return isinstance(predicted, str) and bool(exact_match(predicted, references))
    words = task.options(row, example)
    return predicted in [words[index] for index in relevant(example)]


def _counts(answers: Sequence[Answer]) -> str:
    counts = Counter(str(answer[PREDICTED]) for answer in answers).most_common()
    listed = ", ".join(f"{label} {count(number)}" for label, number in counts[:MOST_LABELS])
    return f"Answers: {listed}{' and others' if len(counts) > MOST_LABELS else ''}."


def _perplexity(unit: str, answers: Sequence[Answer]) -> str:
    """The perplexity of all texts, as a run computes it."""
    pairs = [(answer.get(NATS + unit), answer.get(f"{SCORED}{unit}s")) for answer in answers]
    known = [(float(str(nats)), int(str(units))) for nats, units in pairs if nats is not None]
    total = sum(units for _, units in known)
    if not total:
        return "No row has text."
    mean = sum(nats * units for nats, units in known) / total
    return (
        f"Perplexity: {math.exp(mean):.4g} per {unit} ({mean:.4g} nats), over "
        f"{counted(total, unit)} of {counted(len(known), 'text')}."
    )
