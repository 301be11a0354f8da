"""The frontier is the best allocation at each of its budgets, and counts what the bank counts."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from models import tiny_gpt2, tiny_llama
from sieved import banked, mixed

from sieve.search.waterfill import estimated_loss, estimated_rise, waterfill, weights_toward


@pytest.mark.parametrize("storage", ["plain", "pivoted"])
def test_no_choice_of_ranks_is_better_at_any_budget_of_the_frontier(storage: str) -> None:
    bank = banked(
        tiny_llama(
            hidden_size=8,
            intermediate_size=8,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_hidden_layers=1,
        ),
        "loss_aware",
        storage=storage,
    )
    matrices = bank.matrices[:3]
    choices = []
    for matrix in matrices:
        ranks = [None, *range(min(bank.factors[matrix.name].rank, 8) + 1)]
        choices.append(
            [(bank.sizing.kept(matrix, r), estimated_loss(bank, matrix.name, r)) for r in ranks]
        )
    frontier = waterfill(bank)
    rest = sum(m.size for m in bank.matrices[3:])
    for steps in range(len(frontier.changes) + 1):
        if set().union(*frontier.changes[:steps]) - {m.name for m in matrices}:
            continue  # Compared while only these three have shrunk.
        kept, loss = frontier.kept[steps] - rest, frontier.loss[steps]
        best = min(
            sum(part[1] for part in combination)
            for combination in itertools.product(*choices)
            if sum(part[0] for part in combination) <= kept
        )
        assert loss <= best * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("storage", ["plain", "pivoted"])
@pytest.mark.parametrize("projection", ["loss_aware", "loss_aware_affine", "output"])
@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_sizes_and_losses_are_those_of_its_genomes(build, projection: str, storage: str) -> None:
    bank = banked(build(), projection, storage=storage)
    frontier = waterfill(bank)
    assert (np.diff(frontier.kept) < 0).all() and (np.diff(frontier.loss) >= -1e-12).all()
    assert frontier.kept[0] == bank.size
    for steps in range(0, len(frontier.changes) + 1, 7):
        genome = frontier.genome(steps)
        ranks = frontier.ranks(steps)
        assert bank.ranks(genome) == ranks
        assert bank.kept_parameters(genome) == frontier.kept[steps]
        assert frontier.loss[steps] == pytest.approx(
            estimated_rise(bank, genome), rel=1e-6, abs=1e-9
        )


def test_the_fewest_steps_within_a_budget_are_found() -> None:
    bank = banked(tiny_llama(), "loss_aware", storage="pivoted")
    frontier = waterfill(bank)
    for fraction in (0.9, 0.5, 0.1):
        steps = frontier.steps_to(fraction)
        assert frontier.kept_fraction(steps) <= fraction < frontier.kept_fraction(steps - 1)
    assert frontier.steps_to(0.0) == len(frontier.changes)
    assert frontier.steps_to(1.0) == 0


def test_ranks_keep_to_the_hardware_multiple_and_to_the_lowest_allowed() -> None:
    bank = banked(tiny_llama(), "loss_aware", storage="pivoted", rank_multiple=4)
    taken = [rank for change in waterfill(bank).changes for rank in change.values()]
    assert all(rank % (2 if rank >= 16 else 1) == 0 for rank in taken) and max(taken) > 16
    assert min(taken) == 0
    assert min(r for change in waterfill(bank, lowest_rank=1).changes for r in change.values()) == 1


def test_relative_energies_do_not_depend_on_a_matrix_s_scale() -> None:
    bank = banked(tiny_llama(), "output", storage="pivoted")
    name = bank.names[3]
    before = [waterfill(bank, n) for n in ("none", "relative")]
    bank.factors[name].energy.mul_(1000.0)
    after = [waterfill(bank, n) for n in ("none", "relative")]
    assert before[0].changes != after[0].changes
    assert before[1].changes == after[1].changes


def test_an_unknown_normalization_is_refused() -> None:
    with pytest.raises(ValueError, match="got normalization 'sqrt', expected one of none, rel"):
        waterfill(banked(tiny_llama()), "sqrt")


def test_a_frontier_from_a_genome_of_the_frontier_is_the_rest_of_it() -> None:
    bank = banked(tiny_llama(), "loss_aware", storage="pivoted")
    whole = waterfill(bank)
    steps = whole.steps_to(0.3)
    rest = waterfill(bank, start=whole.genome(steps))
    assert rest.changes == whole.changes[steps:]
    assert (rest.kept == whole.kept[steps:]).all()
    np.testing.assert_allclose(rest.loss, whole.loss[steps:], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("joint", [False, True])
def test_a_frontier_from_any_genome_begins_there_and_only_goes_down(joint: bool) -> None:
    bank = banked(tiny_llama(), storage="pivoted", joint=joint)
    start = mixed(bank)
    frontier = waterfill(bank, start=start)
    assert bank.ranks(frontier.genome(0)) == bank.ranks(start)
    for steps in range(len(frontier.changes) + 1):
        genome = frontier.genome(steps)
        assert bank.kept_parameters(genome) == frontier.kept[steps]
        assert frontier.loss[steps] == pytest.approx(estimated_rise(bank, genome), rel=1e-6)
    assert (np.diff(frontier.kept) < 0).all()


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_units_never_make_a_frontier_worse_and_go_in_one_step(build, joint: bool) -> None:
    bank = banked(build(), "loss_aware" if not joint else "output", storage="pivoted", joint=joint)
    united = waterfill(bank)
    separate = waterfill(replace(bank, matrices=[replace(m, feeds=None) for m in bank.matrices]))
    loss = np.interp(separate.kept[::-1], united.kept[::-1], united.loss[::-1])
    assert (loss <= separate.loss[::-1] * (1 + 1e-9) + 1e-12).all()
    writers = {m.feeds for m in bank.matrices if m.feeds}
    assert united.kept[-1] < separate.kept[-1] or build is tiny_gpt2  # Its biases are there anyway.
    for change in united.changes:
        removed = {name for name, rank in change.items() if rank == 0}
        for matrix in bank.matrices:
            if matrix.feeds in removed & writers:
                assert united.ranks(len(united.changes))[matrix.name] == 0
                assert matrix.name in removed or matrix.name not in change


def test_the_state_without_a_unit_costs_its_bias_and_the_energy_of_its_writer_alone() -> None:
    bank = banked(tiny_llama(), "loss_aware", storage="pivoted")
    o = next(m for m in bank.matrices if m.kind == "o")
    bank.factors[o.name].energy.zero_()  # The cheapest of all to remove.
    change = waterfill(bank).changes[0]
    feeders = {m.name: 0 for m in bank.matrices if m.feeds == o.name}
    assert change == {o.name: 0} | feeders
    frontier = waterfill(bank)
    assert frontier.loss[1] == pytest.approx(estimated_loss(bank, o.name, 0))
    assert (
        frontier.kept[0] - frontier.kept[1]
        == o.size + sum(m.size for m in bank.matrices if m.name in feeders) - o.d_out
    )
    rest = waterfill(bank, start=frontier.genome(1))
    assert rest.changes == frontier.changes[1:]
    weights = weights_toward(bank, frontier.genome(1))
    assert {weights[name] for name in feeders} == {weights[o.name]}
