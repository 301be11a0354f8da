"""Training after pruning keeps ranks, merges exactly, keeps the best state, goes on when killed."""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from models import tiny_gpt2, tiny_llama
from sieved import banked, logits, mixed, tokens, uniform
from transformers import PreTrainedModel

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.bank.switch import Switch
from sieve.config import RecoveryConfig
from sieve.distributed.trainer import make_trainer, schedule
from sieve.recovery.recovery import RecoveryModule, StepBatches, recover

BATCHES = [{"input_ids": tokens(4, 16, seed)} for seed in range(6)]
QUICK = RecoveryConfig("lora", steps=6, check_every=2, learning_rate=1e-2)


def trainer(callbacks: list[L.Callback], steps: int, **settings: Any) -> L.Trainer:
    return make_trainer({"max_steps": steps, "max_epochs": -1, **settings}, callbacks)


def module_of(
    model: PreTrainedModel, bank: Bank, genome: Genome, settings: RecoveryConfig = QUICK
) -> RecoveryModule:
    return RecoveryModule(Switch(model, bank, as_stored=False), genome, settings)


def looking(module: RecoveryModule) -> Callable[[], tuple[float, float]]:
    """The model's own loss over all batches, with an accuracy that says nothing."""

    @torch.no_grad()
    def look() -> tuple[float, float]:
        losses = [float(module.switch.model(**b, labels=b["input_ids"]).loss) for b in BATCHES]
        return 0.5, -sum(losses) / len(losses)

    return look


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
    wanted, dense = logits_of(model, bank, genome), logits(model)
    found, chosen = module_of(model, bank, genome, replace(QUICK, method=method)).bank()
    torch.testing.assert_close(logits_of(model, found, chosen), wanted, rtol=0, atol=1e-4)
    assert torch.equal(logits(model), dense)
    assert found.kept_parameters(chosen) == bank.kept_parameters(genome)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("factors", ["in", "out", "both"])
def test_what_is_merged_computes_what_was_trained(method: str, factors: str) -> None:
    model = tiny_llama()
    bank = banked(model, "affine", storage="pivoted")
    genome = mixed(bank)
    module = module_of(model, bank, genome, replace(QUICK, method=method, factors=factors))
    result = recover(module, BATCHES, looking(module), trainer)
    assert result.taken and result.bank.fingerprint != bank.fingerprint
    assert [entry["step"] for entry in result.history] == [0, 2, 4, 6]
    assert result.bank.kept_parameters(result.genome) == bank.kept_parameters(genome)
    with module.placed():
        wanted = logits(model)
    found = logits_of(model, result.bank, result.genome)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert not torch.allclose(found, logits_of(model, bank, genome), atol=1e-3)
    losses = [entry["loss"] for entry in result.history]
    assert min(losses) < losses[0]


def test_only_what_was_asked_for_is_trained() -> None:
    model = tiny_llama()
    bank = banked(model, "affine", storage="pivoted")
    for method, factors, words in (
        ("lora", "in", "factor_in.lora_"), ("lora", "out", "factor_out.lora_"),
        ("full", "both", "weight"),
    ):  # fmt: skip
        module = module_of(
            model, bank, uniform(bank, 0.3), replace(QUICK, method=method, factors=factors)
        )
        module.loss(BATCHES[0]).backward()
        assert module.trained() and all(words in name for name in module.trained())
        assert all(p.grad is not None for p in module.trained().values())
        assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", ["task", "kl", "both"])
def test_the_loss_is_that_of_the_answers_the_divergence_or_their_sum(kind: str) -> None:
    model = tiny_llama()
    bank = banked(model)
    module = module_of(model, bank, uniform(bank, 0.3), replace(QUICK, loss=kind))
    batch = BATCHES[0]
    ids = batch["input_ids"]
    dense = torch.log_softmax(model(**batch).logits[:, :-1].double(), -1)
    with Switch(model, bank, as_stored=False).to(uniform(bank, 0.3)):
        pruned = torch.log_softmax(model(**batch).logits[:, :-1].double(), -1)
    task = -pruned.gather(-1, ids[:, 1:, None]).mean()
    far = (dense.exp() * (dense - pruned)).sum(-1).mean()
    wanted = {"task": task, "kl": far, "both": task + far}[kind]
    assert module.loss(batch).item() == pytest.approx(wanted.item(), rel=1e-4)


