"""The forecast of a refit counts the operations that a refit takes."""

from dataclasses import replace

import pytest
import torch
from models import tiny_llama
from sieved import tokens, uniform
from test_costs import counted, planned

import sieve
from sieve.costs.shape import Rows
from sieve.costs.solving import refit_flops
from sieve.costs.training import DENSE_PASSES, PRUNED_PASSES, paired_flops
from sieve.projections import get_projection
from sieve.projections.moments import Gradient, Moment
from sieve.refit.paired import Paired, held_out_error, solve
from sieve.refit.refit import refit

BATCHES, ROWS, LENGTH, LEVEL = 8, 2, 12, 0.5


@pytest.mark.parametrize("shape", [(96, 160), (160, 96)])
@pytest.mark.parametrize("projection", ["output", "loss_aware", "affine"])
def test_a_small_matrix_tells_the_operations_of_a_large_solve(
    projection: str, shape: tuple[int, int]
) -> None:
    d_out, d_in = shape
    weight, n, rank = torch.randn(shape).double(), min(shape), 40
    gradient = None
    if projection == "loss_aware":
        gradient = Gradient("output" if d_out <= d_in else "input", torch.eye(n), n, 200)
    moment = Moment("input", torch.eye(d_in), torch.zeros(d_in), 200, gradient=gradient)
    eye, zeros = torch.eye(d_in).double(), torch.zeros(d_in).double()
    pair = Paired(eye, eye, zeros, zeros, torch.zeros(0, d_in), torch.zeros(d_out).double(), 1.0)

    def work() -> None:
        centered = projection == "affine"
        fitted = replace(pair)
        factors = solve(weight, moment, fitted, get_projection(projection), centered)
        for _ in ("before", "after"):
            held_out_error(weight, moment, pair, factors, rank)

    products, decompositions = refit_flops(projection, d_out, d_in, rank)
    assert products + decompositions == pytest.approx(sum(counted(work).values()), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
def test_a_refit_takes_the_operations_that_torch_counts(weighted: bool) -> None:
    model = tiny_llama(attn_implementation="eager", hidden_size=64, intermediate_size=176)
    name = "loss_aware" if weighted else "output"
    needs = get_projection(name).needs
    batches = [{"input_ids": tokens(ROWS, LENGTH, seed)} for seed in range(BATCHES)]
    for batch in batches:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        batch["targets"] = torch.full_like(batch["input_ids"], -100)
        batch["targets"][:, -1] = 5
    moments = sieve.calibrate(model, batches, needs=needs, weighting=needs.weighting)
    bank = sieve.fit(model, moments, name)
    genome, weights = uniform(bank, LEVEL), None
    if weighted:
        each = [torch.rand(ROWS * LENGTH) for _ in batches]
        weights = {matrix.name: each for matrix in bank.matrices}
    flops = sum(counted(lambda: refit(model, bank, genome, moments, batches, weights)).values())
    plan = planned(model, name=name, storage="plain", rank_multiple=1)
    rows = Rows(BATCHES * ROWS, LENGTH, 1.0, padding=1.0)
    expected = plan.shape.pass_flops(rows) * DENSE_PASSES
    expected += plan.shape.pass_flops(rows, LEVEL) * PRUNED_PASSES
    expected += paired_flops(plan, rows)
    ranks = bank.ranks(genome)
    shapes = [(m.d_out, m.d_in, ranks[m.name] or 0) for m in bank.matrices]
    expected += sum(sum(refit_flops(name, *shape)) for shape in shapes)
    assert expected == pytest.approx(flops, rel=0.1)
