"""A model whose blocks are read while they run does what the whole model does."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import (
    tiny_gpt2,
    tiny_llama,
    tiny_llama_tied,
    tiny_qwen3,
    tiny_tokenizer,
)
from runs import finished, make_world
from sieved import banked, logits, mixed, tokens
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from sieve.bank.bank import Bank, fit
from sieve.bank.switch import Switch
from sieve.calibration.calibration import calibrate
from sieve.config import ModelConfig
from sieve.data.sharing import longest_exact_row
from sieve.distributed.sharding import whole_weight
from sieve.exports.export import export
from sieve.model.matrices import block_of, block_paths, find_matrices
from sieve.projections import get_projection
from sieve.refit.blocks import block_calls
from sieve.refit.refit import refit
from sieve.refit.token_weights import streamed_token_weights, token_weights
from sieve.streaming.hidden_states import hidden_states
from sieve.streaming.offloaded import in_memory, is_offloaded
from sieve.streaming.streamed_backbone import StreamedBackbone, load_streamed

FAMILIES = {
    "llama": tiny_llama,
    "tied": tiny_llama_tied,
    "gpt2": tiny_gpt2,
    "qwen3": tiny_qwen3,
}
CPU = torch.device("cpu")
BATCHES = [
    {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for ids in (tokens(4, 16, seed) for seed in range(12))
]


def refuse() -> Any:
    pytest.fail("the whole model was loaded")


def backbone(model: PreTrainedModel, folder: Path) -> StreamedBackbone:
    """The same model, written to a folder and read from there."""
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    config = ModelConfig(path=str(folder), dtype="float32")
    return load_streamed(config, CPU, False, refuse, only_runs=True)


def offloaded(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The same model, read from a folder block by block."""
    return backbone(model, folder).model


def held(model: PreTrainedModel) -> int:
    """Numbers of the blocks in memory."""
    blocks = [model.get_submodule(path) for path in block_paths(model)]
    return sum(p.numel() for block in blocks for p in block.parameters() if not p.is_meta)


