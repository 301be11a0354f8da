"""Projections learned by gradient against the closed form, and across processes."""

from typing import Any

import pytest
import torch
from models import tiny_llama
from torch import Tensor
from transformers import PreTrainedModel

from sieve.bank.learned import learn
from sieve.calibration.calibration import calibrate
from sieve.model.matrices import dense_weight, find_matrices
from sieve.projections import Factors
from sieve.projections.moments import Moment, Moments, Needs
from sieve.projections.output import output

Q, K, UP, OUT, DOWN = (
    f"model.layers.0.{name}_proj"
    for name in ("self_attn.q", "self_attn.k", "mlp.up", "self_attn.o", "mlp.down")
)
RANK = 6


def batches(number: int = 4, seed: int = 0) -> list[dict[str, Tensor]]:
    """Left-padded random rows, of a width that differs from batch to batch."""
    g = torch.Generator().manual_seed(seed)
    made = []
    for index in range(number):
        shape = (8, 12 + index)
        mask = torch.ones(shape, dtype=torch.long)
        mask[0, :5] = 0
        made.append(
            {"input_ids": torch.randint(3, 256, shape, generator=g), "attention_mask": mask}
        )
    return made


def world(seed: int = 0) -> tuple[PreTrainedModel, list[dict[str, Tensor]], Moments]:
    """A tiny model, batches, and the moments of the inputs over these very batches."""
    model, data = tiny_llama(seed=seed), batches(seed=seed)
    return model, data, calibrate(model, data, needs=Needs(input=True))


def weight_and_moment(model: PreTrainedModel, moments: Moments, name: str) -> tuple[Tensor, Moment]:
    matrix = next(m for m in find_matrices(model) if m.name == name)
    return dense_weight(model.get_submodule(name)), moments.of(matrix)


def output_error(weight: Tensor, moment: Moment, factors: Factors, rank: int) -> float:
    """E‖W x − U V x‖² / E‖W x‖² from E[x xᵀ]."""
    weight, second = weight.double(), moment.input_second()
    error = weight - factors.u[:, :rank].double() @ factors.v[:rank].double()
    return float(((error @ second) * error).sum() / ((weight @ second) * weight).sum())


def errors(
    model: PreTrainedModel, moments: Moments, factors: dict[str, Factors], rank: int = RANK
) -> dict[str, tuple[float, float]]:
    """Relative output error of learned factors and of the optimum, by matrix."""
    found = {}
    for name, learned in factors.items():
        weight, moment = weight_and_moment(model, moments, name)
        best = output(weight, moment)
        found[name] = tuple(output_error(weight, moment, f, rank) for f in (learned, best))
    return found


def test_untied_from_the_optimum_finds_nothing_better() -> None:
    model, data, moments = world()
    ranks = dict.fromkeys((Q, K, OUT, DOWN), RANK)
    factors = learn(model, data, ranks, moments, tied=False, init="optimal", epochs=15)
    for learned, best in errors(model, moments, factors).values():
        assert best - 1e-9 <= learned < best + 0.01


@pytest.mark.slow
def test_output_side_from_pca_stays_at_the_optimum_and_from_noise_comes_near() -> None:
    model, data, moments = world()
    ranks = dict.fromkeys((OUT, DOWN), RANK)
    options: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-4}
    factors = learn(model, data, ranks, moments, **options)
    for learned, best in errors(model, moments, factors).values():
        assert best - 1e-9 <= learned < best + 1e-3
    options = {"epochs": 150, "learning_rate": 3e-3}
    factors = learn(model, data, ranks, moments, init="random", **options)
    for learned, best in errors(model, moments, factors).values():
        assert best - 1e-9 <= learned < best + 0.01


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_input_side_ends_above_the_optimum_and_below_its_start(seed: int) -> None:
    model, data, moments = world(seed)
    ranks = dict.fromkeys((Q, K, UP), RANK)
    start, end = (
        errors(
            model, moments, learn(model, data, ranks, moments, epochs=epochs, learning_rate=rate)
        )
        for epochs, rate in ((1, 1e-9), (100, 3e-3))
    )
    for name in ranks:
        assert end[name][0] > end[name][1] + 1e-3
        assert end[name][0] < start[name][0]
    better = learn(model, data, ranks, moments, init="optimal", epochs=100, learning_rate=3e-3)
    for name, (learned, best) in errors(model, moments, better).items():
        assert best < learned == pytest.approx(end[name][0], abs=0.02)
