"""Siblings that share one V: the best for all together, cheaper, and the same everywhere."""

from pathlib import Path
from typing import Any

import pytest
import torch
from brute_force import least
from models import tiny_gpt_neox, tiny_llama, tiny_qwen2, tiny_tokenizer
from sieved import logits, tokens
from transformers import AutoModelForCausalLM

import sieve
from sieve.bank.bank import Bank, fit
from sieve.bank.genome import Genome
from sieve.bank.merging import merge_dense
from sieve.bank.switch import Switch
from sieve.calibration.calibration import calibrate
from sieve.exports.export import export
from sieve.factorized.modeling_layers import FactorizedLinear, SharedLinear
from sieve.model.groups import siblings
from sieve.model.matrices import dense_weight, find_matrices
from sieve.projections import PROJECTIONS, get_projection
from sieve.projections.joint import stacked
from sieve.projections.moments import Gradient, Moment, Moments, Needs
from sieve.refit.refit import refit
from sieve.refit.token_weights import token_weights
from sieve.search.waterfill import estimated_rise, genome_of_ranks, waterfill

BUILDS = [tiny_llama, tiny_qwen2]
BATCHES = [{"input_ids": tokens(4, 16, seed)} for seed in range(8)]


def banked(model, projection: str = "loss_aware", storage: str = "pivoted") -> tuple[Bank, Moments]:
    needs = PROJECTIONS[projection].needs
    needs = Needs(input=True, magnitude=needs.magnitude, gradient=needs.gradient)
    moments = calibrate(model, BATCHES, needs=needs, weighting=needs.weighting)
    return fit(model, moments, projection, storage, joint=True), moments