def is_mapped(tensor: Tensor, folder: Path) -> bool:
    """Whether a tensor is a part of a file of a folder."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        if str(folder) in line and start <= tensor.data_ptr() < end:
            return True
    return False


@pytest.mark.parametrize("family", list(FAMILIES))
def test_it_computes_what_the_whole_model_does_and_holds_no_block(
    family: str, tmp_path: Path
) -> None:
    model = FAMILIES[family]()
    parts = offloaded(model, tmp_path / "model")
    assert is_offloaded(parts) and not is_offloaded(model)
    assert logits(parts).equal(logits(model))
    assert held(parts) == 0 < held(model)
    bank = banked(model)
    for genome in (mixed(bank), mixed(bank, (1.0, 0.3, 0.6, 0.0))):
        with Switch(model, bank).to(genome), Switch(parts, bank).to(genome):
            assert logits(parts).equal(logits(model))
    assert held(parts) == 0


@pytest.mark.parametrize("family", list(FAMILIES))
def test_dense_weights_can_be_read_outside_of_a_pass(family: str, tmp_path: Path) -> None:
    model = FAMILIES[family]()
    parts = offloaded(model, tmp_path / "model")
    for matrix in find_matrices(model):
        read, own = (whole_weight(m.get_submodule(matrix.name)) for m in (parts, model))
        assert read.equal(own)


@pytest.mark.parametrize("form", ["factorized", "dense"])
@pytest.mark.parametrize("family", ["llama", "tied", "gpt2"])
def test_an_export_has_the_same_files(family: str, form: str, tmp_path: Path) -> None:
    model, tokenizer = FAMILIES[family](), tiny_tokenizer()
    parts = offloaded(model, tmp_path / "model")
    bank = banked(model, storage="pivoted")
    genome = mixed(bank, (0.6, 1.0, 0.3))
    for name, one in (("whole", model), ("parts", parts)):
        with Switch(one, bank).to(genome):
            export(one, tokenizer, tmp_path / name, form)
    loaded = [AutoModelForCausalLM.from_pretrained(tmp_path / n) for n in ("whole", "parts")]
    assert logits(loaded[0]).equal(logits(loaded[1]))
    files = [sorted(p.name for p in (tmp_path / n).iterdir()) for n in ("whole", "parts")]
    assert files[0] == files[1]


def test_an_export_in_several_files_is_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    parts = offloaded(model, tmp_path / "model")
    monkeypatch.setattr("sieve.exports.sharded.STREAMED_FILE_BYTES", 2**16)
    for name, one in (("whole", model), ("parts", parts)):
        export(one, tokenizer, tmp_path / name, "dense")
    files = [len(list((tmp_path / n).glob("*.safetensors"))) for n in ("whole", "parts")]
    assert files[0] == 1 < files[1]
    loaded = [AutoModelForCausalLM.from_pretrained(tmp_path / n) for n in ("whole", "parts")]
    assert logits(loaded[0]).equal(logits(loaded[1]))


def test_each_block_drops_the_pages_of_factors_that_it_has_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = tiny_llama(), tmp_path / "bank.safetensors"
    parts = offloaded(model, tmp_path / "model")
    banked(model).save(path)
    bank, drops = Bank.load(path), list[None]()
    monkeypatch.setattr("sieve.streaming.offloaded.drop_pages", lambda: drops.append(None))
    with Switch(parts, bank).to(mixed(bank, (0.3,))), Switch(model, bank).to(mixed(bank, (0.3,))):
        logits(model)
        assert not drops
        logits(parts)
    assert len(drops) == len(block_paths(parts))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("joint", [False, True])
def test_pivoted_factors_of_a_stored_bank_are_read_from_unnamed_files(
    joint: bool, tmp_path: Path
) -> None:
    model, folder = tiny_qwen3(), tmp_path / "cache"
    parts, path = offloaded(model, tmp_path / "model"), folder / "bank.safetensors"
    banked(model, storage="pivoted", joint=joint).save(path)
    bank = Bank.load(path)
    genome = mixed(bank, (0.3,))
    for one in (model, parts):
        with Switch(one, bank).to(genome):
            layers = [one.get_submodule(matrix.name) for matrix in bank.matrices]
            weights = [layer.factor_out.weight for layer in layers]
            weights += [layer.factor_in.weight for layer in layers]
            assert {is_mapped(w, folder) for w in weights if w.numel()} == {one is parts}
            outputs = logits(one)
    with Switch(model, bank).to(genome):
        assert outputs.equal(logits(model))
    assert list(folder.iterdir()) == [path]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_pruned_head_stays_with_the_model(tmp_path: Path) -> None:
    model, folder = tiny_llama(), tmp_path / "cache"
    parts, path = offloaded(model, tmp_path / "model"), folder / "bank.safetensors"
    moments = calibrate(model, BATCHES, find_matrices(model, head=True))
    fit(model, moments, storage="pivoted", prune_head=True).save(path)
    bank = Bank.load(path)
    with Switch(parts, bank).to(mixed(bank, (0.3,))):
        head = parts.get_output_embeddings()
        assert not is_mapped(head.factor_out.weight, folder)
        outputs = logits(parts)
    with Switch(model, bank).to(mixed(bank, (0.3,))):
        assert outputs.equal(logits(model))


@pytest.mark.parametrize("streamed", (True, False))
def test_only_a_streamed_model_drops_pages_of_factors_when_pivot_rows_are_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    """What a training writes to a mapped factor would be lost with its pages."""
    model, path = tiny_llama(), tmp_path / "bank.safetensors"
    parts = offloaded(model, tmp_path / "model") if streamed else model
    banked(model, storage="pivoted").save(path)
    bank, drops = Bank.load(path), list[None]()
    monkeypatch.setattr("sieve.bank.switch.drop_pages", lambda: drops.append(None))
    with Switch(parts, bank).to(mixed(bank, (0.3,))):
        assert bool(drops) == streamed


def test_only_what_factors_do_not_replace_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama()
    parts = offloaded(model, tmp_path / "model")
    bank = banked(model)
    names: list[str] = []
    blocks = vars(parts.get_submodule(block_paths(parts)[0]))["forward"].blocks
    read = blocks.checkpoint.read
    monkeypatch.setattr(blocks.checkpoint, "read", lambda n, d: names.extend(n) or read(n, d))
    with Switch(parts, bank).to(mixed(bank, (0.3,))):
        logits(parts)
    assert names and all("norm" in name for name in names)


@pytest.mark.parametrize("storage", ["plain", "pivoted"])
def test_a_block_takes_its_factors_to_the_device_while_it_runs(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device stands in for a GPU: it runs blocks, and refuses what is elsewhere."""
    model = tiny_gpt2()  # with biases
    parts = offloaded(model, tmp_path / "model")
    bank, path = banked(model, storage=storage), block_paths(parts)[0]
    block, gpu = parts.get_submodule(path), torch.device("meta")
    hidden = torch.randn(1, 4, model.config.hidden_size)

    def here() -> list[int]:
        return [id(t) for t in [*block.parameters(), *block.buffers()] if not t.is_meta]

    if storage == "plain":  # The rows of a pivoted form are chosen on the device.
        monkeypatch.setattr(type(parts), "device", gpu)
    Switch(parts, bank, as_stored=storage == "pivoted").to(mixed(bank, (0.3, 0.6)))
    monkeypatch.setattr(vars(block)["forward"].blocks, "device", gpu)
    factors = here()
    assert len(factors) >= 4 * 3  # matrices, each with two factors and a bias
    out = block(hidden.to(gpu))
    assert (out[0] if isinstance(out, tuple) else out).is_meta
    assert here() == factors
    with pytest.raises(RuntimeError):
        block(hidden)


