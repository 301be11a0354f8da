"""The closed forms against brute force, each other, and degenerate input."""

from dataclasses import replace

import pytest
import torch
from brute_force import least
from torch import Tensor

from sieve.projections import PROJECTIONS, Factors
from sieve.projections.affine import affine
from sieve.projections.moments import Gradient, Moment, Side
from sieve.projections.output import output
from sieve.projections.svd import svd

# Projections whose energies are output errors.
OUTPUT_ERROR = ("output", "affine", "whitened")
SHAPES = [(9, 7), (7, 9), (8, 8)]


def problem(d_out: int, d_in: int, seed: int = 0, tokens: int = 400) -> tuple[Tensor, Tensor]:
    """A weight (d_out, d_in) and correlated inputs (tokens, d_in) with a mean, in float64."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(d_out, d_in, generator=g, dtype=torch.float64)
    mix = torch.randn(d_in, d_in, generator=g, dtype=torch.float64)
    mix = torch.linalg.qr(mix).Q
    scale = torch.logspace(0, -0.7, d_in, dtype=torch.float64)
    x = torch.randn(tokens, d_in, generator=g, dtype=torch.float64) * scale @ mix
    return weight, x + torch.randn(d_in, generator=g, dtype=torch.float64)


def moment_of(z: Tensor, side: Side = "input") -> Moment:
    return Moment(side, z.T @ z / len(z), z.mean(0), len(z))


def full_moment(weight: Tensor, x: Tensor, seed: int = 0) -> Moment:
    """The input's moment with all statistics that any projection needs."""
    d_out, d_in = weight.shape
    g = gradients(d_out, seed)
    wide = d_out <= d_in
    z = g if wide else g @ weight
    gradient = Gradient(
        "output" if wide else "input", z.T @ z / len(z), float(g.square().sum(1).mean()), len(g)
    )
    return replace(moment_of(x), magnitude=x.abs().mean(0), gradient=gradient)


def gradients(d_out: int, seed: int = 0, examples: int = 60) -> Tensor:
    """Gradients (examples, d_out) of unequal directions."""
    g = torch.Generator().manual_seed(1000 + seed)
    mix = torch.randn(d_out, d_out, generator=g, dtype=torch.float64)
    return torch.randn(examples, d_out, generator=g, dtype=torch.float64) @ mix


def error(weight: Tensor, x: Tensor, factors: Factors, rank: int) -> float:
    """Mean squared output error of the factors at a rank, from the inputs themselves."""
    difference = x @ weight.T - x @ (factors.u[:, :rank] @ factors.v[:rank]).T
    bias = factors.bias(rank)
    if bias is not None:
        difference = difference - bias
    return float(difference.pow(2).sum(1).mean())


def brute_force(weight: Tensor, x: Tensor, rank: int, bias: bool) -> float:
    """The least error over U, V (and b)."""
    ones = torch.ones(len(x), 1, dtype=torch.float64)
    # The R of [x 1] has the same second moments as the rows it stands for.
    root = torch.linalg.qr(torch.cat([x, ones], 1) / len(x) ** 0.5).R
    x, ones = root[:, :-1], root[:, -1:]

    def loss(u: Tensor, v: Tensor, b: Tensor) -> Tensor:
        return (x @ (weight - u @ v).T - (ones * b if bias else 0)).pow(2).sum()

    d_out, d_in = weight.shape
    return least(loss, (d_out, rank), (rank, d_in), (d_out,))


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [4])
def test_output_reaches_the_brute_force_optimum_and_is_never_above_svd(
    shape: tuple[int, int], rank: int
) -> None:
    weight, x = problem(*shape, seed=rank)
    ours = error(weight, x, output(weight, moment_of(x)), rank)
    assert ours == pytest.approx(brute_force(weight, x, rank, bias=False), rel=1e-6)
    assert ours <= error(weight, x, svd(weight, moment_of(x)), rank)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [3])
