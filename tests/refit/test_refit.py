"""Refit lowers the error on what the pruned model sees, and only then changes anything."""

import gc
import sys
import weakref

import pytest
import torch
from models import tiny_gemma2, tiny_gpt2, tiny_gpt_neox, tiny_llama, tiny_odd, tiny_opt
from sieved import logits, mixed, tokens, uniform
from torch import Tensor

from sieve.bank.bank import fit
from sieve.bank.switch import Switch
from sieve.calibration.calibration import calibrate
from sieve.data.batches import held_out_batches
from sieve.factorized.modeling_layers import skipped
from sieve.model.matrices import find_matrices
from sieve.projections import get_projection
from sieve.refit.blocks import stream_writers
from sieve.refit.paired import Paired, solve
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
