"""The space of genomes: alleles that are ranks, and genomes that turn back into themselves."""

import json

import numpy as np
import pytest
from models import tiny_llama
from sieved import banked, mixed

from sieve.config import LEVELS
from sieve.search.space import genome_of_levels, make_space
from sieve.search.waterfill import waterfill

BANK = banked(tiny_llama(), "loss_aware", storage="pivoted")


def test_alleles_are_all_small_ranks_then_some_ten_percent_apart_and_the_dense_matrix() -> None:
    for gene, held in zip(BANK.genes, make_space(BANK, None).alleles, strict=True):
        *ranks, last = held
        assert last is None and ranks[:10] == list(range(min(10, len(ranks))))
        assert all(b - a <= max(1, 0.1 * a) for a, b in zip(ranks, ranks[1:], strict=False))
        assert ranks[-1] < BANK.sizing.top_rank(gene)
    assert all(held[0] == 1 for held in make_space(BANK, None, lowest_rank=1).alleles)


def test_ranks_keep_to_the_hardware_multiple() -> None:
    bank = banked(tiny_llama(), "loss_aware", storage="pivoted", rank_multiple=4)
    for *ranks, _ in make_space(bank, None).alleles:
        assert all(rank % bank.sizing.step(rank) == 0 for rank in ranks)
        assert all(
            0 < b - a <= max(bank.sizing.step(b), 0.1 * a)
            for a, b in zip(ranks, ranks[1:], strict=False)
        )


@pytest.mark.parametrize("levels", [None, LEVELS])
def test_a_genome_of_the_space_turns_back_into_its_positions(levels) -> None:
    space, random = make_space(BANK, levels), np.random.default_rng(0)
    for _ in range(20):
        positions = tuple(int(random.integers(len(held))) for held in space.alleles)
        genome = space.genome(positions)
        needed = [name not in BANK.unneeded(genome) for name in BANK.names]
        back = zip(space.positions(genome), positions, needed, strict=True)
        assert all(found == drawn for found, drawn, counts in back if counts)
        places = zip(space.costs, positions, needed, strict=True)
        costs = sum(cost[at] for cost, at, counts in places if counts)
        assert costs == BANK.kept_parameters(genome)


def test_a_genome_beside_the_space_goes_to_the_next_larger_ranks() -> None:
    space = make_space(BANK, (1, 0.5, 0.1, 0))
    genome = mixed(BANK)
    nearest = BANK.ranks(space.genome(space.positions(genome)))
    for name, rank in BANK.ranks(genome).items():
        assert nearest[name] is None or (rank is not None and nearest[name] >= rank)


def test_what_a_sweeper_gets_turns_back_into_the_same_ranks() -> None:
    space, frontier = make_space(BANK, None), waterfill(BANK)
    seeds = [frontier.genome(frontier.steps_to(f)) for f in (0.5, 0.2, 0.05)]
    described = json.loads(json.dumps(space.describe(seeds)))
    assert [v["name"] for v in described["variables"]] == list(BANK.names)
    for seed, levels in zip(seeds, described["seeds"], strict=True):
        for variable, level in zip(described["variables"], levels, strict=True):
            assert level in variable["values"]
        genome = genome_of_levels(BANK, levels)
        assert BANK.ranks(genome) == BANK.ranks(space.genome(space.positions(seed)))