def test_affine_reaches_the_brute_force_optimum_and_is_never_above_output(
    shape: tuple[int, int], rank: int
) -> None:
    weight, x = problem(*shape, seed=10 + rank)
    moment = moment_of(x)
    ours = error(weight, x, affine(weight, moment), rank)
    assert ours == pytest.approx(brute_force(weight, x, rank, bias=True), rel=1e-6)
    assert ours <= error(weight, x, output(weight, moment), rank) * (1 + 1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_svd_has_the_least_weight_error_at_every_rank(shape: tuple[int, int]) -> None:
    weight, x = problem(*shape)
    factors = svd(weight, moment_of(x))
    values = torch.linalg.svdvals(weight)
    for rank in range(min(shape) + 1):
        left = (weight - factors.u[:, :rank] @ factors.v[:rank]).pow(2).sum()
        torch.testing.assert_close(left, values[rank:].pow(2).sum())


@pytest.mark.parametrize("name", ["output", "affine"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_input_side_and_the_output_side_give_the_same_map(
    name: str, shape: tuple[int, int]
) -> None:
    weight, x = problem(*shape)
    inner = PROJECTIONS[name](weight, moment_of(x))
    outer = PROJECTIONS[name](weight, moment_of(x @ weight.T, "output"))
    for rank in (1, 4, 7):
        torch.testing.assert_close(
            inner.u[:, :rank] @ inner.v[:rank], outer.u[:, :rank] @ outer.v[:rank]
        )
        if name == "affine":
            torch.testing.assert_close(inner.bias(rank), outer.bias(rank))


@pytest.mark.parametrize("name", list(PROJECTIONS))
@pytest.mark.parametrize("shape", SHAPES)
def test_energies_beyond_a_rank_sum_to_the_error(name: str, shape: tuple[int, int]) -> None:
    weight, x = problem(*shape)
    factors = PROJECTIONS[name](weight, full_moment(weight, x))
    assert (factors.energy.diff() <= 1e-9).all()
    if name not in OUTPUT_ERROR:
        return
    for rank in (1, 3, 7):
        left = float(factors.energy[rank:].sum())
        assert error(weight, x, factors, rank) == pytest.approx(left, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("name", list(PROJECTIONS))
@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_is_the_weight_itself(name: str, shape: tuple[int, int]) -> None:
    if name == "input_pca" and shape[1] > shape[0]:
        return  # There are more input directions than outputs.
    weight, x = problem(*shape)
    factors = PROJECTIONS[name](weight, full_moment(weight, x))
    torch.testing.assert_close(factors.u @ factors.v, weight, rtol=1e-6, atol=1e-6)
    bias = factors.bias(factors.rank)
    if bias is not None:
        torch.testing.assert_close(bias, torch.zeros_like(bias), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", list(PROJECTIONS))
@pytest.mark.parametrize("shape", SHAPES)
def test_cutting_keeps_the_first_directions_of_the_whole(name: str, shape: tuple[int, int]) -> None:
    weight, x = problem(*shape)
    whole = PROJECTIONS[name](weight, full_moment(weight, x))
    cut = whole.cut(5)
    assert torch.equal(cut.u, whole.u[:, :5])
    assert torch.equal(cut.v, whole.v[:5])
    for rank in range(6):
        left, right = cut.bias(rank), whole.bias(rank)
        assert (left is None and right is None) or torch.equal(left, right)


@pytest.mark.parametrize("name", list(PROJECTIONS))
def test_rank_zero_is_the_mean_output(name: str) -> None:
    weight, x = problem(8, 6)
    torch.testing.assert_close(
        PROJECTIONS[name](weight, full_moment(weight, x)).bias(0), (x @ weight.T).mean(0)
    )


@pytest.mark.parametrize("name", list(PROJECTIONS))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", ["few tokens", "constant", "zero", "one direction"])
def test_degenerate_inputs_give_finite_nested_factors(
    name: str, shape: tuple[int, int], case: str
) -> None:
    weight, x = problem(*shape)
    x = {
        "few tokens": x[:3],
        "constant": x[:1].expand(50, -1),
        "zero": torch.zeros_like(x),
        "one direction": x[:, :1] * x[:1],
    }[case]
    moments = [full_moment(weight, x)]
    if name in ("output", "affine", "svd"):
        moments.append(moment_of(x @ weight.T, "output"))
    for moment in moments:
        factors = PROJECTIONS[name](weight, moment)
        for part in (factors.u, factors.v, factors.energy):
            assert part.isfinite().all()
        if name in ("output", "affine", "svd"):
            identity = torch.eye(factors.rank, dtype=torch.float64)
            torch.testing.assert_close(factors.u.T @ factors.u, identity)
        if name in ("output", "affine"):
            rank = min(4, factors.rank)
            scale = float((x @ weight.T).pow(2).sum(1).mean())
            assert error(weight, x, factors, rank) <= 1e-9 * max(scale, 1) + (
                float(factors.energy[rank:].sum())
            )


@pytest.mark.parametrize("name", ["output", "affine"])
def test_moments_that_are_not_finite_are_refused(name: str) -> None:
    weight, x = problem(6, 6)
    x[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        PROJECTIONS[name](weight, full_moment(weight, x))
