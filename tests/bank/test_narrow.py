"""MLPs that lose neurons: in memory, in exports of both forms, in training and in the search."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from families import EVERY
from models import FAMILIES, tiny_tokenizer
from sieved import banked, logits, tokens
from trainings import BATCHES, QUICK, evaluated, module_of, trainer
from transformers import AutoModelForCausalLM, PreTrainedModel

import sieve
from sieve.bank.bank import Bank, fit
from sieve.bank.genome import Genome, Sizing
from sieve.bank.switch import Switch
from sieve.calibration.calibration import calibrate
from sieve.model.groups import narrowed
from sieve.model.matrices import dense_weight, find_matrices
from sieve.projections.moments import Needs
from sieve.projections.neurons import kept_neurons, neurons
from sieve.recovery.further import factorize_again
from sieve.recovery.recovery import recover
from sieve.recovery.teacher import TrainingBatch
from sieve.search.reference import _resized
from sieve.search.space import make_space
from sieve.search.waterfill import estimated_rise, genome_of_ranks, waterfill, weights_toward
from sieve.stages.result import matrix_table, sizes

COUNT = 20
SOME = ["llama", "gpt2", "phi3", "gemma3"]


def narrow_genome(bank: Bank, count: int = COUNT, **ranks: int | None) -> Genome:
    """The dense model whose first MLP has `count` neurons; `ranks` of other matrices by kind."""
    group = next(group for group in bank.groups if group.neurons)
    chosen = dict.fromkeys(bank.names) | {group.name: count}
    chosen |= {m.name: ranks[m.kind] for m in bank.matrices if m.kind in ranks and m.layer == 1}
    return genome_of_ranks(bank, chosen)


def narrowed_model(family: str, **options) -> tuple[PreTrainedModel, Bank, Genome]:
    model = FAMILIES[family]()
    bank = banked(model, narrow=True, **options)
    genome = narrow_genome(bank)
    sieve.apply(model, bank, genome)
    return model, bank, genome


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "phi3", "gemma3", "cohere2"])
def test_the_neurons_of_an_mlp_are_found_in_every_form(family):
    groups = narrowed(find_matrices(EVERY[family]()))
    assert [group.layer for group in groups] == list(range(len(groups))) and groups
    assert not any("att" in name for group in groups for name in group.members)


@pytest.mark.parametrize("family", ["mixtral", "opt"])
def test_experts_and_mlps_that_are_no_module_have_none(family):
    assert narrowed(find_matrices(EVERY[family]())) == []


@pytest.mark.parametrize("family", SOME)
def test_with_all_neurons_but_one_it_is_nearly_the_dense_model_and_with_few_it_is_not(family):
    model = FAMILIES[family]()
    bank = banked(model, narrow=True)
    dense, group = logits(model), bank.groups[0]
    errors = []
    for count in (group.d_in - 1, 4):
        with Switch(model, bank).to(narrow_genome(bank, count)):
            shapes = [dense_weight(model.get_submodule(name)).shape for name in group.members]
            assert shapes[-1][1] == count and shapes[0][0] in (count, 2 * count)
            errors.append(float((logits(model) - dense).norm() / dense.norm()))
    assert errors[0] < 0.1 and errors[1] > 3 * errors[0]
    assert torch.equal(logits(model), dense)


@pytest.mark.parametrize("projection", ["output", "loss_aware_affine"])
@pytest.mark.parametrize("family", SOME)
def test_an_export_computes_the_same_and_has_the_counted_parameters(family, projection, tmp_path):
    model, bank, genome = narrowed_model(family, projection=projection)
    dense = sum(p.numel() for p in FAMILIES[family]().parameters())
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(loaded), logits(model))
    stored = sum(p.numel() for p in loaded.parameters())
    assert sizes(bank, genome, dense, torch.float32)["parameters"]["model_kept"] == stored
    again = sieve.export(loaded, tiny_tokenizer(), tmp_path / "again")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(again)), logits(model))
    rows = matrix_table(bank, genome)
    assert {row["neurons"] for row in rows if row["layer"] == 0} == {None, COUNT}
    total = sum(row["kept_fraction"] * row["d_out"] * row["d_in"] for row in rows)
    assert total == pytest.approx(bank.kept_parameters(genome))


@pytest.mark.parametrize("family", SOME)
def test_dense_weights_have_zeros_for_lost_neurons(family, tmp_path):
    model, _, _ = narrowed_model(family)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "dense", "dense")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert type(loaded) is type(FAMILIES[family]())
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)
    assert logits(model).isfinite().all()  # and the model in memory is narrow again
    group = narrowed(find_matrices(FAMILIES[family]()))[0]
    assert dense_weight(model.get_submodule(group.members[-1])).shape[1] == COUNT


def test_dense_weights_without_a_place_for_the_bias_are_refused(tmp_path):
    model, _, _ = narrowed_model("llama", projection="affine")
    with pytest.raises(ValueError, match="down_proj needs a bias"):
        sieve.export(model, tiny_tokenizer(), tmp_path / "dense", "dense")


def test_a_bank_on_disk_keeps_neurons(tmp_path):
    model = FAMILIES["llama"]()
    bank = replace(banked(model, narrow=True), structural=True)
    bank.save(tmp_path / "bank.safetensors")
    loaded = Bank.load(tmp_path / "bank.safetensors")
    assert loaded.groups == bank.groups and loaded.structural
    with Switch(model, bank).to(narrow_genome(bank)):
        expected = logits(model)
    with Switch(model, loaded).to(narrow_genome(loaded)):
        assert torch.equal(logits(model), expected)


@pytest.mark.parametrize(
    ("family", "method", "projection"),
    [
        ("llama", "full", "output"),
        ("llama", "lora", "affine"),
        ("gpt2", "full", "affine"),
        ("gpt2", "lora", "output"),
    ],
)
def test_training_changes_the_layers_and_the_bank_has_what_was_trained(family, method, projection):
    model = FAMILIES[family]()
    bank = banked(model, projection, narrow=True)
    genome = narrow_genome(bank, 8, o=4)
    settings = replace(QUICK, method=method, steps=20, check_every=10)
    module = module_of(model, bank, genome, settings)
    assert len(module.layers) == len(bank.groups[0].members) + 1
    evaluate = evaluated(module)
    before = evaluate()[1]
    batches = [TrainingBatch(batch, index) for index, batch in enumerate(BATCHES)]
    result = recover(module, batches, evaluate, trainer, 0)
    trained = evaluate()[1]
    assert trained > before + 1e-3
    again = module_of(model, result.bank, result.genome)
    assert evaluated(again)()[1] == pytest.approx(trained, abs=1e-5)
    kept = result.bank.only(result.genome)
    assert evaluated(module_of(model, kept, result.genome))()[1] == pytest.approx(trained, abs=1e-5)


def test_a_trained_mlp_loses_more_neurons_as_the_closed_form_would():
    model = FAMILIES["llama"]()
    batches = [{"input_ids": tokens(4, 16, seed)} for seed in (1, 2)]
    moments = calibrate(model, batches, needs=Needs(neurons=True))
    bank = fit(model, moments, "output", narrow=True)
    genome, group = narrow_genome(bank), bank.groups[0]
    module = module_of(model, bank, genome)
    with torch.no_grad():  # as a training might
        module.layers[-1].weight.mul_(torch.linspace(0.1, 3, COUNT))
    with module.installed():
        expected = logits(model)
    trained, same = module.bank()
    again = factorize_again(model, moments, bank, (trained.only(same), same))
    assert again.ranks(same)[group.name] == COUNT
    with Switch(model, again, as_stored=False).to(same):
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    # The neurons have the order that they would have if there were no others.
    order = kept_neurons(bank.factors[group.name].v[:COUNT])
    moment = moments.of(next(m for m in bank.matrices if m.name == group.members[-1]))
    second, mean = moment.second[order][:, order], moment.mean[order]
    moment = replace(moment, second=second, mean=mean)
    alone = neurons(torch.zeros(1, COUNT), module.layers[-1].weight, moment)
    by_loss = order[kept_neurons(alone.v)]
    assert torch.equal(kept_neurons(again.factors[group.name].v), by_loss)
    assert not torch.equal(by_loss, order)
    # The other MLP, which was left dense, can still lose neurons.
    line = waterfill(replace(again, structural=True), start=same)
    other = bank.groups[1].name
    assert {line.ranks(step)[other] for step in range(len(line.changes) + 1)} - {None}


@pytest.mark.parametrize("normalize", ["none", "relative"])
@pytest.mark.parametrize("joint", [False, True])
def test_sizes_and_losses_of_the_frontier_are_those_of_its_genomes(joint, normalize):
    model = FAMILIES["llama"]()
    batches = [{"input_ids": tokens(4, 16, seed)} for seed in (1, 2)]
    needs = Needs(input=True, gradient=True, neurons=True)
    moments = calibrate(model, batches, needs=needs)
    bank = fit(model, moments, "loss_aware", storage="pivoted", narrow=True, joint=joint)
    frontier, used = waterfill(bank, normalize), set()
    assert frontier.kept[0] == bank.size
    for steps in range(0, len(frontier.changes) + 1, 5):
        genome, ranks = frontier.genome(steps), frontier.ranks(steps)
        assert bank.ranks(genome) == ranks
        assert bank.kept_parameters(genome) == frontier.kept[steps]
        if normalize == "none":
            assert estimated_rise(bank, genome) == pytest.approx(frontier.loss[steps], rel=1e-5)
        used |= {group.name for group in bank.groups if group.neurons and ranks[group.name]}
    assert used  # Some genomes have lost neurons.
    without = replace(bank, groups=[group for group in bank.groups if not group.neurons])
    plain = waterfill(without, normalize)
    for size in (0.9, 0.7, 0.5, 0.3):
        a, b = (line.loss[line.steps_to(size)] for line in (frontier, plain))
        assert a <= b * (1 + 1e-6) + 0.02 * frontier.loss[-1]  # Steps of neurons are coarser.


def test_a_structural_bank_removes_units_and_neurons_only():
    bank = replace(banked(FAMILIES["llama"](), "loss_aware", narrow=True), structural=True)
    frontier, units = waterfill(bank), {m.feeds for m in bank.matrices if m.feeds}
    assert len(frontier.changes) > 10
    for steps in range(len(frontier.changes) + 1):
        ranks = frontier.ranks(steps)
        for matrix in bank.matrices:
            assert ranks[matrix.name] in (None, 0)
            if ranks[matrix.name] == 0:
                assert matrix.name in units or ranks[matrix.feeds] == 0
    assert frontier.kept_fraction(len(frontier.changes)) < 0.05
    space = make_space(bank, None)
    for gene, alleles in zip(bank.genes, space.alleles, strict=True):
        unit = (0, None) if gene.name in units else (None,)
        assert alleles == unit if not gene.neurons else alleles[0] == 1 and alleles[-1] is None


def test_a_narrow_mlp_overrides_the_ranks_of_its_matrices_and_stores_no_indices():
    model = FAMILIES["llama"]()
    bank = banked(model, narrow=True, storage="pivoted")
    group, narrow = bank.groups[0], narrow_genome(bank)
    ranks = dict.fromkeys(bank.names) | dict.fromkeys(group.members, 3) | {group.name: COUNT}
    both = genome_of_ranks(bank, ranks)
    assert bank.ranks(both) == bank.ranks(narrow)
    assert bank.kept_parameters(both) == bank.kept_parameters(narrow)
    assert bank.index_bytes(both) == 0


def test_a_group_of_neurons_never_loses_all_of_them():
    bank = banked(FAMILIES["llama"](), narrow=True)
    for level in (0.0, 1e-9, 0.2, 0.999):
        assert 1 <= bank.sizing.rank(bank.groups[0], level) < bank.groups[0].d_in


def test_many_neurons_are_kept_in_blocks_of_32():
    model = FAMILIES["llama"]()
    wide = replace(narrowed(find_matrices(model))[0], d_in=512)
    sizing = Sizing()
    assert [sizing.rank(wide, share) for share in (0.01, 0.5, 0.57)] == [32, 256, 288]
    assert sizing.rank(replace(wide, d_in=48), 0.5) == 24


def test_a_line_down_from_a_narrow_genome_starts_there():
    bank = banked(FAMILIES["llama"](), "loss_aware", narrow=True)
    start = narrow_genome(bank)
    frontier, group = waterfill(bank, start=start), bank.groups[0]
    assert frontier.ranks(0) == bank.ranks(start)
    assert frontier.kept[0] == bank.kept_parameters(start)
    counts = [frontier.ranks(step)[group.name] for step in range(len(frontier.changes) + 1)]
    gone = counts.index(None)  # with the whole MLP
    assert counts[:gone] == sorted(counts[:gone], reverse=True)
    assert all(frontier.ranks(s)[group.members[-1]] == 0 for s in range(gone, len(counts)))


def test_a_genome_that_is_resized_keeps_what_was_asked():
    bank = replace(banked(FAMILIES["llama"](), "loss_aware", narrow=True), structural=True)
    space, random = make_space(bank, None), np.random.default_rng(0)
    dense = tuple(len(alleles) - 1 for alleles in space.alleles)
    for target in (0.9, 0.6):
        kept = bank.kept_fraction(space.genome(_resized(space, dense, target, random)))
        assert target - 0.37 < kept <= target  # A whole MLP is 36 % of this model.


def test_energies_are_steered_toward_a_narrow_genome_beside_shared_factors():
    model = FAMILIES["llama"]()
    batches = [{"input_ids": tokens(4, 16, seed)} for seed in (1, 2)]
    moments = calibrate(model, batches, needs=Needs(input=True, neurons=True))
    bank = fit(model, moments, "output", narrow=True, joint=True)
    group = next(group for group in bank.groups if group.neurons)
    ranks = dict.fromkeys(bank.names) | {group.name: COUNT}
    weights = weights_toward(bank, genome_of_ranks(bank, ranks))
    assert {*weights} == {*bank.names}
    assert {weights[name] for name in group.members} == {weights[group.name]}


def test_the_order_of_modules_does_not_matter():
    model = FAMILIES["llama"]()
    mlp = model.model.layers[0].mlp
    mlp._modules = {name: mlp._modules[name] for name in reversed(mlp._modules)}
    bank, expected = banked(model, narrow=True), banked(FAMILIES["llama"](), narrow=True)
    group = bank.groups[0]
    assert group.members[-1].endswith("down_proj")
    parts = bank.factors[group.name], expected.factors[expected.groups[0].name]
    products = [part.u[-group.outputs :] @ part.v for part in parts]
    torch.testing.assert_close(*products, rtol=1e-3, atol=1e-4)
