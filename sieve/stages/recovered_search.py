"""The smallest genome that is within the tolerance after training.

Sizes are tried by bisection. Each genome is pruned from the nearest larger one that was trained and
accepted: its trained matrices are factorized again with the moments of calibration, so directions
are ordered by what the task needs, and ranks are water-filled anew. Each is trained for a short
time and judged on calibration rows that training never reads. The selection rows, which no attempt
has seen, have the last word: all accepted genomes are scored on them, the smallest after it was
trained to the end. The smallest that is within the tolerance there is the result. If all fail, a
larger one is trained.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.recovery.further import factorize_again
from sieve.recovery.walk import Attempt, walk
from sieve.runtime.artifacts import fingerprint
from sieve.search.lines import Line, largest_within
from sieve.search.score import Score
from sieve.stages.cached import Record
from sieve.stages.calibrate import Calibrated
from sieve.stages.run import Run
from sieve.stages.selecting import line_down, line_through
from sieve.stages.training import Trained, Training

log = logging.getLogger(__name__)
# Shares of the risk of being wrong: the smallest accepted genome, all others accepted, a larger one
# if all of them fail, and if that fails too the genome of the search, trained as it is.
RISK = (0.4, 0.4, 0.1, 0.1)
SHARE = 0.5  # of recovery.minutes that the short trainings take together


@dataclass(frozen=True)
class Judged:
    """A trained genome, and its score on the held-out rows."""

    trained: Trained
    score: Score

    @property
    def record(self) -> Record:
        """The sizes and accuracies of the report's curve."""
        history, score = self.trained.record["history"], self.score
        return {
            "kept_fraction": score.kept_fraction,
            "accuracy_before": history[0]["accuracy"],
            "accuracy": score.accuracy,
            "margin": score.margin,
            "feasible": score.feasible,
            "steps": history[-1]["step"],
        }


def search_recovered(
    training: Training,
    calibrated: Calibrated,
    searched: tuple[Bank, Genome],
    largest: float,
    key: str,
) -> tuple[Record, Trained | None]:
    """The record of all attempts, and the smallest genome within the tolerance, if any.

    Args:
        searched: the bank and the genome of the search, from which sizes are tried.
        largest: kept fraction that needs no training; attempts are smaller.
        key: fingerprint of the stage.
    """
    bank, genome = searched
    search = _Search(training, calibrated, bank, genome, key)
    settings = training.settings
    attempts = walk(search.attempt, largest, settings.tries, settings.first)
    accepted = [attempt.result for attempt in attempts if attempt.accepted]
    accepted.sort(key=lambda judged: -judged.trained.kept_fraction)
    best, scores = _certified(training, search.downwards(accepted), shares(len(accepted)))
    if accepted and best is None:
        best, more = _certified(training, search.larger(accepted[0], largest), RISK[2:3])
        scores += more
    record = {
        "kept_before": largest,
        "head_start": training.head_start,
        "attempts": [judged.record for judged in search.judged],
        "certified": [asdict(score) | {"feasible": score.feasible} for score in scores],
    }
    return record, best


def shares(accepted: int) -> list[float]:
    """The shares of the risk of accepted genomes, from the largest to the smallest."""
    smallest, others, *_ = RISK
    if accepted <= 1:
        return [smallest + others] * accepted
    return [others / (accepted - 1)] * (accepted - 1) + [smallest]


def _certified(
    training: Training, chain: Iterable[Trained], risks: Iterable[float]
) -> tuple[Trained | None, list[Score]]:
    """The last genome of a chain that is within the tolerance on the selection rows, and scores.

    Every genome has a share of the risk of being wrong, and one that is within the tolerance hands
    its share on to the next. So any of them is wrongly accepted as seldom as in a single test with
    the sum of the shares (fallback procedure; Wiens, Pharmaceutical Statistics 2:211-215, 2003).
    """
    confidence, scores, best = training.run.config.test_confidence, list[Score](), None
    handed_on = 0.0
    for trained, risk in zip(chain, risks, strict=False):
        judge, share = training.fresh.on(trained.bank), risk + handed_on
        if confidence is not None:
            judge.confidence = 1 - share * (1 - confidence)
        scores.append(judge.score(trained.genome))
        if scores[-1].feasible:
            best, handed_on = trained, share
        else:
            handed_on = 0.0
    return best, scores


class _Search:
    """Prunes, trains and judges genomes; each attempt is remembered, so a killed run resumes."""

    def __init__(
        self, training: Training, calibrated: Calibrated, bank: Bank, genome: Genome, key: str
    ) -> None:
        self.training, self.run, self.key = training, training.run, key
        self.bank, self.genome = bank, genome
        self.moments = calibrated.moments()
        self.judged: list[Judged] = []

    def attempt(
        self, size: float, refused: float, parent: Attempt[Judged] | None
    ) -> Attempt[Judged] | None:
        """Prune to a kept fraction and train for a short time; None without such a genome.

        Args:
            size: kept fraction at most.
            refused: a smaller kept fraction; the genome keeps more.
        """
        larger = parent.result.trained if parent else None
        key = fingerprint(self.key, size, larger.key if larger else None)
        bank, line = self._line(larger, key)
        genome = largest_within(line, bank.kept_fraction, size)
        if genome is None or not any(bank.ranks(genome).values()):
            return None
        if bank.kept_fraction(genome) <= refused:
            return None
        share = SHARE / self.training.settings.tries
        trained = self.training.until_accepted(bank, genome, key, share, larger)
        score = self.training.objective.on(trained.bank).score(trained.genome)
        self.judged.append(Judged(trained, score))
        _log(self.run, self.judged[-1].record)
        return Attempt(score.kept_fraction, score.feasible, self.judged[-1])

    def _line(self, larger: Trained | None, key: str) -> tuple[Bank, Line]:
        """A bank, and genomes of it from a larger genome, or from the dense model, down."""
        run = self.run
        if larger is None:
            return self.bank, line_through(run, self.bank, self.genome)
        bank = factorize_again(
            run.backbone.model,
            self.moments,
            self.bank,
            (larger.bank, larger.genome),
            run.config.projection.damping,
        )
        bank, genome = replace(bank, fingerprint=key), replace(larger.genome, bank=key)
        return bank, line_down(run, bank, genome)

    def downwards(self, accepted: Sequence[Judged]) -> Iterator[Trained]:
        """Accepted genomes from the largest down; the smallest is trained to the end."""
        yield from (judged.trained for judged in accepted[:-1])
        for smallest in accepted[-1:]:
            yield self.finish(smallest.trained)

    def larger(self, refused: Judged, largest: float) -> Iterator[Trained]:
        """A genome between a refused one and `largest`, trained to the end."""
        kept = refused.trained.kept_fraction
        if attempt := self.attempt(math.sqrt(kept * largest), kept, None):
            yield self.finish(attempt.result.trained)

    def finish(self, trained: Trained) -> Trained:
        """Train a genome to the end."""
        key = fingerprint(trained.key, "to the end")
        return self.training.to_the_end(trained.bank, trained.genome, key, 1 - SHARE, trained)


def _log(run: Run, record: Record) -> None:
    if run.leads:
        log.info(
            "  trained      kept %5.2f %%  score %.4f -> %.4f  margin %+.4f",
            100 * record["kept_fraction"],
            *(record[key] for key in ("accuracy_before", "accuracy", "margin")),
        )
    run.logger.log_series("recovered", [record], step="kept_fraction")
