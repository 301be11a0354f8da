"""The input embedding is a matrix whose inputs are tokens, if it is asked for."""

from pathlib import Path

import pytest
import torch
from models import build, tiny_gpt2, tiny_llama, tiny_llama_tied, tiny_tokenizer
from sieved import logits, tokens
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel

import sieve
from sieve.bank.bank import Bank, fit
from sieve.bank.genome import Genome
from sieve.bank.switch import Switch
from sieve.calibration.calibration import calibrate
from sieve.calibration.schedule import needs_of
from sieve.config import ProjectionConfig, QuantizationConfig
from sieve.exports.export import export
from sieve.factorized.modeling_layers import FactorizedEmbedding
from sieve.model.matrices import Matrix, find_matrices
from sieve.projections.moments import Needs
from sieve.quantization import quantize
from sieve.refit.refit import refit
from sieve.stages.result import sizes

BUILDS = [tiny_llama, tiny_llama_tied, tiny_gpt2]


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    ids = tokens(4, 12, seed)
    targets = torch.full_like(ids, -100)
    targets[:, -3:] = ids[:, -3:]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "targets": targets}


def matrices_of(model: PreTrainedModel) -> list[Matrix]:
    return find_matrices(model, head=True, embedding=True)


def banked(
    model: PreTrainedModel, storage: str = "pivoted", projection: str = "loss_aware"
) -> Bank:
    moments = calibrate(model, [batch()], matrices_of(model), projection=projection)
    both = {"prune_head": True, "prune_embedding": True}
    return fit(model, moments, projection, storage, **both)  # type: ignore[arg-type]


def genome_of(bank: Bank, embedding: float, head: float, others: float = 1.0) -> Genome:
    levels = (embedding, *[others] * (len(bank.names) - 2), head)
    grid = tuple(sorted({1.0, *levels}, reverse=True))
    return Genome(grid, tuple(map(grid.index, levels)), bank.names, bank.fingerprint)


@pytest.mark.parametrize("build", BUILDS)
def test_it_comes_first_and_only_when_asked_for(build) -> None:
    model = build()
    first, *others = matrices_of(model)
    assert others == find_matrices(model, head=True)
    table = model.get_input_embeddings()
    assert model.get_submodule(first.name) is table
    assert (first.d_in, first.d_out) == table.weight.shape
    assert (first.kind, first.layer) == ("embedding", None)
    assert first.tied == others[-1].tied == (model.get_output_embeddings().weight is table.weight)


