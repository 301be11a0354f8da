"""Streaming calibration gives the moments of the whole model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from models import (
    tiny_gemma2,
    tiny_gemma3,
    tiny_gpt2,
    tiny_gpt_neox,
    tiny_llama,
    tiny_llama_tied,
    tiny_mistral,
    tiny_mixtral,
    tiny_opt,
    tiny_phi3,
    tiny_qwen3,
)
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from sieve.bank.bank import Bank, finish, fit, fit_blocks, unfinished
from sieve.bank.solver import Solver
from sieve.calibration.calibration import CalibrationModule
from sieve.model.matrices import Matrix, block_of, find_matrices
from sieve.projections import get_projection
from sieve.projections.moments import Moments, StoredMoments
from sieve.streaming.blocks import BlockModel
from sieve.streaming.checkpoint import Checkpoint
from sieve.streaming.hidden_states import hidden_states
from sieve.streaming.streaming import StreamingModule

BUILDS = [
    tiny_llama,
    tiny_llama_tied,
    tiny_mistral,
    tiny_qwen3,
    tiny_gemma2,
    tiny_gemma3,
    tiny_phi3,
    tiny_gpt2,
    tiny_gpt_neox,
    tiny_opt,
]


def batches(count: int = 3) -> list[dict[str, torch.Tensor]]:
    """Rows of tokens, left-padded; the last two positions predict an answer."""
    rows = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, 300, (3, 10), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, : 2 + seed] = 0
        targets = torch.full_like(ids, -100)
        targets[:, -2:] = torch.randint(3, 300, (3, 2), generator=generator)
        rows.append(
            {
                "input_ids": ids,
                "attention_mask": mask,
                "targets": targets,
                "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
            }
        )
    return rows


def streamed(folder: Path, head: bool = False, kind: Any = AutoModelForCausalLM) -> BlockModel:
    config = AutoConfig.from_pretrained(folder)
    prefix = kind._model_mapping[type(config)].base_model_prefix
    return BlockModel(
        lambda: kind.from_config(config).eval(),
        Checkpoint(folder, prefix),
        torch.device("cpu"),
        torch.float32,
        head,
    )


def saved(build: Any, folder: Path) -> Any:
    """A tiny model, and the same on disk in many files."""
    model = build().eval().requires_grad_(False)
    model.save_pretrained(folder, max_shard_size="20KB")
    return model


def stream(
    blocks: BlockModel,
    data: list[Any],
    folder: Path,
    projection: str = "output",
    in_memory: bool = False,
    **options: Any,
) -> StoredMoments:
    """Streamed moments, a file in `folder` for each block."""
    needs, paths = get_projection(projection).needs, list[Path]()
    options = {"answers": "margin", "weighting": needs.weighting} | options

    def save(moments: Moments, matrices: list[Matrix]) -> None:
        paths.append(folder / f"moments.{block_of(matrices[0].name)}.safetensors")
        moments.save(paths[-1])

    with hidden_states(None if in_memory else folder) as hidden:
        module = StreamingModule(blocks, data, hidden, save, needs, **options)
        for step in module.steps():
            module.predict_step(step)
    return StoredMoments(paths)


def whole(
    model: Any,
    projection: str,
    head: bool = False,
    weighting: str | None = None,
    data: Sequence[Any] | None = None,
) -> Moments:
    needs = get_projection(projection).needs
    module = CalibrationModule(
        model, find_matrices(model, head), needs, "margin", weighting or needs.weighting
    )
    for batch in data or batches():
        module.predict_step(batch)
    return module.collector.moments()


def assert_same(ours: StoredMoments, theirs: Moments, blocks: BlockModel) -> None:
    for matrix in blocks.matrices:
        a, b = ours.of(matrix), theirs.of(matrix)
        assert (a.side, a.count) == (b.side, b.count)
        for one, other in ((a.second, b.second), (a.mean, b.mean), (a.magnitude, b.magnitude)):
            if other is not None:
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * float(b.second.max()))
        if b.gradient:
            assert a.gradient
            largest = float(b.gradient.second.abs().max())
            torch.testing.assert_close(
                a.gradient.second, b.gradient.second, rtol=1e-5, atol=1e-6 * largest
            )
            assert a.gradient.power == pytest.approx(b.gradient.power, rel=1e-5)


@pytest.mark.parametrize(
    ("build", "projection"), [(tiny_llama, "output"), *((build, "loss_aware") for build in BUILDS)]
)
def test_streamed_moments_are_those_of_the_whole_model(
    build: Any, projection: str, tmp_path: Path
) -> None:
    model = saved(build, tmp_path / "model")
    blocks = streamed(tmp_path / "model")
    assert blocks.matrices == find_matrices(model)
    found = stream(blocks, batches(), tmp_path / "moments", projection)
    assert_same(found, whole(model, projection), blocks)


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_streamed_classifiers_read_their_last_token_before_the_padding(
    build: Any, tmp_path: Path
) -> None:
    config = build().config
    config.pad_token_id, config.num_labels = 0, 2
    model = AutoModelForSequenceClassification.from_config(config).eval().requires_grad_(False)
    model.save_pretrained(tmp_path / "model")
    data = batches()
    for batch in data:
        batch["attention_mask"] = batch["attention_mask"].flip(1)
        batch["input_ids"] *= batch["attention_mask"]
        batch["targets"][:] = -100
        batch["targets"][:, -1] = 1
        del batch["position_ids"]
    blocks = streamed(tmp_path / "model", kind=AutoModelForSequenceClassification)
    moments = stream(blocks, data, tmp_path / "moments", "loss_aware")
    assert_same(moments, whole(model, "loss_aware", data=data), blocks)


@pytest.mark.parametrize(
    ("weighting", "in_memory"), [("none", False), ("answer", False), ("position", True)]
)
def test_weightings_and_the_head_can_be_streamed(
    weighting: str, in_memory: bool, tmp_path: Path
) -> None:
    model = saved(tiny_llama, tmp_path / "model")
    blocks = streamed(tmp_path / "model", head=True)
    found = stream(
        blocks, batches(), tmp_path / "moments", "output", in_memory, weighting=weighting
    )
    assert_same(found, whole(model, "output", True, weighting), blocks)


def test_only_the_current_block_has_weights(tmp_path: Path) -> None:
    saved(lambda: tiny_llama(num_hidden_layers=4), tmp_path / "model")
    blocks = streamed(tmp_path / "model")
    loaded: list[list[str]] = []

    class Watched(StreamingModule):
        def _collecting(self, collector: Any, batch: object) -> Any:
            if collector is not None:
                paths = [p for p in blocks.paths if has_weights(blocks.model.get_submodule(p))]
                loaded.append(paths)
            return super()._collecting(collector, batch)

    with hidden_states(tmp_path) as hidden:
        needs = get_projection("loss_aware").needs
        module = Watched(blocks, batches(), hidden, lambda *_: None, needs, "margin", "gradient")
        for step in module.steps():
            module.predict_step(step)
        assert not list((tmp_path).glob(".hidden.*/[0-9]*"))
    assert loaded and all(len(paths) == 1 for paths in loaded)
    assert not any(has_weights(blocks.model.get_submodule(p)) for p in blocks.paths)
    assert not list(tmp_path.glob(".hidden.*"))


def has_weights(module: nn.Module) -> bool:
    return any(not parameter.is_meta for parameter in module.parameters())


def test_a_bank_fitted_block_by_block_equals_the_bank_of_the_whole_model(tmp_path: Path) -> None:
    model = saved(tiny_llama, tmp_path / "model")
    blocks = streamed(tmp_path / "model")
    moments = stream(blocks, batches(), tmp_path / "moments", "loss_aware")
    solver = Solver(
        blocks.model,
        moments,
        "loss_aware",
        dtype=torch.float32,
        device=torch.device("cpu"),
        matrix_list=blocks.matrices,
    )
    folder = tmp_path / "bank"
    for rank in (1, 0):  # Two processes, one after the other.
        fit_blocks(solver, folder, "key", blocks.paths, rank, 2, blocks.loaded)
    with pytest.raises(ValueError, match=r"bank is not finished.*to resume"):
        Bank.load(folder)
    assert unfinished(solver, folder) == []
    finish(solver, folder)
    ours, theirs = Bank.load(folder), fit(model, moments, "loss_aware")
    assert ours.names == theirs.names and ours.sizing == theirs.sizing
    for name in ours.names:
        for part in ("u", "v", "energy", "mean"):
            one, other = (getattr(bank.factors[name], part) for bank in (ours, theirs))
            assert torch.equal(one, other)


def test_a_killed_fit_resumes_with_the_blocks_that_are_missing(tmp_path: Path) -> None:
    model = tiny_llama(num_hidden_layers=3)
    moments = whole(model, "output")
    solver = Solver(model, moments)
    paths = unfinished(solver, tmp_path)
    fit_blocks(solver, tmp_path, "key", paths[:2])
    assert unfinished(solver, tmp_path) == paths[2:]
    torn = Bank.load(tmp_path / f"{paths[0]}.safetensors")  # Each file is a bank of its own.
    assert set(torn.names) == {m.name for m in solver.matrices if m.layer == 0}


def test_models_that_cannot_be_streamed_are_refused(tmp_path: Path) -> None:
    saved(tiny_llama, tmp_path / "model")
    blocks = streamed(tmp_path / "model")
    blocks.dtype = torch.float16
    with hidden_states() as hidden, pytest.raises(ValueError, match=r"float16.*Set model\.dtype"):
        StreamingModule(
            blocks, batches(), hidden, lambda *_: None, get_projection("loss_aware").needs
        )
    saved(tiny_mixtral, tmp_path / "mixture")
    with pytest.raises(ValueError, match=r"has no weights named.*calibration.strategy=whole"):
        stream(streamed(tmp_path / "mixture"), batches(), tmp_path / "moments")


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    model = tiny_llama().requires_grad_(False)
    name = find_matrices(model)[0].name
    model.get_submodule(name).weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=rf"{name}.weight are not finite"):
        stream(streamed(tmp_path / "model"), batches(), tmp_path / "moments")


def test_an_error_names_the_batch_and_rows_that_are_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tiny_llama, tmp_path / "model")
    blocks, data = streamed(tmp_path / "model"), batches()
    run, last = blocks.run, blocks.paths[-1]

    def breaks(number: int, hidden: Any, batch: Any) -> torch.Tensor:
        outputs = run(number, hidden, batch).clone()
        if blocks.paths[number] == last:
            outputs[0, 0] = torch.nan  # a padding token, which does not count
            if batch is data[1]:
                outputs[2, 4] = torch.inf
        return outputs

    monkeypatch.setattr(blocks, "run", breaks)
    said = (
        rf"calibration batch 1: the activations after {last} are not finite in 1 of 3 rows \(row 2,"
    )
    with pytest.raises(ValueError, match=said):
        stream(blocks, data, tmp_path / "moments")


@pytest.mark.slow
@pytest.mark.shared
def test_moments_of_a_trained_model_can_be_streamed(shared: Path, tmp_path: Path) -> None:
    projection = "loss_aware"
    folder = shared / "models" / "reader-6m"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    blocks = streamed(folder)
    found = stream(blocks, batches(), tmp_path / "moments", projection)
    theirs = whole(model.requires_grad_(False), projection)
    assert_same(found, theirs, blocks)
    # Norms are equal too; the tolerance above ignores small entries.
    for matrix in blocks.matrices:
        one, other = found.of(matrix).second, theirs.of(matrix).second
        assert torch.dist(one, other) <= 1e-5 * other.norm()
