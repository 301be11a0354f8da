"""Training after pruning keeps ranks, merges exactly, keeps the best state and resumes."""

import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_gpt2, tiny_llama
from sieved import banked, logits, mixed, uniform
from trainings import BATCHES, QUICK, evaluated, module_of, trainer
from transformers import PreTrainedModel

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.bank.switch import Switch
from sieve.distributed.trainer import schedule
from sieve.evaluation.divergence import divergences
from sieve.model.backbone import place
from sieve.recovery.recovery import numbered, recover, step_batches, tune
from sieve.recovery.teacher import TrainingBatch


def logits_of(model: PreTrainedModel, bank: Bank, genome: Genome) -> torch.Tensor:
    with Switch(model, bank).to(genome):
        return logits(model)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("projection", ["output", "affine"])
@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_an_untrained_module_gives_the_same_model_back(build, projection: str, method: str) -> None:
    model = build()
    bank = banked(model, projection, storage="pivoted")
    genome = mixed(bank)
    pruned, dense = logits_of(model, bank, genome), logits(model)
    merged, its_genome = module_of(model, bank, genome, replace(QUICK, method=method)).bank()
    torch.testing.assert_close(logits_of(model, merged, its_genome), pruned, rtol=0, atol=1e-4)
    assert torch.equal(logits(model), dense)
    assert merged.kept_parameters(its_genome) == bank.kept_parameters(genome)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("factors", ["in", "out", "both"])
def test_the_merged_factors_compute_what_was_trained(method: str, factors: str) -> None:
    model = tiny_llama()
    bank = banked(model, "affine", storage="pivoted")
    genome = mixed(bank)
    module = module_of(model, bank, genome, replace(QUICK, method=method, factors=factors))
    result = recover(module, numbered(BATCHES), evaluated(module), trainer)
    assert result.taken and result.bank.fingerprint != bank.fingerprint
    assert [entry["step"] for entry in result.history] == [0, 2, 4, 6]
    assert result.bank.kept_parameters(result.genome) == bank.kept_parameters(genome)
    with module.installed():
        trained = logits(model)
    merged = logits_of(model, result.bank, result.genome)
    torch.testing.assert_close(merged, trained, rtol=0, atol=1e-4)
    assert not torch.allclose(merged, logits_of(model, bank, genome), atol=1e-3)
    losses = [entry["loss"] for entry in result.history]
    assert min(losses) < losses[0]


def test_only_the_chosen_factors_are_trained() -> None:
    model = tiny_llama()
    bank = banked(model, "affine", storage="pivoted")
    for method, factors, words in (
        ("lora", "in", "factor_in.lora_"),
        ("lora", "out", "factor_out.lora_"),
        ("full", "both", "weight"),
    ):
        module = module_of(
            model, bank, uniform(bank, 0.3), replace(QUICK, method=method, factors=factors)
        )
        module.loss(TrainingBatch(BATCHES[0], 0)).backward()
        assert module.trained() and all(words in name for name in module.trained())
        assert all(p.grad is not None for p in module.trained().values())
        assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", ["task", "kl", "both"])
def test_the_loss_is_that_of_the_answers_the_divergence_or_their_sum(kind: str) -> None:
    model = tiny_llama()
    bank = banked(model)
    module = module_of(model, bank, uniform(bank, 0.3), replace(QUICK, loss=kind, hidden=0.0))
    batch = BATCHES[0]
    ids = batch["input_ids"]
    dense = torch.log_softmax(model(**batch).logits[:, :-1].double(), -1)
    with Switch(model, bank, as_stored=False).to(uniform(bank, 0.3)):
        pruned = torch.log_softmax(model(**batch).logits[:, :-1].double(), -1)
    task = -pruned.gather(-1, ids[:, 1:, None]).mean()
    divergence = (dense.exp() * (dense - pruned)).sum(-1).mean()
    expected = {"task": task, "kl": divergence, "both": task + divergence}[kind]
    assert module.loss(TrainingBatch(batch, 0)).item() == pytest.approx(expected.item(), rel=1e-4)
    if kind == "kl":
        whole = module_of(model, bank, uniform(bank, 1.0), replace(QUICK, method="full"))
        pruned, same = divergences(model, [module.installed, whole.installed], [batch])
        assert pruned == pytest.approx(divergence.item(), rel=1e-4)
        assert not whole.trained() and same == pytest.approx(0, abs=1e-6)


