"""The objective of every search: how small a genome is and whether it still does the task."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

from transformers import PreTrainedModel

from sieve.bank import Bank
from sieve.batches import ScoringBatch
from sieve.evaluation import Scores, paired_drop, score
from sieve.factorized import Switch
from sieve.genome import Genome


@dataclass(frozen=True)
class Score:
    """One evaluated genome. margin = accuracy − (baseline − ε), or with a guarantee ε minus the
    upper end of the 95 % interval of the drop; feasible means margin ≥ 0."""

    kept_fraction: float
    accuracy: float
    margin: float
    examples_used: int
    loss: float = float("nan")  # mean negative log-likelihood of the right answer, nats

    @property
    def feasible(self) -> bool:
        """Whether the genome is within the tolerance."""
        return self.margin >= 0


class Objective:
    """Scores genomes on one split of examples; equal genomes are scored once.

    batches: scoring batches of the selection split; tolerance: ε, accuracy that may be lost.
    The baseline is the dense model on the same examples. The model is left dense.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        bank: Bank,
        batches: Sequence[ScoringBatch],
        tolerance: float = 0.02,
        guarantee: bool = False,
        normalize: bool = False,
    ) -> None:
        self.bank = bank
        self.batches = batches
        self.tolerance = tolerance
        self.guarantee = guarantee
        self.normalize = normalize
        self.switch = Switch(model, bank, as_stored=False)
        self.examples_scored = 0
        self.evaluated: dict[Genome, Score] = {}
        self.baseline = self._run("Scoring the dense model")

    def score(self, genome: Genome) -> Score:
        """Size, accuracy and margin of a genome; ValueError when it belongs to another bank."""
        if genome not in self.evaluated:
            genome.check_bank(self.bank.fingerprint, self.bank.names)
            kept = self.bank.kept_fraction(genome)
            ranks = self.bank.ranks(genome)
            if all(rank is None for rank in ranks.values()):
                scores = self.baseline
            else:
                with self.switch.to(genome):
                    scores = self._run(f"Scoring {kept:.1%} kept")
            self.evaluated[genome] = Score(
                kept, scores.accuracy, self._margin(scores), len(scores.correct), scores.loss
            )
        return self.evaluated[genome]

    def on(self, bank: Bank) -> "Objective":
        """The same objective for another bank of this model; the baseline is not scored again."""
        other = copy(self)
        other.bank, other.evaluated = bank, {}
        other.switch = Switch(self.switch.model, bank, as_stored=False)
        return other

    def _margin(self, scores: Scores) -> float:
        if scores is self.baseline:
            return self.tolerance  # The dense model itself loses nothing, however few the rows.
        if self.guarantee:
            return self.tolerance - paired_drop(self.baseline.correct, scores.correct).high
        lost = int(self.baseline.correct.sum()) - int(scores.correct.sum())
        # Counts, so that a drop of exactly ε is not lost to rounding.
        return (round(self.tolerance * len(scores.correct), 9) - lost) / len(scores.correct)

    def _run(self, description: str) -> Scores:
        scores = score(self.switch.model, self.batches, self.normalize, description)
        self.examples_scored += len(scores.correct)
        return scores
