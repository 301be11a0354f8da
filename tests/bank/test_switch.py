"""Switching genomes in place copies nothing, and the dense model always comes back."""

import dataclasses

import pytest
import torch
from models import (
    FAMILIES,
    tiny_gpt2,
    tiny_llama,
    tiny_llama_tied,
    tiny_mixtral,
    tiny_odd,
    tiny_qwen2,
)
from sieved import banked, logits, mixed, tokens, uniform
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sieve
from sieve.bank import switch as switch_module
from sieve.bank.merging import merge_dense
from sieve.bank.switch import Switch
from sieve.factorized.modeling_layers import FactorizedLinear
from sieve.model.matrices import dense_weight, find_matrices

BUILDERS = FAMILIES | {"mixtral": tiny_mixtral, "odd": tiny_odd}


def test_switching_copies_no_weights():
    model = tiny_llama()
    bank = banked(model)
    switch = Switch(model, bank)
    for level in (0.6, 0.3):
        switch.to(uniform(bank, level))
        for name in bank.names:
            layer = model.get_submodule(name)
            assert layer.factor_out.weight.data_ptr() == bank.factors[name].u.data_ptr()
            assert layer.factor_in.weight.data_ptr() == bank.factors[name].v.data_ptr()


def test_a_matrix_that_keeps_its_rank_keeps_its_parameters_until_they_train():
    model = tiny_llama()
    bank = banked(model)
    switch, genome, name = Switch(model, bank), uniform(bank, 0.3), bank.names[0]
    weight = switch.to(genome).model.get_submodule(name).factor_in.weight
    assert switch.to(genome).model.get_submodule(name).factor_in.weight is weight
    other = switch.to(uniform(bank, 0.6)).model.get_submodule(name).factor_in.weight
    assert other is not weight and other.shape != weight.shape
    changed = switch.to(genome).model.get_submodule(name).factor_in.weight.requires_grad_(True)
    again = switch.to(genome).model.get_submodule(name).factor_in.weight
    assert again is not changed and not again.requires_grad
    switch.model.get_submodule(name).factor_in.weight = torch.nn.Parameter(again + 1, False)
    assert torch.equal(switch.to(genome).model.get_submodule(name).factor_in.weight, weight)


def test_level_one_puts_the_very_same_module_back():
    model = tiny_gpt2()
    bank = banked(model)
    dense = {name: model.get_submodule(name) for name in bank.names}
    switch = Switch(model, bank).to(uniform(bank, 0.3)).to(uniform(bank, 1.0))
    assert all(model.get_submodule(name) is layer for name, layer in dense.items())
    assert switch.model is model


@pytest.mark.parametrize("family", FAMILIES)
def test_restore_gives_bitwise_the_same_logits(family):
    model = FAMILIES[family]()
    bank, before = banked(model), None
    before = logits(model)
    with Switch(model, bank).to(mixed(bank)):
        assert not torch.allclose(logits(model), before, atol=1e-3)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2, tiny_qwen2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_merging_back_gives_the_logits_of_the_factors(build, dtype, tolerance):
    model = build().to(dtype)
    bank = banked(model)
    sieve.apply(model, bank, uniform(bank, 0.6))
    wanted = logits(model)
    merge_dense(model)
    assert not any(isinstance(module, FactorizedLinear) for module in model.modules())
    torch.testing.assert_close(logits(model), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("projection", ["output", "affine"])
@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_with_every_matrix_gone_the_model_is_finite_and_generates(build, projection):
    model = build()
    bank = banked(model, projection)
    sieve.apply(model, bank, uniform(bank, 0.0))
    assert all(model.get_submodule(n).factor_in.out_features == 0 for n in bank.names)
    assert torch.isfinite(logits(model)).all()
    mask = torch.ones(2, 12).long()
    out = model.generate(tokens(), attention_mask=mask, max_new_tokens=3, do_sample=False)
    assert out.shape == (2, 15)


def test_a_genome_of_another_bank_is_refused():
    model = tiny_llama()
    bank = banked(model)
    stray = dataclasses.replace(mixed(bank), bank="another")
    with pytest.raises(ValueError, match="belongs to bank 'another'"):
        sieve.apply(model, bank, stray)


def test_a_factorized_model_is_refused():
    model = tiny_llama()
    bank = banked(model)
    sieve.apply(model, bank, uniform(bank, 0.3))
    with pytest.raises(ValueError, match="got a factorized model"):
        Switch(model, bank)


def test_a_rank_beyond_the_bank_is_refused():
    model = tiny_llama()
    bank = banked(model)
    with pytest.raises(ValueError, match="got rank 33, expected 0 to"):
        Switch(model, bank).set_ranks({bank.names[0]: 33})


def test_at_full_rank_the_factors_are_the_dense_model():
    model = tiny_qwen2().double()
    bank, before = banked(model), logits(model)
    for matrix in bank.matrices:
        weight = model.get_submodule(matrix.name).weight
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
        bank.factors[matrix.name] = dataclasses.replace(
            bank.factors[matrix.name], u=u, v=s[:, None] * vt
        )
    Switch(model, bank).set_ranks({m.name: min(m.d_out, m.d_in) for m in bank.matrices})
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-10)