def test_training_that_does_not_help_is_rolled_back() -> None:
    model = tiny_llama()
    bank = banked(model)
    genome = uniform(bank, 0.6)
    settings = replace(QUICK, check_every=1, patience=2)
    module = module_of(model, bank, genome, settings)
    scores = iter([(0.5, -1.0), (0.4, -0.5), (0.5, -1.0)])  # Worse, then equal.
    result = recover(module, numbered(BATCHES), lambda: next(scores), trainer)
    assert not result.taken and result.bank is bank and result.genome is genome
    assert [entry["step"] for entry in result.history] == [0, 1, 2]  # Patience ended it.


def test_a_model_that_is_not_finite_before_training_is_refused() -> None:
    model = tiny_llama()
    bank = banked(model)
    module = module_of(model, bank, uniform(bank, 0.6))
    with pytest.raises(ValueError, match="before training is not finite.*model.dtype=float32"):
        recover(module, numbered(BATCHES), lambda: (0.5, math.nan), trainer)


def in_bfloat16(**options: Any) -> tuple[PreTrainedModel, Bank]:
    model = tiny_llama()
    bank = banked(model, **options)
    place(model, None, torch.bfloat16)
    return model, bank


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_model_in_bfloat16_trains_float32_weights(method: str) -> None:
    model, bank = in_bfloat16(dtype=torch.bfloat16)
    settings = replace(QUICK, method=method)
    module = module_of(model, bank, uniform(bank, 0.6), settings)
    result = recover(module, numbered(BATCHES), evaluated(module), trainer)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert result.taken and result.history[-1]["loss"] < result.history[0]["loss"]


@pytest.mark.slow
def test_steps_below_the_resolution_of_bfloat16_add_up() -> None:
    model, bank = in_bfloat16(dtype=torch.bfloat16)
    settings = replace(QUICK, method="full", learning_rate=1e-5, steps=40, check_every=20)
    module = module_of(model, bank, uniform(bank, 0.6), settings)
    states: list[dict[str, torch.Tensor]] = []

    def evaluate() -> tuple[float, float]:
        states.append({n: p.detach().clone() for n, p in module.trained().items()})
        return float(len(states)), 0.0

    recover(module, numbered(BATCHES), evaluate, trainer)
    name = next(iter(states[0]))
    first, last = states[0][name], states[-1][name]
    # No single step of 1e-5 changes a number above 0.01 in bfloat16, whose spacing there is 6e-5.
    large = first.abs() > 0.01
    rounded = first.bfloat16()[large]
    assert torch.equal(rounded + 1e-5, rounded)
    assert (last - first).abs()[large].max() > 1e-4
    assert not torch.equal(last.bfloat16()[large], rounded)


def test_training_starts_from_the_bank_where_it_is_more_precise_than_the_model() -> None:
    model, bank = in_bfloat16(dtype=torch.float32)
    genome = uniform(bank, 0.6)
    merged, its_genome = module_of(model, bank, genome, replace(QUICK, method="full")).bank()
    before, after = bank.only(genome), merged.only(its_genome)
    for name, factors in before.factors.items():
        products = (one.u.double() @ one.v.double() for one in (factors, after.factors[name]))
        torch.testing.assert_close(*products, rtol=0, atol=1e-5)


def test_the_best_state_is_kept_not_the_last() -> None:
    model = tiny_llama()
    bank = banked(model)
    genome = uniform(bank, 0.6)
    accuracies = iter([0.5, 0.6, 0.8, 0.7])
    module = module_of(model, bank, genome)
    states: list[dict[str, torch.Tensor]] = []

    def evaluate() -> tuple[float, float]:
        states.append({n: p.detach().clone() for n, p in module.trained().items()})
        return next(accuracies), 0.0

    result = recover(module, numbered(BATCHES), evaluate, trainer)
    assert result.taken and [entry["accuracy"] for entry in result.history] == [0.5, 0.6, 0.8, 0.7]
    for name, parameter in module.trained().items():
        assert torch.equal(parameter, states[2][name])
        assert not torch.equal(states[3][name], states[2][name])


