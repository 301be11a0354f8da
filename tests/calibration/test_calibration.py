"""Streaming moments against what the hooks see, in one piece and in float64."""

import pytest
import torch
from models import tiny_gpt2, tiny_llama
from torch import Tensor
from transformers import PreTrainedModel

from sieve.calibration.calibration import calibrate
from sieve.model.matrices import dense_weight, find_matrices
from sieve.projections.moments import Moments, plan_streams


def batches(seed: int = 0) -> list[dict[str, Tensor]]:
    """Three left-padded batches of different widths."""
    g = torch.Generator().manual_seed(seed)
    made = []
    for width in (9, 7, 5):
        mask = torch.ones(4, width, dtype=torch.long)
        mask[0, :3] = 0
        mask[2, :1] = 0
        made.append(
            {
                "input_ids": torch.randint(3, 40, (4, width), generator=g),
                "attention_mask": mask,
                "position_ids": (mask.cumsum(1) - 1).clamp_min(0),
            }
        )
    return made


def inputs_of(model: PreTrainedModel, name: str, data: list[dict[str, Tensor]]) -> Tensor:
    """Every input vector of a matrix at positions that are no padding, in float64."""
    rows: list[Tensor] = []
    mask = torch.empty(0)
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda _, args: rows.append(args[0][mask.bool()].double())
    )
    with torch.no_grad():
        for batch in data:
            mask = batch["attention_mask"]
            model(**batch, use_cache=False)
    handle.remove()
    return torch.cat(rows)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_moments_are_those_of_every_position_that_is_no_padding(make) -> None:
    model, data = make().eval(), batches()
    moments = calibrate(model, data)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in data)
    for matrix in find_matrices(model):
        x = inputs_of(model, matrix.name, data)
        moment = moments.of(matrix)
        weight = dense_weight(model.get_submodule(matrix.name)).double()
        z = x if moment.side == "input" else x @ weight.T
        assert moment.count == tokens == len(x)
        torch.testing.assert_close(moment.second.double(), z.T @ z / len(z), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(moment.mean.double(), z.mean(0), rtol=1e-4, atol=1e-5)
        mean = x.mean(0) @ weight.T
        torch.testing.assert_close(moment.output_mean(weight), mean, rtol=1e-4, atol=1e-5)


def test_how_rows_are_batched_does_not_matter() -> None:
    model, data = tiny_llama().eval(), batches()
    single = [{k: v[i : i + 1] for k, v in batch.items()} for batch in data for i in range(4)]
    whole, apart = calibrate(model, data), calibrate(model, single)
    for name, moment in whole.entries.items():
        torch.testing.assert_close(moment.second, apart.entries[name].second)


def test_siblings_share_one_moment_and_wide_matrices_keep_their_outputs() -> None:
    matrices = find_matrices(tiny_llama())
    streams = plan_streams(matrices)
    by_kind = {m.kind: m for m in matrices if m.layer == 0}
    assert by_kind["k"].source == by_kind["v"].source == by_kind["q"].name
    assert streams[by_kind["q"].name] == ("input", by_kind["q"].d_in)
    assert by_kind["k"].name not in streams
    assert streams[by_kind["down"].name] == ("output", by_kind["down"].d_out)
    square = by_kind["o"]
    assert square.d_out == square.d_in and streams[square.name] == ("output", square.d_out)


def test_calibration_runs_under_inference_mode() -> None:
    model = tiny_llama().eval()
    with torch.inference_mode():
        moments = calibrate(model, batches())
    assert moments.tokens == calibrate(model, batches()).tokens


def test_the_model_is_left_without_hooks() -> None:
    model = tiny_llama().eval()
    calibrate(model, batches())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_activations_that_are_not_finite_are_named() -> None:
    model = tiny_llama().eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("inf"))
    with pytest.raises(ValueError, match=r"activations at .*q_proj are not finite"):
        calibrate(model, batches())


def test_no_token_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="saw no token"):
        calibrate(tiny_llama(), [])


def test_moments_survive_their_file_and_a_torn_file_is_named(tmp_path) -> None:
    moments = calibrate(tiny_llama().eval(), batches())
    path = tmp_path / "m.safetensors"
    moments.save(path)
    again = Moments.load(path)
    for name, moment in moments.entries.items():
        assert torch.equal(again.entries[name].second, moment.second)
        assert again.entries[name].count == moment.count
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"m\.safetensors is damaged"):
        Moments.load(path)
