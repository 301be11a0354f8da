"""The output head is a matrix like any other, if asked for, and only sees what it is asked."""

from pathlib import Path

import pytest
import torch
from models import tiny_gpt2, tiny_llama, tiny_llama_tied, tiny_odd, tiny_phi3, tiny_tokenizer
from sieved import logits, tokens, uniform
from transformers import AutoModelForCausalLM

import sieve
from sieve.bank.bank import fit
from sieve.bank.switch import Switch
from sieve.calibration.calibration import calibrate
from sieve.exports.export import export
from sieve.model.matrices import find_matrices
from sieve.projections.moments import Needs
from sieve.refit.refit import refit
from sieve.stages.result import sizes

BUILDS = [tiny_llama, tiny_llama_tied, tiny_gpt2, tiny_phi3, tiny_odd]


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    """Rows of which the last three positions, and one more, predict an answer."""
    ids = tokens(4, 12, seed)
    targets = torch.full_like(ids, -100)
    targets[:, -3:] = ids[:, -3:]
    targets[1, 6] = 5
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "targets": targets}


@pytest.mark.parametrize("build", BUILDS)
def test_the_head_comes_last_and_only_when_asked_for(build) -> None:
    model = build()
    inside, found = find_matrices(model), find_matrices(model, head=True)
    assert found[:-1] == inside
    head = found[-1]
    assert model.get_submodule(head.name) is model.get_output_embeddings()
    assert head.layer is None
    assert head.kind == "head"
    table = model.get_input_embeddings().weight
    assert head.tied == (model.get_output_embeddings().weight is table)


@pytest.mark.parametrize("weighting", ["none", "answer", "gradient"])
def test_its_moments_are_of_the_positions_that_predict_an_answer(weighting: str) -> None:
    model, given = tiny_llama(), batch()
    head = find_matrices(model, head=True)[-1]
    needs = Needs(gradient=weighting == "gradient")
    moments = calibrate(model, [given], [head], needs, weighting=weighting, answers="gold")
    inputs = {k: v for k, v in given.items() if k != "targets"}
    wanted = given["targets"] >= 0
    with torch.no_grad():
        x = model.base_model(**inputs).last_hidden_state[wanted]
    y = (x @ model.lm_head.weight.T).requires_grad_()
    gold = given["targets"][wanted]
    loss = torch.nn.functional.cross_entropy(y, gold, reduction="sum")
    (g,) = torch.autograd.grad(loss, y)
    weights = g.square().sum(1) if weighting == "gradient" else torch.ones(len(x))
    second = (x * weights[:, None]).T @ x / weights.sum()
    torch.testing.assert_close(moments.of(head).second, second, rtol=1e-4, atol=1e-6)
    if weighting == "gradient":
        gradient = moments.of(head).gradient
        assert gradient is not None
        turned = g @ model.lm_head.weight.detach()
        torch.testing.assert_close(gradient.second, turned.T @ turned / 4, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("projection", ["output", "loss_aware", "whitened"])
@pytest.mark.parametrize("build", BUILDS)
def test_at_full_rank_the_model_is_the_dense_one(build, projection: str) -> None:
    model = build()
    moments = calibrate(model, [batch()], find_matrices(model, head=True), projection=projection)
    bank = fit(model, moments, projection, "pivoted", prune_head=True)
    wanted = logits(model)
    with Switch(model, bank) as switch:
        switch.set_ranks({bank.names[-1]: bank.factors[bank.names[-1]].rank})
        torch.testing.assert_close(logits(model), wanted, rtol=1e-3, atol=1e-3)
    assert torch.equal(logits(model), wanted)


@pytest.mark.parametrize("form", ["factorized", "dense"])
@pytest.mark.parametrize("build", [tiny_llama, tiny_llama_tied, tiny_gpt2])
def test_an_export_of_a_pruned_head_loads_and_does_the_same(
    build, form: str, tmp_path: Path
) -> None:
    model = build()
    moments = calibrate(model, [batch()], find_matrices(model, head=True), projection="loss_aware")
    bank = fit(model, moments, "loss_aware", "pivoted", prune_head=True)
    with sieve.apply(model, bank, uniform(bank, 0.6)):
        wanted = logits(model)
        path = export(model, tiny_tokenizer(), tmp_path / "out", form)
    loaded = AutoModelForCausalLM.from_pretrained(path)
    torch.testing.assert_close(logits(loaded), wanted, rtol=1e-4, atol=1e-4)
    assert not loaded.config.tie_word_embeddings
    held = sum(parameter.numel() for parameter in loaded.parameters())
    dense = sum(parameter.numel() for parameter in build().parameters())
    said = sizes(bank, uniform(bank, 0.6), dense, torch.float32, merged=form == "dense")
    assert said["bytes"]["pruned"] == 4 * held + (form == "factorized") * bank.index_bytes(
        uniform(bank, 0.6)
    )


def test_refit_leaves_it_as_it_is() -> None:
    model = tiny_llama()
    batches = [batch(seed) for seed in range(4)]
    moments = calibrate(model, batches, find_matrices(model, head=True), projection="loss_aware")
    bank = fit(model, moments, "loss_aware", "pivoted", prune_head=True)
    found = refit(model, bank, uniform(bank, 0.3), moments, batches)
    assert found.kept
    assert "lm_head" not in found.kept