@pytest.mark.slow
@pytest.mark.parametrize(("method", "optimizer"), [("lora", "adam"), ("full", "muon")])
def test_a_killed_training_resumes_to_the_same_end(
    tmp_path: Path, method: str, optimizer: str
) -> None:
    model = tiny_llama()
    bank = banked(model)
    genome = mixed(bank)
    settings = replace(QUICK, method=method, optimizer=optimizer, accumulate=2)
    accumulated = {"accumulate_grad_batches": 2}

    def run(path: Path, cap: int) -> Any:
        module = module_of(model, bank, genome, settings)
        return recover(
            module,
            numbered(BATCHES),
            evaluated(module),
            lambda callbacks, steps: trainer(callbacks, min(steps, cap), **accumulated),
            path=path,
        )

    whole = run(tmp_path / "whole", 6)
    run(tmp_path / "cut", 4)
    resumed = run(tmp_path / "cut", 6)
    assert resumed.history == whole.history and len(whole.history) == 4
    for name, factors in whole.bank.factors.items():
        torch.testing.assert_close(resumed.bank.factors[name].v, factors.v, rtol=0, atol=1e-6)
    other = module_of(model, bank, genome, replace(settings, learning_rate=5e-3))
    with pytest.raises(ValueError, match="belongs to another training"):
        recover(other, numbered(BATCHES), evaluated(other), trainer, path=tmp_path / "cut")
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:100])
    module = module_of(model, bank, genome, settings)
    with pytest.raises(ValueError, match="is damaged"):
        recover(module, numbered(BATCHES), evaluated(module), trainer, path=tmp_path / "cut")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_factors_that_feed_a_removed_matrix_do_not_stop_a_training(
    method: str, tmp_path: Path
) -> None:
    model = tiny_llama()
    bank = banked(model)
    removed = tuple(f"layers.0.{name}" for name in ("self_attn.o_proj", "mlp.down_proj"))
    levels = [0.0 if name.endswith(removed) else 0.6 for name in bank.names]
    module = module_of(model, bank, mixed(bank, levels), replace(QUICK, method=method))
    result = recover(
        module, numbered(BATCHES), evaluated(module), trainer, path=tmp_path / "training"
    )
    assert len(result.history) == 4


def test_ranks_share_the_batches_that_one_process_accumulates() -> None:
    batches, settings = list(range(7)), replace(QUICK, steps=10)
    alone = step_batches(batches, replace(settings, accumulate=2), seed=3)
    ranks = [step_batches(batches, settings, rank=rank, world=2, seed=3) for rank in range(2)]
    together = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    assert alone == together and len(alone) == 20
    for epoch in (together[:7], together[7:14]):
        assert sorted(epoch) == batches
    later = step_batches(batches, replace(settings, accumulate=2), start=4, seed=3)
    assert later == together[8:]


def test_the_rate_rises_for_a_tenth_and_falls_to_nothing() -> None:
    rates = [schedule(step, 100) for step in range(101)]
    assert rates[9] == 1 and rates[0] == 0.1 and rates[100] == pytest.approx(0, abs=1e-12)
    assert all(a < b for a, b in zip(rates[:9], rates[1:10], strict=True))
    assert all(a >= b for a, b in zip(rates[9:], rates[10:], strict=False))
    assert rates[55] == pytest.approx(0.5) and math.isclose(schedule(0, 1), 1)


def test_without_peft_lora_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    model = tiny_llama()
    bank = banked(model)
    with pytest.raises(RuntimeError, match=r"pip install 'sieve-llm\[recovery\]'"):
        module_of(model, bank, uniform(bank, 0.3))
    module_of(model, bank, uniform(bank, 0.3), replace(QUICK, method="full"))


@pytest.mark.parametrize("projection", ["output", "affine"])
def test_tuning_lowers_the_divergence_and_keeps_the_size(projection: str) -> None:
    model = tiny_gpt2()
    bank = banked(model, projection, storage="pivoted")
    genome = mixed(bank)
    dense = logits(model)
    tuned = tune(model, bank, genome, BATCHES, steps=15, learning_rate=3e-3)
    assert torch.equal(logits(model), dense)
    assert tuned[0].kept_parameters(tuned[1]) == bank.kept_parameters(genome)
    pairs = ((bank, genome), tuned)
    contexts = [partial(Switch(model, b, as_stored=False).to, g) for b, g in pairs]
    before, after = divergences(model, contexts, BATCHES)
    assert after < before


def test_tuning_that_held_out_rows_do_not_confirm_changes_nothing() -> None:
    model = tiny_llama()
    bank = banked(model, storage="pivoted")
    genome = uniform(bank, 0.6)
    same, its_genome = tune(model, bank, genome, BATCHES, steps=2, learning_rate=10.0)
    assert same is bank and its_genome is genome
    dense = uniform(bank, 1.0)
    assert tune(model, bank, dense, BATCHES, steps=2)[1] is dense
