"""Gradient moments against plain automatic differentiation, one row at a time."""

import copy
from typing import Any

import lightning as L
import pytest
import torch
from models import tiny_gpt2, tiny_llama
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from sieve.calibration.answer_loss import answer_loss, log_odds
from sieve.calibration.calibration import CalibrationModule, calibrate
from sieve.data.batches import as_targets
from sieve.model.matrices import dense_weight, find_matrices
from sieve.projections.moments import WEIGHTINGS, Needs, gradient_side

ALL = Needs(input=True, magnitude=True, gradient=True)


def batches() -> list[dict[str, Tensor]]:
    """Two left-padded batches whose last one or two tokens are predicted."""
    g = torch.Generator().manual_seed(3)
    made = []
    for width in (9, 6):
        ids = torch.randint(3, 300, (4, width), generator=g)
        mask = torch.ones_like(ids)
        mask[0, :3] = 0
        targets = torch.full_like(ids, -100)
        targets[:, -1] = torch.randint(3, 300, (4,), generator=g)
        targets[1, -2] = 7
        position_ids = (mask.cumsum(1) - 1).clamp_min(0)
        made.append(
            {
                "input_ids": ids,
                "attention_mask": mask,
                "position_ids": position_ids,
                "targets": targets,
            }
        )
    return made


