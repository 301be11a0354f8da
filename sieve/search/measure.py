"""The answer of a notebook: how a genome does beside the dense model on rows of its own."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from sieve.bank.genome import Genome
from sieve.data.scored import ScoredBatch
from sieve.evaluation.evaluation import score
from sieve.report.result import Comparison, TestScore
from sieve.report.result import Drop as ReportedDrop
from sieve.report.sentence import drop_clause
from sieve.report.units import metric_name, metric_value
from sieve.report.values import counted, percent
from sieve.search.objective import Objective
from sieve.tasks.scores import Drop, Scores, compare


@dataclass(frozen=True)
class Answer:
    """What a genome keeps and loses. Printed it is one sentence, in a notebook a table.

    Args:
        kept_fraction: of the prunable parameters.
        dense: the dense model's scores.
        pruned: the genome's scores on the same rows.
        drop: dense − pruned, with a 95 % paired interval.
        seen: rows that the search has scored too.
    """

    kept_fraction: float
    dense: Scores
    pruned: Scores
    drop: Drop
    seen: int = 0

    def __str__(self) -> str:
        told, (before, after) = self._comparison, self._values
        return (
            f"{percent(self.kept_fraction)} of the prunable parameters kept: {metric_name(told)} "
            f"{after} instead of {before}{drop_clause(told)} on {self._rows}."
        )

    def _repr_html_(self) -> str:
        told, (before, after) = self._comparison, self._values
        cells = {
            "kept": f"{percent(self.kept_fraction)} of the prunable parameters",
            metric_name(told): f"{before} → {after}",
            "change": drop_clause(told).removeprefix(", "),
            "measured on": self._rows,
        }
        lines = (
            f"<tr><th style='text-align:left'>{escape(key)}</th>"
            f"<td style='text-align:left'>{escape(value)}</td></tr>"
            for key, value in cells.items()
        )
        return f"<table>{''.join(lines)}</table>"

    @property
    def _comparison(self) -> Comparison:
        metric, drop = self.dense.metric, self.drop
        dense, pruned = (
            TestScore(scores.accuracy, None, None, None, scores.not_finite)
            for scores in (self.dense, self.pruned)
        )
        change = ReportedDrop(drop.point, drop.low, drop.high, None, None)
        rows = len(self.dense.values)
        return Comparison(metric.name, metric.relative, "", dense, pruned, rows, change)

    @property
    def _values(self) -> tuple[str, str]:
        told = self._comparison
        before, after = told.baseline.accuracy, told.pruned.accuracy
        return metric_value(told, before), metric_value(told, after)

    @property
    def _rows(self) -> str:
        rows = counted(len(self.dense.values), "row")
        if self.seen:
            return f"{rows}, of which the search has seen {self.seen:,}"
        return f"{rows} that the search has not seen"


def measure(objective: Objective, genome: Genome, batches: Sequence[ScoredBatch]) -> Answer:
    """Score the dense model and a genome on rows that the search has not seen.

    Call it before `apply`, which changes the model.

    Args:
        objective: by which the genome was chosen.
        batches: scoring batches of other rows.
    """
    model, bank = objective.switch.model, objective.bank
    genome.check_bank(bank.fingerprint, bank.names)
    dense = score(model, batches, "Scoring the dense model")
    with objective.switch.to(genome):
        pruned = score(model, batches, "Scoring the genome")
    searched = {row for stage in objective.stages for batch in stage for row in _token_rows(batch)}
    seen = sum(_seen(batch, searched) for batch in batches)
    kept = bank.kept_fraction(genome)
    return Answer(kept, dense, pruned, compare(dense, pruned), seen)


def _seen(batch: ScoredBatch, searched: set[tuple[int, ...]]) -> int:
    """How many examples of a batch have been searched; an example may be several rows."""
    rows = [row in searched for row in _token_rows(batch)]
    return math.ceil(sum(rows) * len(batch.examples) / len(rows))


def _token_rows(batch: ScoredBatch) -> Iterator[tuple[int, ...]]:
    """The tokens of each row that a model reads."""
    for ids, mask in zip(batch.input_ids, batch.attention_mask.bool(), strict=True):
        yield tuple(ids[mask].tolist())
