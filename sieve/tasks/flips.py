"""The rows on which two models differ, and how each class of answers fared.

A row is a flip if its answer or its score changed. Text has no answer, and the score of every text
changes, so only the texts that lost the most are listed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from sieve.tasks.example import Example
from sieve.tasks.scores import Scores

MOST_TEXTS = 100  # of a metric such as perplexity
SURE = 0.05  # the chance that a class stands out by luck, over all classes


@dataclass(frozen=True)
class Flip:
    """A row whose answer or score changed; fields of `flips.jsonl`."""

    row: int  # its index in the split
    id: str  # hash of the prompt and its choices
    outcome: str  # lost, won, or changed: another answer with the same score
    prompt: str  # without the preamble and shots that precede every prompt
    right: str  # a right answer; "" for text
    dense: str | None  # the dense model's answer; None where answers are written or there are none
    pruned: str | None
    dense_score: float  # the row's value in the metric, larger is better
    pruned_score: float


@dataclass(frozen=True)
class ClassScore:
    """The rows of one right answer: how many, the mean values, and how many rows flipped."""

    answer: str
    rows: int
    dense: float
    pruned: float
    lost: int
    won: int


def find_flips(examples: Sequence[Example], dense: Scores, pruned: Scores) -> list[Flip]:
    """The rows that flipped, the largest loss first and the largest gain last.

    examples: the rows of both scores, in their order.
    """
    if dense is pruned:
        return []
    change = dense.values.astype(float) - pruned.values.astype(float)
    flipped = change != 0
    if not dense.metric.agreement:  # There an answer that differs is a loss, but for rounding.
        flipped |= dense.predicted != pruned.predicted
    [rows] = np.nonzero(change > 0 if dense.metric.relative else flipped)
    rows = rows[np.argsort(-change[rows], kind="stable")]
    if dense.metric.relative:
        rows = rows[:MOST_TEXTS]
    return [_flip(examples[row], row, dense, pruned) for row in rows.tolist()]


def _flip(example: Example, row: int, dense: Scores, pruned: Scores) -> Flip:
    before, after = float(dense.values[row]), float(pruned.values[row])
    right = "" if dense.metric.relative else example.right.strip()
    answer = _answer(example, int(dense.predicted[row]))
    return Flip(
        row=row,
        id=example.key,
        outcome="lost" if before > after else "won" if before < after else "changed",
        prompt=example.content,
        right=right,
        dense=right if dense.metric.agreement and answer is not None else answer,
        pruned=_answer(example, int(pruned.predicted[row])),
        dense_score=before,
        pruned_score=after,
    )


def _answer(example: Example, choice: int) -> str | None:
    """A choice as text; None if nothing was chosen from several."""
    if len(example.choices) < 2:
        return None
    if choice < 0:
        return "not a number"
    text = example.choices[choice].strip()
    return f"option {choice + 1}" if example.contexts else text


def score_classes(
    examples: Sequence[Example], labels: Sequence[str], dense: Scores, pruned: Scores
) -> list[ClassScore]:
    """The mean value of both models on the rows of each label that has rows.

    examples: the rows of both scores, in their order; their choices are the labels.
    """
    right = np.array([example.answer for example in examples])
    scores = []
    for index, label in enumerate(labels):
        chosen = right == index
        if chosen.any():
            before, after = (s.values[chosen].astype(float) for s in (dense, pruned))
            lost, won = int((before > after).sum()), int((before < after).sum())
            means = float(before.mean()), float(after.mean())
            scores.append(ClassScore(label, int(chosen.sum()), *means, lost, won))
    return scores


def hardest_hit(classes: Sequence[ClassScore]) -> ClassScore | None:
    """The class with the largest drop, if it lost at least twice the mean and not by luck.

    The test is exact: it draws the lost rows at random from all rows (hypergeometric), and divides
    the risk among the classes.
    """
    rows, lost = (sum(getattr(c, key) for c in classes) for key in ("rows", "lost"))
    if not lost:
        return None
    mean = sum(c.rows * (c.dense - c.pruned) for c in classes) / rows
    worst = max(classes, key=lambda c: c.dense - c.pruned)
    chance = stats.hypergeom.sf(worst.lost - 1, rows, lost, worst.rows) * len(classes)
    return worst if worst.dense - worst.pruned >= max(2 * mean, 0) and chance < SURE else None
