"""The loss-aware closed form against brute force on its own objective, on every side."""

from dataclasses import replace

import pytest
import torch
from brute_force import least
from torch import Tensor

from sieve.projections import PROJECTIONS, Factors, get_projection
from sieve.projections.damping import shrinkage
from sieve.projections.linear_algebra import one_thread_each
from sieve.projections.moments import Gradient, Moment, Side

SHAPES = [(6, 9), (9, 6), (7, 7)]
DAMPING = 0.02


def problem(d_out: int, d_in: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, inputs with a mean (tokens, d_in) and gradients (examples, d_out), in float64."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    x = draw(300, d_in) * torch.logspace(0, -0.7, d_in, dtype=torch.float64) @ draw(d_in, d_in)
    return draw(d_out, d_in), x + draw(d_in), draw(40, d_out) @ draw(d_out, d_out)


def moment(weight: Tensor, x: Tensor, g: Tensor, side: Side, outputs: bool = False) -> Moment:
    """Statistics with gradients of one side, activations of the inputs or the outputs."""
    z = g if side == "output" else g @ weight
    power = float(g.square().sum(1).mean())
    gradient = Gradient(side, z.T @ z / len(z), power, len(g))
    seen = x @ weight.T if outputs else x
    second, mean = seen.T @ seen / len(seen), seen.mean(0)
    return Moment("output" if outputs else "input", second, mean, len(x), gradient=gradient)


def metric(g: Tensor, damping: float = DAMPING) -> Tensor:
    """H with its damping (d_out, d_out)."""
    h = g.T @ g / len(g)
    return h + damping * h.trace() / len(h) * torch.eye(len(h), dtype=h.dtype)


def objective(weight: Tensor, x: Tensor, h: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """Half the mean of eᵀ H e over e = W x − B x − bias."""
    error = x @ (weight - b).T
    if bias is not None:
        error = error - bias
    return (error @ h * error).sum(1).mean() / 2


def solved(name: str, weight: Tensor, seen: Moment) -> Factors:
    return get_projection(name, DAMPING)(weight, seen)


def error_of(factors: Factors, rank: int, weight: Tensor, x: Tensor, g: Tensor) -> float:
    b = factors.u[:, :rank] @ factors.v[:rank]
    return float(objective(weight, x, metric(g), b, factors.bias(rank) if rank else None))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["loss_aware", "loss_aware_affine"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [2])
def test_loss_aware_reaches_the_brute_force_optimum(
    name: str, shape: tuple[int, int], rank: int
) -> None:
    weight, x, g = problem(*shape, seed=rank)
    # The R of [x 1] has the same second moments as the rows it stands for.
    ones = torch.ones(len(x), 1, dtype=torch.float64)
    root = torch.linalg.qr(torch.cat([x, ones], 1)).R * (x.shape[1] + 1) ** 0.5 / len(x) ** 0.5
    best = brute_force(weight, root, metric(g), rank, name.endswith("affine"))
    for side in ("output", "input") if shape[0] >= shape[1] else ("output",):
        factors = solved(name, weight, moment(weight, x, g, side))
        assert error_of(factors, rank, weight, x, g) == pytest.approx(best, rel=1e-6)


def brute_force(weight: Tensor, root: Tensor, h: Tensor, rank: int, bias: bool) -> float:
    """The least objective over U, V (and b); the last column of `root` is the bias's."""
    x, ones = root[:, :-1], root[:, -1:]

    def loss(u: Tensor, v: Tensor, b: Tensor) -> Tensor:
        error = x @ (weight - u @ v).T - (ones * b if bias else 0)
        return (error @ h * error).sum(1).mean() / 2

    d_out, d_in = weight.shape
    return least(loss, (d_out, rank), (rank, d_in), (d_out,))


@pytest.mark.parametrize("name", ["loss_aware", "loss_aware_affine"])
@pytest.mark.parametrize("shape", [(9, 6), (7, 7)])
def test_gradients_of_either_side_give_the_same_map(name: str, shape: tuple[int, int]) -> None:
    weight, x, g = problem(*shape)
    one, two = (solved(name, weight, moment(weight, x, g, side)) for side in ("output", "input"))
    for rank in (1, 3, 5):
        torch.testing.assert_close(
            one.u[:, :rank] @ one.v[:rank], two.u[:, :rank] @ two.v[:rank], rtol=1e-5, atol=1e-6
        )
    k = min(shape)
    torch.testing.assert_close(one.energy[:k], two.energy[:k], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["loss_aware", "loss_aware_affine"])
def test_activations_of_either_side_give_the_same_map(name: str) -> None:
    weight, x, g = problem(6, 9)
    one, two = (solved(name, weight, moment(weight, x, g, "output", s)) for s in (False, True))
    for rank in (1, 3, 5):
        torch.testing.assert_close(one.u[:, :rank] @ one.v[:rank], two.u[:, :rank] @ two.v[:rank])
        if name.endswith("affine"):
            torch.testing.assert_close(one.bias(rank), two.bias(rank))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["loss_aware", "loss_aware_affine"])
def test_energies_beyond_a_rank_sum_to_the_rise_of_the_loss(
    name: str, shape: tuple[int, int]
) -> None:
    weight, x, g = problem(*shape)
    side = "output" if shape[0] <= shape[1] else "input"
    factors = solved(name, weight, moment(weight, x, g, side))
    for rank in (1, 3, 6):
        left = float(factors.energy[rank:].sum())
        assert error_of(factors, rank, weight, x, g) == pytest.approx(left, rel=1e-5, abs=1e-7)


def test_gradients_equal_in_all_directions_give_the_output_projection() -> None:
    weight, x, _ = problem(6, 8)
    g = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q * 6**0.5
    ours = solved("loss_aware", weight, moment(weight, x, g, "output"))
    theirs = PROJECTIONS["output"](weight, moment(weight, x, g, "output"))
    for rank in (1, 4):
        torch.testing.assert_close(
            ours.u[:, :rank] @ ours.v[:rank], theirs.u[:, :rank] @ theirs.v[:rank]
        )


def test_missing_gradients_are_an_error() -> None:
    weight, x, g = problem(6, 8)
    bare = replace(moment(weight, x, g, "output"), gradient=None)
    with pytest.raises(ValueError, match="needs moments of the gradients; calibrate for it again"):
        PROJECTIONS["loss_aware"](weight, bare)


@pytest.mark.parametrize(("examples", "p"), [(10, 5), (500, 5), (40, 30)])
def test_the_damping_is_oracle_approximating_shrinkage(examples: int, p: int) -> None:
    draws = torch.randn(examples, p, dtype=torch.float64) * torch.arange(1, p + 1)
    s = draws.T @ draws / examples
    # Eq. 23 of arXiv:0907.4698, as it stands there.
    a = (1 - 2 / p) * (s @ s).trace() + s.trace() ** 2
    b = (examples + 1 - 2 / p) * ((s @ s).trace() - s.trace() ** 2 / p)
    rho = float(min(a / b, torch.tensor(1.0)))
    assert shrinkage(s, examples) == pytest.approx(min(1.0, rho / (1 - rho)) if rho < 1 else 1.0)


def test_damping_falls_with_examples_and_is_full_for_a_zero_moment() -> None:
    s = torch.diag(torch.arange(1.0, 9.0))
    found = [shrinkage(s, examples) for examples in (4, 40, 400, 4000)]
    assert found == sorted(found, reverse=True) and found[-1] < 0.01
    assert shrinkage(torch.zeros(4, 4), 100) == 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["loss_aware", "loss_aware_affine", "output"])