def shared_genome(bank: Bank, rank: int) -> Genome:
    """The first block's groups share, the rest of the model is at half its ranks."""
    ranks: dict[str, int | None] = {m.name: bank.factors[m.name].rank // 2 for m in bank.matrices}
    ranks |= {g.name: rank if g.layer == 0 else None for g in bank.groups}
    return genome_of_ranks(bank, ranks)


def test_groups_are_the_readers_of_one_input() -> None:
    groups = siblings(find_matrices(tiny_llama()))
    assert [g.kind for g in groups] == ["q+k+v", "gate+up"] * 2
    assert groups[0].d_out == sum(
        m.d_out for m in find_matrices(tiny_llama()) if m.name in groups[0].members
    )
    assert all(len(set(g.members)) == len(g.members) for g in groups)
    assert siblings(find_matrices(tiny_gpt_neox())) == []  # Each block reads twice, differently.


@pytest.mark.parametrize("projection", ["output", "whitened"])
def test_the_shared_map_is_the_best_of_its_rank_for_all_outputs_together(projection: str) -> None:
    model = tiny_llama()
    bank, moments = banked(model, projection)
    group = bank.groups[0]
    members = [m for m in bank.matrices if m.name in group.members]
    weight = torch.cat([dense_weight(model.get_submodule(m.name)) for m in members]).double()
    second = moments.of(members[0]).second.double()
    values, axes = torch.linalg.eigh(second)
    root = axes * values.clamp_min(0).sqrt()
    for rank in (1, 5, 12):
        factors = bank.factors[group.name].cut(rank)
        error = weight - factors.u.double() @ factors.v.double()
        found = ((error @ second) * error).sum()
        best = torch.linalg.svdvals(weight @ root)[rank:].square().sum()
        torch.testing.assert_close(found, best, rtol=1e-4, atol=1e-9)


@pytest.mark.slow
def test_loss_aware_sharing_weights_every_member_by_its_own_gradients() -> None:
    """Against LBFGS on ½ Σ tr((Wᵢ − Uᵢ V) C (Wᵢ − Uᵢ V)ᵀ Hᵢ), in float64."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = [drawn(9, 6), drawn(5, 6)]
    second = (lambda x: x.T @ x / 50)(drawn(50, 6))
    metrics = [(lambda g: g.T @ g / 50)(scale * drawn(50, n)) for n, scale in ((9, 1), (5, 3))]
    wide = weights[0].T @ metrics[0] @ weights[0]  # The taller one's gradients are of its input.
    gradients = [
        Gradient("input", wide, float(metrics[0].trace()), 50),
        Gradient("output", metrics[1], float(metrics[1].trace()), 50),
    ]
    moments = [Moment("input", second, torch.zeros(6), 50, None, g) for g in gradients]
    whole, moment = stacked(weights, moments)
    factors = get_projection("loss_aware", damping=0.0)(whole, moment).cut(2)

    def rise(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        errors = [w - part @ v for w, part in zip(weights, u.split([9, 5]), strict=True)]
        parts = [((h @ e) * (e @ second)).sum() for h, e in zip(metrics, errors, strict=True)]
        return torch.stack(parts).sum() / 2

    ours = rise(factors.u, factors.v)
    torch.testing.assert_close(ours, factors.energy[2:].sum(), rtol=1e-6, atol=0)
    assert float(ours) == pytest.approx(least(rise, (14, 2), (2, 6)), rel=1e-6)


def test_what_each_member_saw_counts_by_the_power_of_its_gradients() -> None:
    seen = [torch.eye(3).double() * scale for scale in (1, 5)]
    moments = [
        Moment(
            "input",
            second,
            second.diagonal(),
            50,
            None,
            Gradient("output", torch.eye(3).double(), power, 50),
        )
        for second, power in zip(seen, (1.0, 3.0), strict=True)
    ]
    _, moment = stacked([torch.eye(3).double()] * 2, moments)
    torch.testing.assert_close(moment.second, (1 * seen[0] + 3 * seen[1]) / 4)
    torch.testing.assert_close(moment.mean, moment.second.diagonal())
    assert moment.gradient is not None and moment.gradient.power == 4


@pytest.mark.parametrize("storage", ["plain", "pivoted"])
@pytest.mark.parametrize("build", BUILDS)
def test_stored_shared_layers_compute_the_map_and_are_counted(build, storage: str) -> None:
    model = build()
    bank, _ = banked(model, storage=storage)
    genome = shared_genome(bank, 7)
    wanted = logits(model)
    with Switch(model, bank, as_stored=False).to(genome):
        views = logits(model)
    with sieve.apply(model, bank, genome):
        stored = logits(model)
        layers = {n: m for n, m in model.named_modules() if isinstance(m, FactorizedLinear)}
        numbers = {id(p): p for layer in layers.values() for p in layer.parameters()}
        weights = sum(p.numel() for p in numbers.values() if p.ndim == 2)
        shared = {id(m) for m in model.modules() if isinstance(m, SharedLinear)}
        assert len(shared) == 2
    torch.testing.assert_close(stored, views, rtol=1e-3, atol=1e-3)
    assert (views - wanted).abs().max() > 1e-2
    assert torch.equal(logits(model), wanted)
    dense = sum(m.size for m, rank in bank.in_use(genome).items() if rank is None)
    assert weights + dense == bank.kept_parameters(genome)


@pytest.mark.parametrize("build", BUILDS)
def test_one_v_is_computed_once_per_pass(build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    bank, _ = banked(model)
    calls = []
    with sieve.apply(model, bank, shared_genome(bank, 7)):
        (first, *_) = (m for m in model.modules() if isinstance(m, SharedLinear))
        inner = torch.nn.functional.linear

        def counted(x, weight, *rest):
            calls.extend([1] if weight is first.weight else [])
            return inner(x, weight, *rest)

        monkeypatch.setattr(torch.nn.functional, "linear", counted)
        one, two = logits(model, tokens(2, 8, 1)), logits(model, tokens(2, 8, 2))
        assert first._last is None  # Nothing is held on to.
    assert len(calls) == 2
    assert not torch.equal(one, two)


@pytest.mark.parametrize("form", ["factorized", "dense"])
@pytest.mark.parametrize("storage", ["plain", "pivoted"])
@pytest.mark.parametrize("build", BUILDS)
def test_an_export_holds_it_once_and_loads(build, storage: str, form: str, tmp_path: Path) -> None:
    model = build()
    bank, _ = banked(model, storage=storage)
    genome = shared_genome(bank, 7)
    with sieve.apply(model, bank, genome):
        wanted = logits(model)
        path = export(model, tiny_tokenizer(), tmp_path / "once", form)
    loaded = AutoModelForCausalLM.from_pretrained(path)
    torch.testing.assert_close(logits(loaded), wanted, rtol=1e-4, atol=1e-4)
    if form == "factorized":
        held = sum(p.numel() for n, p in loaded.named_parameters() if "factor_" in n and p.ndim > 1)
        dense = sum(m.size for m, rank in bank.in_use(genome).items() if rank is None)
        assert held + dense == bank.kept_parameters(genome)
        again = export(loaded, tiny_tokenizer(), tmp_path / "again", form)
        twice = AutoModelForCausalLM.from_pretrained(again)
        torch.testing.assert_close(logits(twice), wanted, rtol=1e-4, atol=1e-4)
        merge_dense(loaded)
        torch.testing.assert_close(logits(loaded), wanted, rtol=1e-4, atol=1e-4)


def test_a_bank_with_groups_survives_its_file(tmp_path: Path) -> None:
    bank, _ = banked(tiny_llama())
    bank.save(tmp_path / "bank.safetensors")
    again = Bank.load(tmp_path / "bank.safetensors")
    assert (again.groups, again.matrices) == (bank.groups, bank.matrices)
    assert again.names == bank.names
    genome = shared_genome(bank, 7)
    assert again.kept_parameters(genome) == bank.kept_parameters(genome)
    assert again.only(genome).factors[bank.groups[0].name].rank == 7
    assert again.only(genome).factors[bank.groups[0].members[0]].rank == 0


@pytest.mark.parametrize("projection", ["loss_aware", "output"])
def test_the_frontier_with_groups_is_never_worse_and_counts_what_the_bank_counts(
    projection: str,
) -> None:
    model = tiny_llama()
    bank, moments = banked(model, projection)
    normalize: Any = "none" if projection == "loss_aware" else "relative"
    apart = waterfill(fit(model, moments, projection, "pivoted"), normalize)
    frontier = waterfill(bank, normalize)
    used = 0
    for steps in range(0, len(frontier.changes) + 1, 5):
        genome = frontier.genome(steps)
        assert bank.ranks(genome) == frontier.ranks(steps)
        assert bank.kept_parameters(genome) == frontier.kept[steps]
        used += any(bank.ranks(genome)[g.name] is not None for g in bank.groups)
        if normalize == "none":
            total = estimated_rise(bank, genome)
            assert frontier.loss[steps] == pytest.approx(total, rel=1e-5, abs=1e-9)
    assert used
    losses = [f.loss[f.steps_to(p)] for p in (0.8, 0.5, 0.2, 0.1) for f in (frontier, apart)]
    slack = max(frontier.loss) * 0.02  # Both stand on hulls, at slightly different sizes.
    assert all(a <= b + slack for a, b in zip(losses[::2], losses[1::2], strict=True))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("projection", ["loss_aware", "output"])
def test_refit_solves_what_is_shared_as_one(projection: str, weighted: bool) -> None:
    model = tiny_llama()
    bank, moments = banked(model, projection)
    ranks: dict[str, int | None] = dict.fromkeys(bank.names, 3)
    genome = genome_of_ranks(bank, ranks)
    weights = token_weights(model, bank.matrices, BATCHES) if weighted else None
    found = refit(model, bank, genome, moments, BATCHES, weights)
    groups = {g.name for g in bank.groups}
    assert groups & set(found.kept)
    assert not {m for g in bank.groups for m in g.members} & set(found.kept)
    assert found.after < found.before