def test_training_that_does_not_help_is_rolled_back() -> None:
    model = tiny_llama()
    bank = banked(model)
    genome = uniform(bank, 0.6)
    settings = replace(QUICK, check_every=1, patience=2)
    module = module_of(model, bank, genome, settings)
    looks = iter([(0.5, -1.0), (0.4, -0.5), (0.5, -1.0)])  # Worse, and no better.
    result = recover(module, BATCHES, lambda: next(looks), trainer)
    assert not result.taken and result.bank is bank and result.genome is genome
    assert [entry["step"] for entry in result.history] == [0, 1, 2]  # Patience ended it.


def test_the_best_state_is_kept_not_the_last() -> None:
    model = tiny_llama()
    bank = banked(model)
    genome = uniform(bank, 0.6)
    scripted = iter([0.5, 0.6, 0.8, 0.7])
    module = module_of(model, bank, genome)
    states: list[dict[str, torch.Tensor]] = []

    def look() -> tuple[float, float]:
        states.append({n: p.detach().clone() for n, p in module.trained().items()})
        return next(scripted), 0.0

    result = recover(module, BATCHES, look, trainer)
    assert result.taken and [entry["accuracy"] for entry in result.history] == [0.5, 0.6, 0.8, 0.7]
    for name, parameter in module.trained().items():
        assert torch.equal(parameter, states[2][name])
        assert not torch.equal(states[3][name], states[2][name])


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_training_cut_short_goes_on_to_the_same_end(tmp_path: Path, method: str) -> None:
    model = tiny_llama()
    bank = banked(model)
    genome, settings = mixed(bank), replace(QUICK, method=method, accumulate=2)
    accumulated = {"accumulate_grad_batches": 2}

    def run(path: Path, cap: int) -> Any:
        module = module_of(model, bank, genome, settings)
        return recover(
            module, BATCHES, looking(module),
            lambda callbacks, steps: trainer(callbacks, min(steps, cap), **accumulated),
            path=path,
        )  # fmt: skip

    whole = run(tmp_path / "whole", 6)
    run(tmp_path / "cut", 4)
    gone_on = run(tmp_path / "cut", 6)
    assert gone_on.history == whole.history and len(whole.history) == 4
    for name, factors in whole.bank.factors.items():
        torch.testing.assert_close(gone_on.bank.factors[name].v, factors.v, rtol=0, atol=1e-6)
    other = module_of(model, bank, genome, replace(settings, learning_rate=5e-3))
    with pytest.raises(ValueError, match="of another training"):
        recover(other, BATCHES, looking(other), trainer, path=tmp_path / "cut")
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:100])
    module = module_of(model, bank, genome, settings)
    with pytest.raises(ValueError, match="is damaged"):
        recover(module, BATCHES, looking(module), trainer, path=tmp_path / "cut")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_stands_before_a_matrix_that_is_gone_does_not_stop_it(
    method: str, tmp_path: Path
) -> None:
    model = tiny_llama()
    bank = banked(model)
    gone = [0.0 if name.endswith(("o_proj", "down_proj")) else 0.6 for name in bank.names]
    module = module_of(model, bank, mixed(bank, gone), replace(QUICK, method=method))
    result = recover(module, BATCHES, looking(module), trainer, path=tmp_path / "training")
    assert len(result.history) == 4


def test_ranks_share_the_batches_that_one_process_accumulates() -> None:
    batches, settings = list(range(7)), replace(QUICK, steps=10)
    alone = StepBatches(batches, replace(settings, accumulate=2), seed=3)
    ranks = [StepBatches(batches, settings, rank=rank, world=2, seed=3) for rank in range(2)]
    shared = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    assert list(alone) == shared and len(alone) == 20
    for epoch in (shared[:7], shared[7:14]):
        assert sorted(epoch) == batches
    later = StepBatches(batches, replace(settings, accumulate=2), start=4, seed=3)
    assert list(later) == shared[8:]


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
