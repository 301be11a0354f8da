"""A training that has only done harm starts again, untrained, at a third of the rate."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import tiny_llama
from sieved import banked, mixed
from torch import Tensor
from trainings import BATCHES, QUICK, evaluated, module_of, trainer

from sieve.recovery.keeper import Evaluate
from sieve.recovery.module import RecoveryModule
from sieve.recovery.recovery import Recovered, numbered, recover

PEAK = QUICK.learning_rate
STEPS = replace(QUICK, check_every=1, steps=4)


def copied(module: RecoveryModule) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.trained().items()}


def distance(module: RecoveryModule, state: dict[str, Tensor]) -> float:
    return max(
        float((p.detach() - state[name]).abs().max()) for name, p in module.trained().items()
    )


def harmful(module: RecoveryModule) -> Evaluate:
    """Any step at more than a ninth of the rate does harm."""
    untrained, honest = copied(module), evaluated(module)
    return lambda: (
        (0.4, -100.0) if distance(module, untrained) and module.rate > PEAK / 9 * 1.01 else honest()
    )


def test_harm_alone_is_answered_by_the_untrained_state_and_a_third_of_the_rate() -> None:
    model = tiny_llama()
    bank = banked(model)
    module = module_of(model, bank, mixed(bank), replace(STEPS, steps=5))
    untrained, rates, distances = copied(module), list[float](), list[float]()
    # Then a larger loss; fewer right answers at a smaller loss; an improvement; larger losses.
    worse = (0.2, -3.0)
    scores = iter([(0.5, -1.0), (0.4, -2.0), (0.4, -0.9), (0.5, -0.8), worse, worse])

    def evaluate() -> tuple[float, float]:
        rates.append(module.rate)
        distances.append(distance(module, untrained))
        return next(scores)

    result = recover(module, numbered(BATCHES), evaluate, trainer)
    assert rates == [PEAK, PEAK, *[PEAK / 3] * 4] and result.rate == PEAK / 3
    # Adam's first step is as long as the rate, which is at its peak after so short a warm-up.
    assert distances[1:3] == pytest.approx([PEAK, PEAK / 3], rel=1e-3)
    assert distances[3] > distances[2]


def test_nothing_starts_again_at_the_last_step() -> None:
    model = tiny_llama()
    bank = banked(model)
    module = module_of(model, bank, mixed(bank), replace(STEPS, steps=1))
    scores = iter([(0.5, -1.0), (0.4, -2.0)])
    recover(module, numbered(BATCHES), lambda: next(scores), trainer)
    assert (module.rate, module.restart) == (PEAK, 0)


def test_a_new_start_has_a_schedule_of_its_own_over_the_steps_that_are_left() -> None:
    model = tiny_llama()
    bank = banked(model)
    module = module_of(model, bank, mixed(bank), replace(STEPS, steps=100))
    optimizer: Any = SimpleNamespace(param_groups=[{}])
    rates = []
    module.start_again(40, 0.5)
    for module.start in (40, 45, 70, 99):
        module.on_before_optimizer_step(optimizer)
        rates.append(optimizer.param_groups[0]["lr"])
    # Over 60 steps: a warm-up of 6, then cosine decay, half way at 33.
    assert rates[:2] == pytest.approx([0.5 / 6, 0.5])
    assert 0 < rates[3] < 0.01 < rates[2] < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_killed_training_that_started_again_resumes_to_the_same_end(
    tmp_path: Path, method: str
) -> None:
    model = tiny_llama()
    bank = banked(model)

    def run(path: Path, cap: int) -> tuple[RecoveryModule, Recovered]:
        module = module_of(model, bank, mixed(bank), replace(STEPS, method=method, steps=6))
        result = recover(
            module,
            numbered(BATCHES),
            harmful(module),
            lambda callbacks, steps: trainer(callbacks, min(steps, cap)),
            path=path,
        )
        return module, result

    module, whole = run(tmp_path / "whole", 6)
    assert (module.rate, module.restart) == (PEAK / 9, 2)
    for steps in (1, 1, 2, 2):  # Killed after the first start, the second and later.
        module, resumed = run(tmp_path / "cut", steps)
    assert (module.rate, module.restart) == (PEAK / 9, 2)
    assert resumed.history == whole.history and len(whole.history) == 7
    for name, factors in whole.bank.factors.items():
        torch.testing.assert_close(resumed.bank.factors[name].v, factors.v, rtol=0, atol=1e-6)
