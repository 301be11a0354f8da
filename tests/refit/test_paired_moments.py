"""The moments of dense and pruned inputs, and the best map between them."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorDeviceMismatchError,
    FakeTensorMode,
)

from sieve.bank.bank import BankFactors
from sieve.projections import PROJECTIONS, get_projection
from sieve.projections.moments import Gradient, Moment, Side
from sieve.refit.paired import DAMPING, Paired, held_out_error, solve


def test_for_equal_inputs_the_solution_is_the_projection_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    pair = Paired.zeros(32, torch.device("cpu"))
    x = torch.randn(200, 32, generator=generator)
    pair.add(x, x, None)
    weight = torch.randn(24, 32, generator=generator).double()
    moment = Moment("input", x.T @ x / 200, x.mean(0), 200)
    ours = solve(weight, moment, pair.scaled(), PROJECTIONS["output"])
    theirs = PROJECTIONS["output"](weight, moment)
    torch.testing.assert_close(
        ours.u[:, :5] @ ours.v[:5], theirs.u[:, :5] @ theirs.v[:5], rtol=1e-4, atol=1e-5
    )


def problem(d_out: int, d_in: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    x = draw(400, d_in) @ draw(d_in, d_in) + draw(d_in)
    pruned = x @ (torch.eye(d_in, dtype=torch.float64) + 0.4 * draw(d_in, d_in)) + draw(400, d_in)
    return draw(d_out, d_in), x, pruned, draw(50, d_out) @ draw(d_out, d_out)


@pytest.mark.parametrize("projection", ["output", "affine", "loss_aware", "loss_aware_affine"])
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)])
def test_the_solution_has_the_least_error_of_its_neighbors(shape, projection: str) -> None:
    weight, x, pruned, g = problem(*shape)
    pair = Paired.zeros(shape[1], torch.device("cpu"))
    for name in ("inner", "change", "inner_mean", "change_mean"):
        setattr(pair, name, getattr(pair, name).double())
    pair.add(x, pruned, None)
    pair = pair.scaled()
    moment = Moment("input", x.T @ x / 400, pair.own_mean, 400)
    if "loss" in projection:
        side: Side = "output" if shape[0] <= shape[1] else "input"
        z = g if side == "output" else g @ weight
        power = float(g.square().sum(1).mean())
        gradient = Gradient(side, z.T @ z / 50, power, 50)
        moment = dataclasses.replace(moment, gradient=gradient)
    project = get_projection(projection, 1e-9)
    rank = 3
    fitted = dataclasses.replace(pair)
    factors = solve(weight, moment, fitted, project, "affine" in projection).cut(rank)
    best = held_out_error(weight, moment, pair, factors, rank)
    # From the rows themselves, in the metric of the gradients.
    h = g.T @ g / 50 if "loss" in projection else torch.eye(shape[0], dtype=torch.float64)
    bias = factors.bias(rank)
    error = x @ weight.T - pruned @ (factors.u @ factors.v).T - (0 if bias is None else bias)
    without = x @ weight.T
    removed = float((error @ h * error).sum(1).mean() - (without @ h * without).sum(1).mean())
    assert best == pytest.approx(removed, rel=1e-5)
    gen = torch.Generator().manual_seed(1)
    for _ in range(20):
        if shape[0] > shape[1] and "loss" in projection:
            step = weight @ torch.randn(shape[1], rank, generator=gen, dtype=torch.float64)
        else:
            step = torch.randn(factors.u.shape, generator=gen, dtype=torch.float64)
        near = dataclasses.replace(
            factors,
            u=factors.u + 0.05 * step,
            v=factors.v + 0.05 * torch.randn(factors.v.shape, generator=gen, dtype=torch.float64),
        )
        assert held_out_error(weight, moment, pair, near, rank) >= best + 1e-3 * best


def test_all_ranks_together_are_the_ridge_regression_of_dense_outputs() -> None:
    weight, x, pruned, _ = problem(6, 9)
    pair = Paired.zeros(9, torch.device("cpu"))
    pair.add(x.float(), pruned.float(), None)
    moment = Moment("input", x.T @ x / 400, x.mean(0), 400)
    factors = solve(weight, moment, pair.scaled(), PROJECTIONS["output"])
    inner, change = pruned.T @ pruned / 400, (x - pruned).T @ pruned / 400
    ridge = DAMPING * float(inner.diagonal().mean()) * torch.eye(9)
    expected = weight + weight @ change @ torch.linalg.inv(inner + ridge)
    torch.testing.assert_close(factors.u @ factors.v, expected, rtol=1e-4, atol=1e-4)


def test_a_small_change_of_the_inputs_keeps_its_digits() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 3 + torch.randn(2000, 16, generator=generator)
    pruned = x + 1e-3 * torch.randn(2000, 16, generator=generator)
    pair = Paired.zeros(16, torch.device("cpu"))
    for own, other in zip(x.split(200), pruned.split(200), strict=True):
        pair.add(own, other, None)
    change, inner = x.double() - pruned.double(), pruned.double()
    expected = change.T @ inner / 2000
    centered = expected - torch.outer(change.mean(0), inner.mean(0))
    pair.scaled()
    computed = pair.change - torch.outer(pair.change_mean, pair.inner_mean)
    # The difference of two sums in float32 has an error of .01, and of .1 where it is centered.
    assert (pair.change - expected).norm() < 1e-5 * expected.norm()
    assert (computed - centered).norm() < 1e-5 * centered.norm()


def test_a_solve_takes_the_change_and_leaves_the_moment_of_the_inputs() -> None:
    weight, x, pruned, _ = problem(6, 9)
    pair = Paired.zeros(9, torch.device("cpu"))
    pair.add(x.float(), pruned.float(), None)
    inner = pair.scaled().inner.clone()
    moment = Moment("input", x.T @ x / 400, x.mean(0), 400)
    solve(weight, moment, pair, PROJECTIONS["output"])
    assert torch.equal(pair.inner, inner) and pair.change.numel() == 0


def test_activations_that_are_not_finite_end_a_refit_in_a_sentence() -> None:
    pair = Paired.zeros(4, torch.device("cpu"))
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    pair.add(x, x.where(x < x.max(), math.inf), None)
    moment = Moment("input", x.T @ x / 9, x.mean(0), 9)
    with pytest.raises(ValueError, match="not finite.*model.dtype"):
        solve(torch.eye(4).double(), moment, pair.scaled(), PROJECTIONS["output"])


def test_an_error_is_computed_on_the_device_of_its_sums() -> None:
    with FakeTensorMode():
        weight = torch.empty(4, 3, dtype=torch.float64, device="cuda")
        pair = Paired.zeros(3, weight.device).scaled()
        moment = Moment("input", pair.inner, pair.inner_mean, 1)
        factors = BankFactors(
            torch.empty(4, 2), torch.empty(2, 3), torch.empty(2), torch.empty(4), torch.empty(4)
        )
        # Only the conversion of a fake tensor to a number may fail.
        with pytest.raises((DataDependentOutputException, RuntimeError)) as found:
            held_out_error(weight, moment, pair, factors, 2)
    assert not isinstance(found.value, FakeTensorDeviceMismatchError)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("projection", ["output", "affine"])
def test_the_residual_target_restores_what_the_stream_has_lost(
    projection: str, weighted: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 10, generator=generator)
    x = 0.5 + torch.randn(500, 10, generator=generator)
    seen = x + 0.5 * torch.randn(500, 10, generator=generator) @ torch.randn(
        10, 10, generator=generator
    )
    lost = seen @ torch.randn(10, 6, generator=generator)
    lost += x.square() @ torch.rand(10, 6, generator=generator)
    w = torch.rand(500, generator=generator) ** 4 if weighted else torch.ones(500)
    pair = Paired.zeros(10, torch.device("cpu"), d_out=6)
    pair.add(x, seen, w if weighted else None, lost)
    moment = Moment("input", x.T @ x / 500, x.mean(0), 500)
    pair = pair.scaled()
    ours, plain = (
        solve(weight.double(), moment, given, PROJECTIONS[projection], projection == "affine").cut(
            3
        )
        for given in (
            dataclasses.replace(pair),
            dataclasses.replace(pair, lost=pair.lost[:0]),
        )
    )
    root = (w.double() / w.sum()).sqrt()[:, None]
    wanted = (x @ weight.T + lost).double()

    def centered(z: Tensor) -> Tensor:
        return root * (z - (root.square() * z).sum(0) * (projection == "affine"))

    # Reduced-rank regression, by least squares and then the fit's principal directions.
    fitted = centered(seen.double())
    fitted = fitted @ torch.linalg.lstsq(fitted, centered(wanted)).solution
    top = torch.linalg.svd(fitted, full_matrices=False).Vh[:3]
    best = (centered(wanted) - fitted @ top.T @ top).square().sum()

    def error(factors) -> Tensor:
        bias = factors.bias(3)
        made = seen.double() @ (factors.u @ factors.v).T + (0 if bias is None else bias)
        return (root * (wanted - made)).square().sum()

    torch.testing.assert_close(error(ours), best, rtol=1e-3, atol=0)
    assert error(ours) < 0.9 * error(plain)
    said = [held_out_error(weight.double(), moment, pair, f, 3) for f in (ours, plain)]
    true = float(error(ours) - error(plain))
    assert said[0] - said[1] == pytest.approx(true, rel=1e-4, abs=1e-6)