def test_a_rank_limit_gives_the_first_directions_of_the_whole(name: str, shape: tuple) -> None:
    weight, x, g = problem(*shape)
    seen = moment(weight, x, g, "output" if shape[0] <= shape[1] else "input")
    project = get_projection(name, DAMPING)
    whole, part = project(weight, seen), project(weight, seen, 3)
    assert part.u.shape == (shape[0], 3) and part.v.shape == (3, shape[1])
    for one, other in ((part.u, whole.u[:, :3]), (part.v, whole.v[:3])):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert torch.equal(part.energy, whole.energy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["loss_aware", "loss_aware_affine"])
@pytest.mark.parametrize(("shape", "side"), [((24, 36), "output"), ((36, 24), "input")])
def test_weights_of_less_precision_change_factors_by_rounding(
    shape: tuple[int, int], side: Side, name: str, dtype: torch.dtype
) -> None:
    weight, x, g = problem(*shape)
    weight = weight.to(dtype)
    seen = moment(weight.double(), x, g, side)
    exact, rounded = solved(name, weight.double(), seen), solved(name, weight, seen)
    assert rounded.u.dtype == rounded.v.dtype == torch.float64
    torch.testing.assert_close(rounded.energy, exact.energy, rtol=1e-5, atol=1e-5)
    for rank in (3, 12, 24):
        close, expected = (one.u[:, :rank] @ one.v[:rank] for one in (rounded, exact))
        assert (close - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("shape", "side"), [((24, 36), "output"), ((36, 24), "input")])
@pytest.mark.parametrize("tokens", [0, 5])
def test_all_directions_make_the_weight_also_where_inputs_never_occurred(
    shape: tuple[int, int], side: Side, tokens: int, dtype: torch.dtype
) -> None:
    """An expert that no token, or few, came to."""
    weight, x, g = problem(*shape)
    x, g = (z[: max(tokens, 1)] * (tokens > 0) for z in (x, g))
    factors = solved("loss_aware", weight.to(dtype), moment(weight, x, g, side))
    torch.testing.assert_close(factors.u @ factors.v, weight, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("shape", "side"), [((24, 36), "output"), ((36, 24), "input")])
def test_weights_of_a_model_in_training_have_factors(shape: tuple[int, int], side: Side) -> None:
    weight, x, g = problem(*shape)
    seen = moment(weight, x, g, side)
    parameter = torch.nn.Parameter(weight.float())
    with one_thread_each():
        factors = solved("loss_aware", parameter, seen)
    expected = solved("loss_aware", parameter.detach(), seen)
    torch.testing.assert_close(factors.energy.detach(), expected.energy)
