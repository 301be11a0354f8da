"""Refit lowers the error on what the pruned model sees, and only then changes anything."""

import dataclasses
import gc
import math
import sys
import weakref

import pytest
import torch
from models import tiny_gemma2, tiny_gpt2, tiny_gpt_neox, tiny_llama, tiny_odd, tiny_opt
from sieved import logits, mixed, tokens, uniform
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorDeviceMismatchError,
    FakeTensorMode,
)

from sieve.bank.bank import BankFactors, fit
from sieve.bank.switch import Switch
from sieve.calibration.calibration import calibrate
from sieve.data.batches import held_out_batches
from sieve.factorized.modeling_layers import skipped
from sieve.model.matrices import dense_weight, find_matrices
from sieve.projections import PROJECTIONS, get_projection
from sieve.projections.moments import Gradient, Moment, Side
from sieve.refit.blocks import stream_writers
from sieve.refit.paired import Paired, held_out_error, solve
from sieve.refit.refit import _Sequence, refit
from sieve.refit.token_weights import token_weights
from sieve.search.space import genome_of_levels


def batches() -> list[dict[str, Tensor]]:
    made = []
    for seed in range(8):
        ids = tokens(4, 16, seed)
        mask = torch.ones_like(ids)
        mask[0, :4] = 0
        made.append({"input_ids": ids, "attention_mask": mask})
    return made


def setting(build, projection: str, weighting: str = "none"):
    model = build()
    needs = get_projection(projection).needs
    moments = calibrate(model, batches(), needs=needs, weighting=weighting)
    return model, fit(model, moments, projection, "pivoted"), moments


@pytest.mark.parametrize("projection", ["output", "affine", "loss_aware", "asvd"])
@pytest.mark.parametrize("build", [tiny_llama, tiny_odd])
def test_a_refit_brings_the_model_nearer_to_the_dense_one(build, projection: str) -> None:
    model, bank, moments = setting(build, projection)
    genome = uniform(bank, 0.3)
    wanted = logits(model)
    with Switch(model, bank, as_stored=False).to(genome):
        before = logits(model)
    found = refit(model, bank, genome, moments, batches())
    assert torch.equal(logits(model), wanted)  # The model comes back dense.
    assert found.kept
    with Switch(model, found.bank, as_stored=False).to(found.genome):
        after = logits(model)
    assert (after - wanted).norm() < (before - wanted).norm()
    assert found.bank.kept_parameters(found.genome) == bank.kept_parameters(genome)


def test_a_refit_is_deterministic_and_follows_the_token_weights() -> None:
    model, bank, moments = setting(tiny_llama, "loss_aware", "gradient")
    weights = token_weights(model, bank.matrices, batches())
    assert {len(w) for w in weights[bank.names[0]]} == {60}
    alike = token_weights(model, bank.matrices, batches(), "position")
    for given, wanted in zip(alike[bank.names[0]], weights[bank.names[0]], strict=True):
        rows = torch.cat([torch.zeros(4), torch.ones(60)]).bool()  # The first row's padding.
        spread = torch.zeros(64).masked_scatter(rows, wanted).view(4, 16).sum(0)
        counts = rows.view(4, 16).sum(0)
        torch.testing.assert_close(given, (spread / counts).expand(4, 16).flatten()[rows])
    genome = mixed(bank)
    one, two = (refit(model, bank, genome, moments, batches(), weights) for _ in range(2))
    assert one.kept == two.kept
    for name in one.kept:
        assert torch.equal(one.bank.factors[name].u, two.bank.factors[name].u)
    other = refit(model, bank, genome, moments, batches())
    assert any(not torch.equal(one.bank.factors[n].v, other.bank.factors[n].v) for n in one.kept)


def test_for_equal_inputs_the_solution_is_the_projection_itself() -> None:
    model, bank, moments = setting(tiny_llama, "output")
    pair = Paired.zeros(32, torch.device("cpu"))
    x = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    pair.add(x, x, None)
    name = bank.names[0]
    weight = dense_weight(model.get_submodule(name)).double()
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
    for name in ("inner", "change", "inner_mean", "own_mean"):
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


def test_one_batch_of_four_is_held_out_and_a_single_one_is_refused() -> None:
    assert held_out_batches(9) == [i in (3, 7) for i in range(9)]
    assert held_out_batches(2) == [False, True]
    with pytest.raises(ValueError, match="got 1 calibration batch, expected at least 2"):
        held_out_batches(1)