def reference(model: PreTrainedModel, answers: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs x (tokens, d_in) and gradients g (tokens, d_out) of every matrix, in float64."""
    model = copy.deepcopy(model).double().requires_grad_(True)
    names = [matrix.name for matrix in find_matrices(model)]
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    for batch in batches():
        for row in range(len(batch["input_ids"])):
            keep = batch["attention_mask"][row].bool()
            held: dict[str, tuple[Tensor, Tensor]] = {}
            handles = [
                model.get_submodule(name).register_forward_hook(
                    lambda _m, args, y, name=name, held=held: held.update({name: (args[0], y)})
                )
                for name in names
            ]
            ids = batch["input_ids"][row][keep][None]
            logits = model(input_ids=ids, use_cache=False).logits
            for handle in handles:
                handle.remove()
            targets = batch["targets"][row][keep]
            wanted = targets >= 0
            if answers == "gold":
                loss = torch.nn.functional.cross_entropy(
                    logits[0, wanted], targets[wanted], reduction="sum"
                )
            else:
                p = logits[0, wanted].softmax(-1).max(-1).values
                loss = -torch.asinh(torch.log(p / (1 - p))).sum()
            grads = torch.autograd.grad(loss, [held[name][1] for name in names])
            for name, g in zip(names, grads, strict=True):
                seen[name].append((held[name][0][0].detach(), g[0]))
    return {
        n: (torch.cat([a for a, _ in p]), torch.cat([b for _, b in p])) for n, p in seen.items()
    }


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("answers", ["gold", "margin"])
@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_they_are_those_of_every_row_by_itself(build, answers: str, weighting: str) -> None:
    model = build()
    moments = calibrate(model, batches(), needs=ALL, answers=answers, weighting=weighting)
    expected = reference(model, answers)
    rows = 8
    answer = torch.cat(
        [
            (batch["targets"][r] >= 0)[batch["attention_mask"][r].bool()]
            for batch in batches()
            for r in range(4)
        ]
    ).double()
    column = torch.cat(
        [
            100 * i + batch["attention_mask"][r].nonzero().squeeze(1)
            for i, batch in enumerate(batches())
            for r in range(4)
        ]
    )
    same = (column[:, None] == column).double()
    for matrix in find_matrices(model):
        x, g = expected[matrix.name]
        moment = moments.of(matrix)
        power = g.square().sum(1)
        w = {
            "none": torch.ones(len(x)),
            "answer": answer,
            "gradient": power,
            "position": same @ power / same.sum(1),
        }[weighting]
        w = (w / w.sum()).double()
        close(moment.second, x.T @ (x * w[:, None]))
        close(moment.mean, w @ x)
        close(moment.magnitude, x.abs().mean(0))
        gradient = moment.gradient
        assert gradient is not None and gradient.side == gradient_side(matrix)[0]
        assert gradient.examples == rows
        z = g
        if gradient.side == "input":
            z = g @ dense_weight(model.get_submodule(matrix.name)).double()
        close(gradient.second, z.T @ z / rows)
        assert gradient.power == pytest.approx(float(g.square().sum()) / rows, rel=1e-3)


def close(ours: Tensor | None, wanted: Tensor) -> None:
    assert ours is not None
    scale = float(wanted.abs().max())
    torch.testing.assert_close(ours.double(), wanted, rtol=1e-3, atol=2e-5 * scale)


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_computing_blocks_again_changes_nothing(build) -> None:
    model = build()
    options = {"needs": ALL, "answers": "gold", "weighting": "gradient"}
    plain = calibrate(model, batches(), **options)
    again = calibrate(model, batches(), checkpointing=True, **options)
    for name, moment in plain.entries.items():
        torch.testing.assert_close(again.entries[name].second, moment.second)
        assert again.entries[name].count == moment.count
    for name, gradient in plain.gradients.items():
        torch.testing.assert_close(again.gradients[name].second, gradient.second)


def test_weights_stay_frozen_and_no_hook_is_left() -> None:
    model = tiny_llama()
    calibrate(model, batches(), needs=ALL, checkpointing=True)
    for parameter in model.parameters():
        assert parameter.grad is None and not parameter.requires_grad
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any("forward" in vars(m) for m in model.modules())


def test_a_seed_draws_the_same_answers_and_another_seed_others() -> None:
    model = tiny_llama()
    a, b, c = (
        calibrate(model, batches(), needs=ALL, answers="sampled", seed=seed) for seed in (1, 1, 2)
    )
    name = next(iter(a.gradients))
    assert torch.equal(a.gradients[name].second, b.gradients[name].second)
    assert not torch.allclose(a.gradients[name].second, c.gradients[name].second)


def test_the_gradient_of_sampled_answers_is_zero_on_average() -> None:
    logits = torch.randn(1, 1, 6, generator=torch.Generator().manual_seed(0)).expand(20_000, 1, 6)
    logits = logits.clone().requires_grad_()
    targets = torch.zeros(20_000, 1, dtype=torch.long)
    answer_loss(logits, targets, "sampled", targets, 0).backward()
    assert logits.grad is not None
    # Of 20,000 draws the mean of each entry has a standard error below .0036.
    assert float(logits.grad.mean(0).abs().max()) < 0.015


def test_the_log_odds_are_those_of_the_likeliest_token() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 9.0]], dtype=torch.float64)
    p = logits.softmax(-1).max(-1).values
    torch.testing.assert_close(log_odds(logits), torch.log(p / (1 - p)))


def test_where_no_answer_is_named_every_next_token_is_one() -> None:
    ids = torch.tensor([[5, 6, 7, 8], [0, 0, 9, 10]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    wanted = torch.tensor([[6, 7, 8, -100], [-100, -100, 10, -100]])
    assert torch.equal(as_targets({"input_ids": ids, "attention_mask": mask}), wanted)


def test_it_runs_under_a_trainer_and_in_inference_mode() -> None:
    model = tiny_llama()
    wanted = calibrate(model, batches(), needs=ALL, answers="gold", weighting="gradient")
    module = CalibrationModule(model, None, ALL, "gold", "gradient")
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    held: Any = batches()  # A list is all the data set that a loader needs.
    trainer.predict(module, DataLoader(held, batch_size=None), return_predictions=False)
    assert module.moments is not None
    with torch.inference_mode():
        other = calibrate(model, batches(), needs=ALL, answers="gold", weighting="gradient")
    for name, gradient in wanted.gradients.items():
        for found in (module.moments, other):
            torch.testing.assert_close(found.gradients[name].second, gradient.second)


def test_in_float16_gradients_neither_vanish_nor_overflow() -> None:
    model = tiny_llama()
    wanted = calibrate(model, batches(), needs=ALL, answers="gold", weighting="gradient")
    found = calibrate(model.half(), batches(), needs=ALL, answers="gold", weighting="gradient")
    for name, gradient in wanted.gradients.items():
        ours = found.gradients[name].second
        error = float((ours - gradient.second).norm() / gradient.second.norm())
        assert error < 0.03, name


def test_moments_with_gradients_survive_their_file(tmp_path) -> None:
    from sieve.projections.moments import Moments

    moments = calibrate(tiny_llama(), batches(), needs=ALL)
    moments.save(tmp_path / "m.safetensors")
    again = Moments.load(tmp_path / "m.safetensors")
    for name, gradient in moments.gradients.items():
        other = again.gradients[name]
        assert torch.equal(other.second, gradient.second)
        assert (other.side, other.power, other.examples) == (
            gradient.side,
            gradient.power,
            gradient.examples,
        )
    for name, magnitude in moments.magnitudes.items():
        assert torch.equal(again.magnitudes[name], magnitude)


def test_sums_that_are_let_go_take_no_memory_and_change_no_average() -> None:
    model = tiny_llama()
    found = []
    for release in (False, True):
        module = CalibrationModule(model, needs=ALL)
        for batch in batches():
            module.predict_step(batch)
        found.append(module.collector.moments(release))
        metrics = [*module.collector.metrics, *module.collector.gradients]
        assert all(len(metric.second) == 0 for metric in metrics) == release
        # What they would be reset to is one number each.
        zeros = [zero for metric in metrics for zero in metric._defaults.values()]
        assert all(zero.untyped_storage().nbytes() <= 8 for zero in zeros)
    for name, moment in found[0].entries.items():
        assert torch.equal(moment.second, found[1].entries[name].second)