class Allocations(TorchDispatchMode):
    """Sizes in bytes of the storages that come into being inside the block."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {storage_of(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and storage_of(tensor) not in given:
                self.sizes.append(tensor.untyped_storage().nbytes())
        return result


def storage_of(tensor):
    return tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("projection", ["output", "affine"])
@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_a_switch_allocates_no_more_than_biases(build, projection, dtype):
    model = build()
    bank = banked(model, projection, dtype=dtype)
    switch = Switch(model, bank)
    genomes = (uniform(bank, 0.6), mixed(bank), uniform(bank, 0.3), uniform(bank, 0.6))
    for genome in genomes:  # What they ask for is brought once.
        switch.to(genome)
    held = {storage_of(part) for f in switch._factors._copies.values() for part in (f.u, f.v)}
    if dtype == model.dtype:
        assert held == {storage_of(part) for f in bank.factors.values() for part in (f.u, f.v)}
    largest_bias = 4 * max(matrix.d_out for matrix in bank.matrices)
    for genome in genomes:
        with Allocations() as made:
            switch.to(genome)
        assert all(size <= largest_bias for size in made.sizes)
        for name, rank in bank.ranks(genome).items():
            layer = model.get_submodule(name)
            if rank:
                assert storage_of(layer.factor_out.weight) in held
                assert storage_of(layer.factor_in.weight) in held
    with Allocations() as made:
        switch.restore()
    assert made.sizes == []


def test_the_counter_of_allocations_counts():
    with Allocations() as made:
        torch.ones(10).clone()[2:].view(2, 4)
    assert made.sizes == [40, 40]


@pytest.mark.parametrize("projection", ["output", "affine"])
@pytest.mark.parametrize("family", BUILDERS)
def test_each_layer_is_the_leading_factors_and_both_biases(family, projection):
    model = BUILDERS[family]()
    bank = banked(model, projection)
    model.double()
    own = {name: model.get_submodule(name).bias for name in bank.names}
    switch = Switch(model, bank)
    generator = torch.Generator().manual_seed(0)
    for ranks in ((0, 1, 5), (5, 0, 1), (1, 5, 0)):
        by_name = {name: ranks[i % 3] for i, name in enumerate(bank.names)}
        switch.set_ranks(by_name)
        for matrix in bank.matrices:
            factors, rank = bank.factors[matrix.name], by_name[matrix.name]
            x = torch.randn(3, matrix.d_in, generator=generator, dtype=torch.float64)
            u, v = factors.u[:, :rank].double(), factors.v[:rank].double()
            wanted = x @ v.T @ u.T
            if rank == 0:
                wanted = wanted + factors.mean.double()
            elif projection == "affine":
                wanted = wanted + factors.mean.double() - u @ factors.offset[:rank].double()
            if own[matrix.name] is not None:
                wanted = wanted + own[matrix.name]
            got = model.get_submodule(matrix.name)(x)
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", BUILDERS)
def test_what_is_not_in_the_bank_stays_the_same_tensor(family):
    model = BUILDERS[family]()
    bank = banked(model, "affine")
    owned = tuple(f"{name}." for name in bank.names)
    before = {n: p for n, p in model.named_parameters() if not n.startswith(owned)}
    assert any("emb" in n or "wte" in n or "table" in n for n in before)
    for step in (mixed(bank), uniform(bank, 0.3)):
        sieve.apply(model, bank, step).restore()
    switch = sieve.apply(model, bank, uniform(bank, 0.6))
    after = {n: p for n, p in model.named_parameters() if not n.startswith(owned)}
    assert after.keys() == before.keys() and all(after[n] is p for n, p in before.items())
    assert switch.model is model


def test_tied_embeddings_stay_tied_through_switching_and_merging():
    model = tiny_llama_tied()
    embedding = model.model.embed_tokens.weight
    bank = banked(model)
    sieve.apply(model, bank, uniform(bank, 0.6))
    assert model.lm_head.weight is embedding and model.model.embed_tokens.weight is embedding
    merge_dense(model)
    assert model.lm_head.weight is embedding and model.model.embed_tokens.weight is embedding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", BUILDERS)
def test_a_merged_matrix_is_the_product_rounded_once(family, dtype):
    model = BUILDERS[family]()
    find_matrices(model)  # Experts are unfolded.
    kinds = {n: type(m) for n, m in model.named_modules()}
    bank = banked(model, dtype=dtype)
    sieve.apply(model, bank, mixed(bank, (0.6, 1.0, 0.3)))
    model.to(dtype)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, FactorizedLinear)}
    dense = {n: model.get_submodule(n) for n in bank.names if n not in layers}
    merge_dense(model)
    assert layers and dense
    for name, layer in layers.items():
        merged = model.get_submodule(name)
        product = layer.factor_out.weight.double() @ layer.factor_in.weight.double()
        assert type(merged) is kinds[name]
        assert torch.equal(dense_weight(merged), product.to(dtype))
        assert merged.weight.is_contiguous()
        assert (merged.bias is None) == (layer.factor_out.bias is None)
        assert merged.bias is None or torch.equal(merged.bias, layer.factor_out.bias)
    assert all(model.get_submodule(name) is layer for name, layer in dense.items())


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "opt"])
def test_where_every_layer_has_a_bias_means_and_offsets_merge_into_it(family):
    model = FAMILIES[family]().double()
    bank = banked(model, "affine")
    sieve.apply(model, bank, mixed(bank))
    wanted = logits(model)
    merge_dense(model)
    torch.testing.assert_close(logits(model), wanted, rtol=0, atol=1e-10)


def test_a_merge_that_is_refused_changes_nothing():
    model = tiny_llama()
    bank = banked(model)
    # The last matrix alone needs a bias.
    levels = [0.6] * (len(bank.names) - 1) + [0.0]
    sieve.apply(model, bank, mixed(bank, levels))
    before = {name: model.get_submodule(name) for name in bank.names}
    with pytest.raises(ValueError, match=f"{bank.names[-1]} needs a bias, which LlamaForCausal"):
        merge_dense(model)
    assert all(model.get_submodule(name) is layer for name, layer in before.items())


def test_an_error_inside_the_block_still_puts_the_dense_model_back():
    model = tiny_gpt2()
    bank = banked(model)
    dense = {name: model.get_submodule(name) for name in bank.names}
    with pytest.raises(KeyError), Switch(model, bank).to(mixed(bank)):
        raise KeyError("stop")
    assert all(model.get_submodule(name) is layer for name, layer in dense.items())


def test_the_way_to_a_genome_does_not_matter():
    model = tiny_qwen2()
    bank = banked(model, "affine")
    switch = Switch(model, bank).to(mixed(bank))
    direct = logits(model)
    for levels in ((0.0,), (1.0,), (0.3, 0.0), (0.6,)):
        switch.to(mixed(bank, levels))
    assert torch.equal(logits(switch.to(mixed(bank)).model), direct)


def test_factors_take_no_gradients_and_know_their_shapes():
    model = tiny_llama()
    bank = banked(model, "affine")
    switch = Switch(model, bank)
    for level in (0.6, 0.3):
        ranks = bank.ranks(uniform(bank, level))
        switch.to(uniform(bank, level))
        for matrix in bank.matrices:
            layer, rank = model.get_submodule(matrix.name), ranks[matrix.name]
            assert (layer.factor_in.in_features, layer.factor_in.out_features) == (
                matrix.d_in,
                rank,
            )
            assert (layer.factor_out.in_features, layer.factor_out.out_features) == (
                rank,
                matrix.d_out,
            )
            assert not layer.training and f"rank={rank}" in repr(layer)
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_genome_of_other_matrices_is_refused():
    model = tiny_llama()
    bank = banked(model)
    short = dataclasses.replace(mixed(bank), indexes=(0,), names=bank.names[:1])
    with pytest.raises(ValueError, match="search again on this bank"):
        sieve.apply(model, bank, short)


def test_a_matrix_is_pivoted_once_however_often_the_genome_comes_back(monkeypatch) -> None:
    model, pivoted = tiny_llama(), list[tuple[int, ...]]()
    bank = banked(model, storage="pivoted")
    own = switch_module.pivot
    monkeypatch.setattr(
        switch_module, "pivot", lambda u, v, b: (pivoted.append(tuple(u.shape)), own(u, v, b))[1]
    )
    switch = Switch(model, bank)
    first = logits(switch.to(mixed(bank)).model)
    count = len(pivoted)
    switch.restore()
    assert torch.equal(logits(switch.to(mixed(bank)).model), first)
    assert count and len(pivoted) == count
    switch.to(uniform(bank, 0.3)).to(uniform(bank, 0.6))
    assert len(switch._pivoted) <= len(bank.names)  # Only the last rank stays in memory.