def test_an_embedding_that_cannot_be_factorized_is_refused_with_what_to_set() -> None:
    with pytest.raises(ValueError, match="has to be factorized too; set projection.prune_head=tru"):
        find_matrices(tiny_llama_tied(), embedding=True)
    scaled = build(
        "Gemma3",
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    with pytest.raises(ValueError, match="is a Gemma3TextScaledWordEmbedding, expected an Embed"):
        find_matrices(scaled, head=True, embedding=True)
    small = tiny_llama()
    small.set_input_embeddings(nn.Embedding(20, small.config.hidden_size))
    with pytest.raises(ValueError, match="has 20 tokens of 32 numbers, expected more tokens"):
        find_matrices(small, embedding=True)


@pytest.mark.parametrize("name", ["asvd", "whitened"])
def test_a_projection_that_reads_inputs_is_refused(name: str) -> None:
    needs = needs_of(ProjectionConfig(name))
    if not (needs.input or needs.magnitude):
        pytest.skip(f"{name} needs no inputs")
    with pytest.raises(ValueError, match=f"projection={name} needs vectors that a matrix reads"):
        needs_of(ProjectionConfig(name, prune_embedding=True))


@pytest.mark.parametrize("weighting", ["none", "gradient"])
def test_its_moments_are_of_the_vectors_of_all_tokens(weighting: str) -> None:
    model, given = tiny_llama(), batch()
    [embedding] = [m for m in matrices_of(model) if m.kind == "embedding"]
    needs = Needs(gradient=weighting == "gradient")
    moments = calibrate(model, [given], [embedding], needs, weighting=weighting, answers="gold")
    y = model.get_input_embeddings()(given["input_ids"]).detach().requires_grad_()
    wanted = given["targets"] >= 0
    outputs = model(inputs_embeds=y, attention_mask=given["attention_mask"]).logits[wanted]
    loss = cross_entropy(outputs, given["targets"][wanted], reduction="sum")
    g, vectors = torch.autograd.grad(loss, y)[0].flatten(0, 1), y.detach().flatten(0, 1)
    weights = g.square().sum(1) if weighting == "gradient" else torch.ones(len(g))
    second = (vectors * weights[:, None]).T @ vectors / weights.sum()
    torch.testing.assert_close(moments.of(embedding).second, second, rtol=1e-4, atol=1e-6)
    if weighting == "gradient":
        gradient = moments.of(embedding).gradient
        assert gradient is not None and gradient.side == "output"
        torch.testing.assert_close(gradient.second, g.T @ g / 4, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("build", BUILDS)
def test_at_full_rank_the_model_is_the_dense_one(build) -> None:
    model = build()
    bank, wanted = banked(model), logits(model)
    name = bank.names[0]
    with Switch(model, bank) as switch:
        switch.set_ranks({name: bank.factors[name].rank})
        assert isinstance(model.get_submodule(name), FactorizedEmbedding)
        torch.testing.assert_close(logits(model), wanted, rtol=1e-3, atol=1e-3)
    assert torch.equal(logits(model), wanted)


def test_both_forms_of_storage_look_up_the_same_vectors() -> None:
    model, vectors = tiny_llama(), list[torch.Tensor]()
    table, ids = model.get_input_embeddings().weight.clone(), tokens(3, 40)
    for storage in ("plain", "pivoted"):
        bank = banked(model, storage)
        with Switch(model, bank) as switch:
            switch.set_ranks({bank.names[0]: 12})
            vectors.append(model.get_input_embeddings()(ids))
    product = bank.factors[bank.names[0]].cut(12)
    expected = (product.u @ product.v).T[ids]
    torch.testing.assert_close(vectors[0], expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(vectors[1], expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(expected, table[ids], atol=1e-2)


@pytest.mark.parametrize("form", ["factorized", "dense"])
@pytest.mark.parametrize("levels", [(0.3, 1.0), (1.0, 0.3), (0.3, 0.5)])
@pytest.mark.parametrize("build", [tiny_llama, tiny_llama_tied])
def test_an_export_loads_does_the_same_and_has_the_size_that_is_reported(
    build, levels: tuple[float, float], form: str, tmp_path: Path
) -> None:
    model = build()
    bank = banked(model)
    genome = genome_of(bank, *levels, others=0.6)
    with sieve.apply(model, bank, genome):
        wanted = logits(model)
        path = export(model, tiny_tokenizer(), tmp_path / "out", form)
    loaded = AutoModelForCausalLM.from_pretrained(path)
    torch.testing.assert_close(logits(loaded), wanted, rtol=1e-4, atol=1e-4)
    held = sum(parameter.numel() for parameter in loaded.parameters())
    dense = sum(parameter.numel() for parameter in build().parameters())
    reported = sizes(bank, genome, dense, torch.float32, merged=form == "dense")
    indices = bank.index_bytes(genome) * (form == "factorized")
    assert reported["bytes"]["pruned"] == 4 * held + indices
    if form == "factorized":
        assert reported["parameters"]["model_kept"] == held


def test_refit_leaves_it_as_it_is_and_makes_up_for_what_it_loses() -> None:
    model = tiny_llama()
    batches = [batch(seed) for seed in range(4)]
    moments = calibrate(model, batches, matrices_of(model), projection="loss_aware")
    bank = fit(model, moments, "loss_aware", prune_head=True, prune_embedding=True)
    result = refit(model, bank, genome_of(bank, 0.3, 1.0, 0.3), moments, batches)
    assert result.kept and bank.names[0] not in result.kept


def test_quantization_leaves_what_is_looked_up_as_it_is() -> None:
    model = tiny_llama()
    bank = banked(model)
    with Switch(model, bank) as switch:
        switch.set_ranks({bank.names[0]: 8})
        before = model.get_submodule(bank.names[0]).factor_in.weight.clone()
        quantize(model, bank.names, QuantizationConfig("int8"), torch.float32)
        after = model.get_submodule(bank.names[0]).factor_in.weight
        assert type(after) is nn.Parameter and torch.equal(after, before)
        assert torch.isfinite(logits(model)).all()


@pytest.mark.slow
def test_onnx_computes_the_same(tmp_path: Path) -> None:
    model = tiny_llama()
    bank = banked(model)
    with sieve.apply(model, bank, genome_of(bank, 0.3, 0.5, 0.5)):
        wanted = logits(model)
        path = export(model, tiny_tokenizer(), tmp_path / "out", "onnx")
    loaded, _ = sieve.load(path)
    torch.testing.assert_close(torch.as_tensor(logits(loaded)), wanted, rtol=1e-3, atol=1e-3)
