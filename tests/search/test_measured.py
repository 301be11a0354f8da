"""Costs of matrices are measured, and a frontier passes where it is told to."""

import math
from dataclasses import replace

import numpy as np
import pytest
from models import tiny_llama
from sieved import banked, mixed

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.search.measured import measure_weights
from sieve.search.score import Score
from sieve.search.waterfill import estimated_loss, scale_energies, waterfill, weights_toward

BANK = banked(tiny_llama(), "loss_aware", storage="pivoted")
SIZE = 0.4
TRUE = dict(zip(BANK.names, np.geomspace(0.25, 4.0, len(BANK.names)).tolist(), strict=True))


class Known:
    """The divergence is what energies foretell, times a factor of each matrix's own."""

    def __init__(self, factors: dict[str, float], known: bool = True) -> None:
        self.factors, self.known, self.asked = factors, known, 0

    def score(self, genome: Genome, max_divergence: float = math.inf) -> Score:
        self.asked += 1
        far = sum(
            self.factors[m.name] * estimated_loss(BANK, m.name, rank)
            for m, rank in BANK.in_use(genome).items()
        )
        far = far if self.known else math.nan
        return Score(BANK.kept_fraction(genome), 0.9, 0.01, 10, divergence=far)


def spread(weights: dict[str, float]) -> float:
    """How far weights are from the true factors, up to a common one, on a logarithmic scale."""
    return float(np.std([math.log(weights[name] / TRUE[name]) for name in BANK.names]))


def test_weights_come_nearer_to_what_matrices_cost_with_every_round() -> None:
    away = [spread(measure_weights(BANK, Known(TRUE), SIZE, rounds=r)) for r in (1, 2, 4)]
    assert spread(dict.fromkeys(BANK.names, 1.0)) > away[0] > away[1] > away[2]


def test_a_frontier_by_measured_cost_is_nearer_at_the_same_size() -> None:
    held = scale_energies(BANK, measure_weights(BANK, Known(TRUE), SIZE, rounds=4))
    before, after = (
        frontier.genome(frontier.steps_to(SIZE)) for frontier in (waterfill(BANK), waterfill(held))
    )
    near, far = (Known(TRUE).score(genome).divergence for genome in (after, before))
    assert near < 0.97 * far


def test_where_energies_say_what_matrices_cost_nothing_changes() -> None:
    weights = measure_weights(BANK, Known(dict.fromkeys(BANK.names, 3.0)), SIZE)
    assert max(weights.values()) / min(weights.values()) < 1.01


def test_a_round_takes_at_most_two_evaluations_a_matrix_and_one_of_the_whole() -> None:
    scorer = Known(TRUE)
    measure_weights(BANK, scorer, SIZE, rounds=3)
    assert scorer.asked <= 3 * (2 * len(BANK.names) + 1)


def test_an_objective_without_divergences_is_refused() -> None:
    with pytest.raises(ValueError, match="measures divergences"):
        measure_weights(BANK, Known(TRUE, known=False), SIZE)


def test_a_weighted_bank_is_the_same_to_genomes() -> None:
    held = scale_energies(BANK, TRUE, "relative")
    genome = mixed(BANK)
    assert held.ranks(genome) == BANK.ranks(genome) and held.fingerprint == BANK.fingerprint
    sums = [float(held.factors[n].energy.double().sum()) / TRUE[n] for n in BANK.names]
    assert np.allclose(sums, 1.0, rtol=1e-5)


def test_a_group_s_error_counts_for_each_of_its_members_and_none_stays_none() -> None:
    bank = banked(tiny_llama(), "loss_aware", storage="pivoted", joint=True)
    first = bank.matrices[0].name
    silent = bank.factors | {
        first: replace(bank.factors[first], energy=0 * bank.factors[first].energy)
    }
    held = scale_energies(replace(bank, factors=silent), {}, "relative")
    for gene in bank.genes:
        energy = float(held.factors[gene.name].energy.double().sum())
        wanted = 0.0 if gene.name == first else max(1, len(gene.members))
        assert energy == pytest.approx(wanted, rel=1e-5)


def test_a_group_gets_the_mean_weight_of_its_members() -> None:
    bank = banked(tiny_llama(), "loss_aware", storage="pivoted", joint=True)

    class Joined(Known):
        def score(self, genome: Genome, max_divergence: float = math.inf) -> Score:
            assert all(bank.ranks(genome)[group.name] is None for group in bank.groups)
            far = sum(
                self.factors.get(m.name, 1.0) * estimated_loss(bank, m.name, rank)
                for m, rank in bank.in_use(genome).items()
            )
            return Score(bank.kept_fraction(genome), 0.9, 0.01, 10, divergence=far)

    weights = measure_weights(bank, Joined(TRUE), SIZE, rounds=2)
    assert len({round(weight, 6) for weight in weights.values()}) > 4
    for group in bank.groups:
        logs = [math.log(weights[name]) for name in group.members]
        assert weights[group.name] == pytest.approx(math.exp(np.mean(logs)))


def distance(bank: Bank, a: Genome, b: Genome) -> float:
    """Difference of two genomes' matrices, as a part of all parameters."""
    ranks = [bank.ranks(genome) for genome in (a, b)]
    kept = [[bank.sizing.kept(m, r[m.name]) for m in bank.matrices] for r in ranks]
    return float(np.abs(np.subtract(*kept)).sum() / bank.size)


def test_a_frontier_goes_through_a_genome_that_it_was_not_made_for() -> None:
    start = waterfill(scale_energies(BANK, TRUE))
    for size in (0.6, 0.3):
        genome = start.genome(start.steps_to(size))
        plain, led = waterfill(BANK), waterfill(scale_energies(BANK, weights_toward(BANK, genome)))
        kept = BANK.kept_fraction(genome)
        apart = [distance(BANK, genome, f.genome(f.steps_to(kept))) for f in (plain, led)]
        assert apart[1] < 0.5 * apart[0]
