"""Tuning brings the pruned model's answers nearer to the dense one's, or changes nothing."""

import pytest
import torch
from models import tiny_gpt2, tiny_llama
from sieved import banked, logits, mixed, tokens, uniform

from sieve.bank.switch import Switch
from sieve.recovery.tuning import TuningModule, mean_divergence, tune, tuned_bank

BATCHES = [{"input_ids": tokens(4, 16, seed)} for seed in range(6)]


@pytest.mark.parametrize("projection", ["output", "affine"])
@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_the_divergence_on_held_out_rows_falls(build, projection: str) -> None:
    model = build()
    bank = banked(model, projection, storage="pivoted")
    genome = mixed(bank)
    dense = logits(model)
    found, chosen = tune(model, bank, genome, BATCHES, steps=15, learning_rate=3e-3)
    assert torch.equal(logits(model), dense)
    assert found.fingerprint != bank.fingerprint
    assert found.kept_parameters(chosen) == bank.kept_parameters(genome)
    divergences = []
    for held, genes in ((bank, genome), (found, chosen)):
        switch = Switch(model, held, as_stored=False)
        divergences.append(mean_divergence(TuningModule(switch, genes), BATCHES))
    assert divergences[1] < divergences[0]


def test_what_held_out_rows_do_not_confirm_is_taken_back() -> None:
    model = tiny_llama()
    bank = banked(model, storage="pivoted")
    genome = uniform(bank, 0.6)
    found, chosen = tune(model, bank, genome, BATCHES, steps=2, learning_rate=10.0)
    assert found is bank and chosen is genome


def test_untouched_pairs_give_the_bank_s_own_factors_back() -> None:
    model = tiny_gpt2()
    bank = banked(model, "affine", storage="pivoted")
    genome = mixed(bank)
    module = TuningModule(Switch(model, bank, as_stored=False), genome)
    found, chosen = tuned_bank(module, genome)
    with Switch(model, bank, as_stored=False).to(genome):
        wanted = logits(model)
    with Switch(model, found, as_stored=False).to(chosen):
        torch.testing.assert_close(logits(model), wanted, rtol=0, atol=1e-4)


def test_only_factors_learn_and_the_divergence_of_the_dense_model_is_zero() -> None:
    model = tiny_llama()
    bank = banked(model, storage="pivoted")
    switch = Switch(model, bank, as_stored=False)
    module = TuningModule(switch, uniform(bank, 0.3))
    loss, count = module.divergence(BATCHES[0])
    assert count == 60
    loss.backward()
    assert all(p.grad is not None for p in module.parameters())
    assert all(p.grad is None for p in model.parameters())
    dense = TuningModule(switch, uniform(bank, 1.0))
    assert not list(dense.parameters())
    assert mean_divergence(dense, BATCHES) == pytest.approx(0, abs=1e-6)