@pytest.mark.parametrize("residual", [False, True])
def test_a_refit_leaves_removed_units_out_and_solves_the_rest(residual: bool) -> None:
    model, bank, moments = setting(tiny_llama, "output")
    levels = [0.0 if m.kind == "o" and m.layer == 0 else 0.3 for m in bank.matrices]
    genome = genome_of_levels(bank, levels)
    refitted = refit(model, bank, genome, moments, batches(), residual=residual)
    assert refitted.kept and refitted.after < refitted.before
    unneeded = bank.unneeded(genome)
    assert len(unneeded) == 3 and unneeded.isdisjoint(refitted.kept)
    assert not skipped(model)


def test_sums_are_freed_as_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the last matrix of an input is solved, the sums that it was solved from are gone."""
    model = tiny_llama()
    moments = calibrate(model, batches(), needs=get_projection("loss_aware").needs)
    bank = fit(model, moments, "loss_aware")
    sums, alive = weakref.WeakSet[Tensor](), list[int]()

    class Watched(Paired):
        @classmethod
        def zeros(cls, *args: object) -> Paired:
            made = Paired.zeros(*args)
            sums.add(made.inner)
            return made

    def watched(weight: Tensor, *given: object) -> object:
        gc.collect()
        alive.append(len(sums))
        return solve(weight, *given)

    monkeypatch.setattr("sieve.refit.refit.Paired", Watched)
    monkeypatch.setattr("sieve.refit.refit.solve", watched)
    weights = token_weights(model, bank.matrices, batches(), answers="gold")
    refit(model, bank, uniform(bank, 0.3), moments, batches(), weights)
    # Of q, k and v, then o, gate and up, and down: those to fit, but for what was used, and others.
    assert alive == [5, 3, 1, 1, 3, 1, 1] * 2


def test_dense_matrices_are_not_refitted() -> None:
    model, bank, moments = setting(tiny_llama, "output")
    found = refit(model, bank, mixed(bank, (1.0, 0.3)), moments, batches())
    dense = {m.name for i, m in enumerate(find_matrices(model)) if i % 2 == 0}
    assert not dense & set(found.kept)


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


@pytest.mark.parametrize(
    ("build", "leaves"),
    [
        (tiny_llama, {"o_proj", "down_proj"}),
        (tiny_gpt2, {"c_proj"}),
        (tiny_gpt_neox, {"dense"}),
        (tiny_opt, {"out_proj", "fc2"}),
        (tiny_gemma2, set()),
    ],
)
def test_trials_find_the_matrices_that_write_to_the_residual_stream(
    build, leaves: set[str], monkeypatch
) -> None:
    model, bank, moments = setting(build, "output")
    found: set[str] = set()

    def recorded(*args) -> list[str]:
        names = stream_writers(*args)
        found.update(names)
        return names

    monkeypatch.setattr(sys.modules[refit.__module__], "stream_writers", recorded)
    refit(model, bank, uniform(bank, 0.3), moments, batches(), residual=True)
    kinds = {"o", "down"} if leaves else set()
    assert found == {m.name for m in bank.matrices if m.kind in kinds}


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2, tiny_gpt_neox])
@pytest.mark.parametrize("projection", ["output", "affine"])
def test_the_loss_of_the_stream_is_exact_at_the_end_of_each_block(
    build, projection: str, monkeypatch
) -> None:
    model, bank, moments = setting(build, projection)
    sequence = _Sequence(
        Switch(model, bank, as_stored=False).to(uniform(bank, 0.3)),
        uniform(bank, 0.3),
        moments,
        None,
        held_out_batches(8),
        residual=True,
    )
    ends: list[list[Tensor]] = []
    starts: dict[int, list[Tensor]] = {}
    refit_group = sequence._refit_group

    def at_the_start(*args) -> list[str]:
        ends.append(list(sequence.lost))  # As followed through the block before.
        return stream_writers(*args)

    def in_between(*args) -> None:
        starts.setdefault(len(ends) - 1, list(sequence.lost))  # Dense minus pruned, as they are.
        refit_group(*args)

    monkeypatch.setattr(sys.modules[refit.__module__], "stream_writers", at_the_start)
    monkeypatch.setattr(sequence, "_refit_group", in_between)
    sequence.run(batches())
    sequence.switch.restore()
    assert len(ends) > 1
    for block in range(1, len(ends)):
        for followed, true in zip(ends[block], starts[block], strict=True):
            torch.testing.assert_close(followed, true, rtol=1e-3, atol=1e-4)
            assert true.abs().max() > 1e-2
