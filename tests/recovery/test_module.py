"""The optimizers of a training."""

from dataclasses import replace

import pytest
import torch
from models import tiny_llama
from sieved import banked, mixed
from torch import Tensor
from trainings import QUICK, module_of


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
