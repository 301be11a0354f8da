"""The optimizers of a training."""

from dataclasses import replace

import pytest
import torch
from models import tiny_llama
from sieved import banked, mixed, tokens, uniform
from torch import Tensor
from trainings import BATCHES, QUICK, evaluated, module_of, trainer

from sieve.bank.bank import fit
from sieve.calibration.calibration import calibrate
from sieve.distributed.trainer import schedule
from sieve.model.matrices import find_matrices
from sieve.recovery.recovery import numbered, recover


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_muon_steps_are_equally_long_in_all_directions_and_adams_are_not(optimizer: str) -> None:
    model = tiny_llama()
    bank = banked(model)
    module = module_of(model, bank, mixed(bank), replace(QUICK, method="full", optimizer=optimizer))
    before = {name: p.detach().clone() for name, p in module.trained().items()}
    torch.manual_seed(0)
    for parameter in module.trained().values():
        parameter.grad = torch.randn_like(parameter) * torch.logspace(0, 2, parameter.shape[1])
    steps = module.configure_optimizers()
    steps.step()
    changes = [p.detach() - before[name] for name, p in module.trained().items()]
    ratios = [_spread(change) for change in changes if min(change.shape) > 3]
    assert ratios and (max(ratios) < 2.5) == (optimizer == "muon")
    for change in changes:  # As long as a step of Adam in training, a fifth of the rate per weight.
        if optimizer == "muon":
            rms = float(change.pow(2).mean().sqrt())
            assert rms == pytest.approx(0.2 * QUICK.learning_rate, rel=0.35)


def test_muon_leaves_a_weight_without_a_gradient_as_it_is() -> None:
    model = tiny_llama()
    bank = banked(model)
    module = module_of(model, bank, mixed(bank), replace(QUICK, method="full", optimizer="muon"))
    weight = next(iter(module.trained().values()))
    before, weight.grad = weight.detach().clone(), torch.zeros_like(weight)
    module.configure_optimizers().step()
    assert torch.equal(weight, before)


def _spread(change: Tensor) -> float:
    """The largest singular value over the smallest."""
    values = torch.linalg.svdvals(change)
    return float(values[0] / values[-1])


def test_an_embedding_is_trained_like_any_matrix() -> None:
    model = tiny_llama()
    moments = calibrate(model, [{"input_ids": tokens(4, 16)}], find_matrices(model, embedding=True))
    bank = fit(model, moments, prune_embedding=True)
    name = bank.names[0]
    module = module_of(model, bank, uniform(bank, 0.3), replace(QUICK, method="full"))
    result = recover(module, numbered(BATCHES), evaluated(module), trainer)
    assert result.taken
    rank = result.bank.ranks(result.genome)[name]
    before, after = (b.factors[name].cut(rank) for b in (bank, result.bank))
    assert rank and not torch.allclose(before.u @ before.v, after.u @ after.v, atol=1e-3)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_adam_moves_the_numbers_of_a_factor_by_less_where_its_rank_is_high(method: str) -> None:
    model = tiny_llama(hidden_size=64, intermediate_size=96)
    bank = banked(model, storage="pivoted")
    genome = mixed(bank, (0.6, 0.3))
    module = module_of(model, bank, genome, replace(QUICK, method=method))
    before = {name: p.detach().clone() for name, p in module.trained().items()}
    optimizer = module.configure_optimizers()
    for parameter in module.trained().values():
        parameter.grad = torch.ones_like(parameter)
    module.on_before_optimizer_step(optimizer)
    rate = module.rate * schedule(0, QUICK.steps)
    optimizer.step()
    ranks, found = list(module.ranks.values()), set()
    for name, parameter in module.trained().items():
        rank = ranks[int(name.split(".")[1])]
        share = 16 / rank if rank > 16 and method == "full" else 1.0
        change = float((parameter.detach() - before[name]).abs().mean())
        assert change == pytest.approx(share * rate, rel=1e-3)
        found.add(rank > 16)
    assert found == {True, False}
