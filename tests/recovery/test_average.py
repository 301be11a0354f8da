"""The running mean of the weights is what a training checks, keeps and resumes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import tiny_llama
from sieved import banked, mixed
from torch import Tensor
from trainings import BATCHES, QUICK, evaluated, module_of, trainer

from sieve.recovery.average import Average
from sieve.recovery.module import RecoveryModule
from sieve.recovery.recovery import Recovered, numbered, recover

MEAN = replace(QUICK, method="full", ema_decay=0.5, check_every=1, steps=4)


def copied(module: RecoveryModule) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.trained().items()}


def test_the_mean_decays_by_its_rate_and_begins_with_a_ninth_of_the_steps() -> None:
    weights = {"w": torch.zeros(3)}
    average = Average(weights, 0.5)
    expected, seen = 0.0, [1.0, -2.0, 4.0, 8.0, 1.0, 3.0, 5.0, 2.0, 9.0, 7.0]
    for step, value in enumerate(seen, start=1):
        weights["w"].fill_(value)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))  # 2/11, 3/12, …; one half from step 8 on
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(average.means["w"], torch.full((3,), expected))


def test_without_decay_the_mean_is_the_weights_themselves() -> None:
    weights = {"w": torch.zeros(5)}
    average = Average(weights, 0.0)
    weights["w"].copy_(torch.randn(5))
    average.update()
    average.update()
    assert average.means["w"].equal(weights["w"])


def test_weights_are_their_means_inside_the_block_and_themselves_after_an_error() -> None:
    weights = {"w": torch.zeros(2)}
    average = Average(weights, 0.9)
    weights["w"].fill_(1.0)
    with pytest.raises(KeyError), average.installed():
        assert weights["w"].eq(0).all()
        raise KeyError
    assert weights["w"].eq(1).all() and average.means["w"].eq(0).all()


def run(module: RecoveryModule, path: Path | None = None, cap: int = 4) -> Recovered:
    return recover(
        module,
        numbered(BATCHES),
        evaluated(module),
        lambda callbacks, steps: trainer(callbacks, min(steps, cap)),
        path=path,
    )


def test_a_check_scores_the_mean_and_the_result_is_the_mean_of_the_best_check() -> None:
    model = tiny_llama()
    bank = banked(model)
    weights = dict[int, dict[str, Tensor]]()
    plain = module_of(model, bank, mixed(bank), replace(MEAN, ema_decay=0.0))
    scored = evaluated(plain)

    def remember() -> tuple[float, float]:
        weights[len(weights)] = copied(plain)
        return scored()

    recover(plain, numbered(BATCHES), remember, trainer)
    module = module_of(model, bank, mixed(bank), MEAN)
    losses, honest = list[dict[str, Tensor]](), evaluated(module)

    def check() -> tuple[float, float]:
        losses.append(copied(module))
        return float(len(losses)), honest()[1]  # every check is the best so far

    result = recover(module, numbered(BATCHES), check, trainer)
    # The steps do not depend on the checks, so both trainings pass through the same weights.
    mean = weights[0]
    for step in range(1, 5):
        decay = min(0.5, (1 + step) / (10 + step))
        mean = {n: decay * m + (1 - decay) * weights[step][n] for n, m in mean.items()}
        for name, value in losses[step].items():
            torch.testing.assert_close(value, mean[name], rtol=1e-4, atol=1e-6)
    assert result.taken
    for name, value in copied(module).items():
        torch.testing.assert_close(value, mean[name], rtol=1e-4, atol=1e-6)


def test_a_killed_training_resumes_with_its_mean(tmp_path: Path) -> None:
    model = tiny_llama()
    bank = banked(model)
    ends = []
    for path, caps in ((tmp_path / "whole", [4]), (tmp_path / "cut", [1, 2, 4])):
        for cap in caps:
            module = module_of(model, bank, mixed(bank), MEAN)
            result = run(module, path, cap)
        ends.append((result.history, copied(module)))
    (whole, weights), (resumed, again) = ends
    assert resumed == whole and len(whole) == 5
    for name, value in weights.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=1e-7)


def test_a_new_start_begins_with_a_new_mean() -> None:
    model = tiny_llama()
    bank = banked(model)
    module = module_of(model, bank, mixed(bank), MEAN)
    untrained, distances = copied(module), list[float]()
    worse = iter([(0.5, -1.0), (0.4, -2.0), (0.4, -0.9), (0.4, -0.9), (0.4, -0.9)])

    def evaluate() -> tuple[float, float]:
        state = copied(module)
        distances.append(max(float((state[n] - w).abs().max()) for n, w in untrained.items()))
        return next(worse)

    recover(module, numbered(BATCHES), evaluate, trainer)
    # Adam's first step is as long as the rate; nine elevenths of it enter the mean.
    rate = MEAN.learning_rate
    assert distances[1:3] == pytest.approx([rate * 9 / 11, rate / 3 * 9 / 11], rel=1e-2)
