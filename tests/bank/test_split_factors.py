"""Factors that ranks share out compute, genome after genome, what one process computes."""

from typing import Any

import pytest
import torch
from models import tiny_gpt2, tiny_llama, tiny_mixtral
from ranked import on_ranks, position, sharded
from sieved import banked, logits, mixed, tokens, uniform

from sieve.bank.bank import Bank, fit
from sieve.bank.genome import Genome
from sieve.bank.switch import Switch
from sieve.calibration.calibration import calibrate
from sieve.model.matrices import block_of, find_matrices

FAMILIES = {"llama": tiny_llama, "gpt2": tiny_gpt2, "moe": tiny_mixtral}


def genomes(bank: Bank) -> list[Genome]:
    """Upwards, so that more is brought; matrices that are dense, factorized and gone in turn."""
    turned = mixed(bank, (1.0, 0.3, 0.6, 0.0))
    return [uniform(bank, 0.3), mixed(bank), turned, uniform(bank, 0.6), uniform(bank, 0.0)]


def banks_of(family: str) -> list[Bank]:
    """Plain, with biases and shared factors of siblings, and with the head."""
    model = FAMILIES[family]()
    found = [banked(model), banked(model, "affine", joint=family != "gpt2")]
    if family == "llama":
        data = [{"input_ids": tokens(4, 16), "targets": tokens(4, 16)}]
        moments = calibrate(model, data, find_matrices(model, True))
        found.append(fit(model, moments, prune_head=True))
    return found


def computed(family: str, banks: list[Bank], split: bool) -> list[Any]:
    """Logits of every genome of every bank, on other tokens for each rank, and of the model."""
    rank, world = position() if split else (0, 1)
    model = FAMILIES[family]()
    find_matrices(model)  # Which gives every expert a layer of its own.
    model = sharded(model) if split else model
    ids = [tokens(2, 12, seed) for seed in range(6)]
    found = []
    for bank in banks:
        with Switch(model, bank, as_stored=False, split=True) as switch:
            for genome in genomes(bank):
                switch.to(genome)
                found.append([logits(model, one) for one in ids[rank::world]])
        found.append([logits(model, one) for one in ids[rank::world]])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2", "moe"])
def test_genomes_compute_what_they_do_on_one_process(family: str, world: int) -> None:
    banks = banks_of(family)
    alone = computed(family, banks, split=False)
    ranks = on_ranks(computed, world, family, banks, True)
    for rank, found in enumerate(ranks):
        for genome, (one, all_of_it) in enumerate(zip(found, alone, strict=True)):
            expected = all_of_it[rank::world]
            assert len(one) == len(expected)
            torch.testing.assert_close(one, expected, rtol=1e-6, atol=1e-6, msg=f"{genome}")


def shares(bank: Bank) -> dict[str, Any]:
    """Numbers that a rank holds under one genome, and what stands in layers within and between."""
    model = sharded(tiny_llama())
    switch = Switch(model, bank, as_stored=False, split=True).to(uniform(bank, 0.6))
    names = [matrix.name for matrix in bank.matrices]
    within: dict[str, set[str]] = {}
    for path in {block_of(name) for name in names}:
        last = [name for name in names if block_of(name) == path][-1]
        hook = lambda *_, path=path: within.update({path: of_numbers(model, names)})  # noqa: E731
        model.get_submodule(last).register_forward_hook(hook)
    logits(model)
    assert switch._split is not None
    pairs = switch._split._factors._copies.values()
    held = sum(pair.u.numel() + pair.v.numel() for pair in pairs)
    between = of_numbers(model, names)
    with pytest.raises((RuntimeError, NotImplementedError)):  # On its own a layer has no factors.
        model.get_submodule(names[0])(torch.ones(1, 32))
    switch.restore()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    plain = sharded(tiny_llama())
    before = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in plain.modules())
    return {"held": held, "within": within, "between": between, "hooks": hooks - before}


def of_numbers(model: Any, names: list[str]) -> set[str]:
    """The matrices whose layers have factors."""
    layers = {name: model.get_submodule(name) for name in names}
    return {n for n, layer in layers.items() if layer.factor_in.weight.numel()}


@pytest.mark.slow
def test_a_rank_holds_its_share_and_one_block_is_whole_at_a_time() -> None:
    bank = banked(tiny_llama())
    ranks = {m.name: bank.sizing.rank(m, 0.6) or 0 for m in bank.matrices}
    whole = sum(ranks[m.name] * (m.d_in + m.d_out) for m in bank.matrices)
    names = [matrix.name for matrix in bank.matrices]
    for rank in on_ranks(shares, 2, bank):
        assert whole / 2 * 0.95 <= rank["held"] <= whole / 2 * 1.25 * 1.05  # With some to spare.
        for path, seen in rank["within"].items():
            assert seen == {name for name in names if block_of(name) == path}
        assert rank["between"] == set()
        assert rank["hooks"] == 0


def test_without_several_ranks_nothing_is_split() -> None:
    model = tiny_llama()
    assert Switch(model, banked(model), as_stored=False, split=True)._split is None
