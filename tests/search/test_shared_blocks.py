"""Genomes that begin with the same blocks score the same whether they share them or not."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from families import EVERY
from models import tiny_llama, tiny_tokenizer
from sieved import GRID, banked, mixed, tokens
from transformers import PreTrainedModel

from sieve.bank.bank import Bank, fit
from sieve.bank.genome import Genome
from sieve.calibration.calibration import calibrate
from sieve.data.choices import scoring_batches
from sieve.data.sharing import prefix_sharing_of
from sieve.model.matrices import block_of, block_paths, find_matrices
from sieve.search import shared_blocks as module
from sieve.search.bottlenecks import find_bottlenecks
from sieve.search.lines import shared_blocks
from sieve.search.measured import measure_weights
from sieve.search.objective import Objective
from sieve.tasks.example import Example

EXAMPLES = [
    Example(f"A review of a film. {word}, {i} of five stars:", (" good", " bad", " so so"), i % 3)
    for i, word in enumerate(("a", "the", "no", "that", "one", "some", "my", "your", "this", "any"))
]
TOKENIZER = tiny_tokenizer()
CENTER = (0.6, 1.0, 0.3, 0.5)  # levels
BATCHES = scoring_batches(EXAMPLES, TOKENIZER, batch_tokens=128)


def changed(bank: Bank, genome: Genome, name: str, other: int = 0) -> Genome:
    """The genome with another rank for one matrix."""
    at = bank.names.index(name)
    genomes = [
        replace(genome, indexes=(*genome.indexes[:at], index, *genome.indexes[at + 1 :]))
        for index in range(len(GRID))
    ]
    return [g for g in genomes if bank.ranks(g)[name] != bank.ranks(genome)[name]][other]


@contextmanager
def counted(model: PreTrainedModel) -> Iterator[list[str]]:
    """The blocks that run, in order."""
    seen: list[str] = []
    own = {}
    for path in block_paths(model):
        kind = type(model.get_submodule(path))
        own[kind] = kind.forward

    def counting(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        seen.append(type(self).__name__)
        return own[type(self)](self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for kind in own:
            patch.setattr(kind, "forward", counting)
        yield seen


def divergences(model: PreTrainedModel, bank: Bank, shared: bool) -> list[float]:
    """Of genomes that differ from one genome in one matrix each."""
    objective, center = Objective(model, bank, BATCHES, judge="divergence"), mixed(bank, CENTER)
    if shared:
        objective.share_blocks(center)
    some = bank.names[:: max(1, len(bank.names) // 8)]
    genomes = [changed(bank, center, name, other) for name in some for other in (0, -1)]
    return [objective.score(genome).divergence for genome in genomes]


@pytest.mark.parametrize("kind", list(EVERY))
def test_scores_are_the_same_to_the_last_bit(kind: str) -> None:
    model = EVERY[kind]()
    bank = banked(model)
    assert divergences(model, bank, shared=True) == divergences(model, bank, shared=False)


def test_a_genome_runs_from_the_first_block_that_differs() -> None:
    model = tiny_llama(num_hidden_layers=4)
    bank = banked(model)
    objective, center = Objective(model, bank, BATCHES), mixed(bank, CENTER)
    objective.share_blocks(center)
    paths = block_paths(model)
    for name in bank.names:
        objective.score(changed(bank, center, name))
        with counted(model) as seen:
            objective.score(changed(bank, center, name, 1))
        assert len(seen) == len(BATCHES) * (4 - paths.index(block_of(name)))


def test_a_change_of_the_head_runs_no_block_and_of_the_embedding_every_block() -> None:
    model = tiny_llama(tie_word_embeddings=False)
    matrices = find_matrices(model, head=True, embedding=True)
    moments = calibrate(model, [{"input_ids": tokens(4, 16)}], matrices=matrices)
    bank = fit(model, moments, prune_head=True, prune_embedding=True)
    objective, center = Objective(model, bank, BATCHES), mixed(bank, CENTER)
    objective.share_blocks(center)
    for name, blocks in ((matrices[0].name, 2), (matrices[-1].name, 0)):
        objective.score(changed(bank, center, name))
        with counted(model) as seen:
            objective.score(changed(bank, center, name, 1))
        assert len(seen) == blocks * len(BATCHES)


def test_a_shared_prefix_of_rows_and_stages_give_the_same_scores_too() -> None:
    model = tiny_llama()
    bank = banked(model)
    batches = scoring_batches(EXAMPLES, TOKENIZER, 64, sharing=prefix_sharing_of(model))
    assert batches[0].prefix and len(batches) > 2
    stages = [[replace(b, examples=torch.arange(len(b.examples)))] for b in batches]
    center = mixed(bank, CENTER)
    genomes = [changed(bank, center, name) for name in bank.names]
    found: list[list[tuple[float, int]]] = []
    limit = float(np.median(divergences(model, bank, shared=False)))
    for shared in (False, True):
        objective = Objective(model, bank, stages, judge="divergence")
        if shared:
            objective.share_blocks(center)
        scores = [objective.score(genome, limit) for genome in genomes]
        found.append([(score.divergence, score.examples_used) for score in scores])
    assert found[0] == found[1]
    assert len({used for _, used in found[0]}) > 1


def test_less_memory_keeps_states_after_fewer_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(num_hidden_layers=4)
    bank = banked(model)
    center, width = mixed(bank, CENTER), model.config.hidden_size
    values = sum(batch.input_ids.numel() for batch in BATCHES) * width
    first, other = (changed(bank, center, bank.names[-1], index) for index in (0, 1))
    for states, blocks in ((4, 1), (2, 2), (1, 4), (0.5, 4)):
        monkeypatch.setattr(module, "BYTES", int(states * values * 4))
        objective = Objective(model, bank, BATCHES)
        objective.share_blocks(center)
        objective.score(first)
        with counted(model) as seen:
            objective.score(other)
        assert len(seen) == len(BATCHES) * blocks


def test_a_model_whose_blocks_share_more_than_hidden_states_runs_them_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_llama()
    bank = banked(model)
    first, second = (model.get_submodule(path) for path in block_paths(model))
    seen: list[torch.Tensor] = []

    def remember(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen[:] = [hidden]
        return type(first).forward(first, hidden, *args, **kwargs)

    def add(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return type(second).forward(second, hidden + seen[0], *args, **kwargs)

    monkeypatch.setattr(first, "forward", remember)
    monkeypatch.setattr(second, "forward", add)
    assert divergences(model, bank, shared=True) == divergences(model, bank, shared=False)
    assert vars(first)["forward"] is remember and vars(second)["forward"] is add


def test_a_genome_whose_scores_are_not_finite_does_not_end_sharing() -> None:
    model = tiny_llama(num_hidden_layers=4)
    bank = banked(model)
    objective, center, name = Objective(model, bank, BATCHES), mixed(bank, CENTER), bank.names[-1]
    objective.share_blocks(center)
    numbers = bank.factors[name].u.clone()
    bank.factors[name].u.fill_(float("nan"))
    assert objective.score(changed(bank, center, name, 1)).margin <= -1
    bank.factors[name].u.copy_(numbers)
    objective.score(changed(bank, center, name, 2))
    with counted(model) as seen:
        objective.score(changed(bank, center, name, 0))
    assert len(seen) == len(BATCHES)


def test_another_bank_shares_nothing_of_the_first() -> None:
    model = tiny_llama()
    banks = [banked(model), banked(model, "svd")]
    objective = Objective(model, banks[0], BATCHES)
    objective.share_blocks(mixed(banks[0], CENTER))
    assert objective._shared is not None and objective.on(banks[1])._shared is None


def test_what_is_kept_is_forgotten_after_measuring() -> None:
    model = tiny_llama()
    bank = banked(model)
    objective = Objective(model, bank, BATCHES)
    with shared_blocks(objective, mixed(bank, CENTER)):
        assert objective._shared is not None
    assert objective._shared is None


def test_blocks_are_as_they_were_afterwards() -> None:
    model = tiny_llama()
    bank = banked(model)
    divergences(model, bank, shared=True)
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.slow
def test_measuring_matrices_one_at_a_time_shares_blocks() -> None:
    model = tiny_llama(num_hidden_layers=4)
    bank = banked(model, "loss_aware", storage="pivoted")
    runs = {
        "measured": lambda objective: measure_weights(bank, objective, 0.4),
        "map": lambda objective: find_bottlenecks(bank, objective),
    }
    for run in runs.values():
        whole, shared = (Objective(model, bank, BATCHES, judge="divergence") for _ in range(2))
        with pytest.MonkeyPatch.context() as patch, counted(model) as before:
            patch.setattr(Objective, "share_blocks", lambda *_: None)
            expected = run(whole)
        with counted(model) as after:
            assert run(shared) == expected
        assert len(after) < 0.75 * len(before)