def test_a_layer_that_gets_other_factors_while_its_block_is_in_memory_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama()
    parts = offloaded(model, tmp_path / "model")
    bank, path = banked(model), block_paths(parts)[0]
    block = parts.get_submodule(path)
    switch = Switch(parts, bank, as_stored=False).to(mixed(bank, (0.3,)))
    name = next(matrix.name for matrix in bank.matrices if matrix.name.startswith(path))
    layer = parts.get_submodule(name)
    monkeypatch.setattr(vars(block)["forward"].blocks, "device", torch.device("meta"))
    with in_memory(block):
        assert layer.factor_in.weight.is_meta
        old = bank.factors[name]
        switch.replace(name, replace(old, v=2 * old.v), 3)
    assert layer.factor_in.weight.equal(2 * old.v[:3])


def test_rows_share_a_prefix(tmp_path: Path) -> None:
    parts = offloaded(tiny_llama(), tmp_path / "model")
    assert longest_exact_row(parts) == float("inf")


def test_a_pass_that_fails_leaves_no_weights(tmp_path: Path) -> None:
    parts = offloaded(tiny_llama(), tmp_path / "model")
    with pytest.raises(RuntimeError):
        parts(inputs_embeds=torch.ones(1, 4, 7))
    assert held(parts) == 0


def test_moving_the_model_leaves_its_blocks(tmp_path: Path) -> None:
    model = tiny_llama()
    parts = offloaded(model, tmp_path / "model")
    parts.to(torch.float64).to(torch.float32)
    assert held(parts) == 0 and logits(parts).equal(logits(model))


def test_a_pass_that_asks_for_inputs_reads_no_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_gpt2()
    parts = offloaded(model, tmp_path / "model")
    paths = block_paths(parts)
    expected = block_calls(model, BATCHES[0], paths)
    blocks = vars(parts.get_submodule(paths[0]))["forward"].blocks
    monkeypatch.setattr(blocks.checkpoint, "read", lambda *_: pytest.fail("a block was read"))
    found = block_calls(parts, BATCHES[0], paths)
    assert found.hidden[0].equal(expected.hidden[0])
    for ours, theirs in zip(found.calls, expected.calls, strict=True):
        [own], [wanted] = ours.passes, theirs.passes
        assert own.kwargs.keys() == wanted.kwargs.keys() and len(own.args) == len(wanted.args)


@pytest.mark.slow
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("family", ["llama", "tied", "gpt2"])
def test_a_refit_has_the_factors_of_the_whole_model(
    family: str, residual: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FAMILIES[family]()
    streams = backbone(model, tmp_path / "model")
    parts = streams.model
    needs = get_projection("affine").needs
    moments = calibrate(model, BATCHES, needs=needs, weighting="gradient")
    bank = fit(model, moments, "affine")
    genome = mixed(bank, (0.3, 0.3, 0.3, 1.0))
    weights = token_weights(model, bank.matrices, BATCHES, answers="gold")
    whole = refit(model, bank, genome, moments, BATCHES, weights, residual)
    blocks = vars(parts.get_submodule(block_paths(parts)[0]))["forward"].blocks
    reads, read = list[str](), blocks.checkpoint.read
    monkeypatch.setattr(blocks.checkpoint, "read", lambda n, d: reads.extend(n) or read(n, d))
    with hidden_states(tmp_path) as hidden:
        streamed = streamed_token_weights(streams.blocks, BATCHES, hidden, answers="gold")
    assert streamed.keys() == weights.keys()
    for name, own in weights.items():
        torch.testing.assert_close(streamed[name], own)
    (tmp_path / "new").mkdir()
    found = refit(parts, bank, genome, moments, BATCHES, streamed, residual, tmp_path / "new")
    assert held(parts) == 0 and found.kept == whole.kept != ()
    assert found.after == pytest.approx(whole.after) and found.after < found.before
    for name in bank.names:
        torch.testing.assert_close(found.bank.factors[name].u, whole.bank.factors[name].u)
        torch.testing.assert_close(found.bank.factors[name].v, whole.bank.factors[name].v)
    written = {path.stem for path in (tmp_path / "new").iterdir()}
    assert written == {block_of(name) for name in found.kept}
    if sys.platform == "linux":
        for name in found.kept:
            assert is_mapped(found.bank.factors[name].v, tmp_path / "new"), name
    # Twice to refit, and for 3 held-out batches of the dense model and of both pruned ones.
    norms = [name for name in reads if "norm" in name or "ln_1.weight" in name]
    assert {norms.count(name) for name in norms} == {2 + 3 * 3}


@pytest.mark.slow
def test_a_whole_run_gives_the_result_of_the_whole_model(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    # Streamed rows share no prefix.
    options = ("share_prefix=2", "speed.enabled=false", "export.check_rows=8")
    whole = finished(world, "whole", *options, cache="whole")
    streamed = finished(
        world, "streamed", *options, "calibration.strategy=stream", cache="streamed"
    )
    for key in ("baseline", "pruned", "kept_fraction", "drop", "matrices"):
        assert streamed[key] == whole[key], key
    assert streamed["search"]["refit"] == whole["search"]["refit"] is not None
    assert not list((world / "streamed").glob(".refit.*"))
    assert streamed["export"]["check"] is not None
    log = (world / "streamed" / "run.log").read_text()
    assert "Loading the whole model" not in log
