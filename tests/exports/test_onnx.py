"""An ONNX export computes what the model in memory does, within tolerances that are said here."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from hydra import compose, initialize_config_dir
from models import FAMILIES, tiny_llama, tiny_odd, tiny_tokenizer
from runs import finished, make_world, run_sieve
from sieved import banked, mixed, tokens, uniform
from transformers import PreTrainedModel

import sieve
from sieve.bank.switch import Switch
from sieve.conversion import ASSETS, CONF, register_resolvers, to_config
from sieve.data.choices import scoring_batches
from sieve.evaluation.evaluation import score
from sieve.exports.onnx import OnnxModel, graph_bytes
from sieve.tasks import Example, build_task

ATOL = 1e-4  # of logits of size 5, in float32
ROWS = [
    Example(f"{text} movie", (" negative", " positive"), index % 2)
    for index, text in enumerate(("a good", "a bad", "no", "yes", "true film", "the", "question"))
]


def pruned(model: PreTrainedModel, **options: Any) -> PreTrainedModel:
    bank = banked(model, **options)
    sieve.apply(model, bank, mixed(bank))
    return model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    """A model of pivoted factors, some of rank 0 and some dense, and its export."""
    model = pruned(tiny_llama(), storage="pivoted")
    folder = tmp_path_factory.mktemp("onnx") / "export"
    return model, sieve.export(model, tiny_tokenizer(), folder, "onnx")


@torch.no_grad()
def both(model: PreTrainedModel, loaded: Any, rows: int, length: int) -> tuple[Any, Any]:
    """Logits of the model and of its export at tokens that are not padding."""
    ids = tokens(rows, length)
    mask = torch.ones_like(ids)
    mask[0, : length // 3] = 0
    given = {"input_ids": ids, "attention_mask": mask}
    positions = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    named = positions if "position_ids" in loaded.names else {}
    wanted = model(**given, **named, use_cache=False).logits
    return wanted[mask.bool()], loaded(**given, **positions).logits[mask.bool()]


@pytest.mark.parametrize(("rows", "length"), [(2, 12), (1, 1), (5, 40), (3, 127)])
def test_logits_are_those_of_memory_at_any_size(llama: Any, rows: int, length: int) -> None:
    model, folder = llama
    wanted, found = both(model, sieve.load(folder)[0], rows, length)
    torch.testing.assert_close(found, wanted, rtol=0, atol=ATOL)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "phi3", "gemma2", "qwen3", "opt"])
def test_every_family_is_the_model_in_memory(family: str, tmp_path: Path) -> None:
    projection = "affine" if family == "gpt2" else "output"
    model = pruned(FAMILIES[family](), projection=projection, storage="pivoted")
    loaded, _ = sieve.load(sieve.export(model, tiny_tokenizer(), tmp_path / "export", "onnx"))
    for size in ((2, 12), (3, 30)):
        wanted, found = both(model, loaded, *size)
        torch.testing.assert_close(found, wanted, rtol=0, atol=ATOL)


def test_only_the_positions_that_are_asked_for_are_computed(llama: Any) -> None:
    model, _ = sieve.load(llama[1])
    ids = tokens(2, 12)
    every = model(ids).logits
    for keep in (1, 5, 12):
        found = model(ids, logits_to_keep=keep).logits
        assert found.shape[1] == keep
        torch.testing.assert_close(found, every[:, -keep:], rtol=0, atol=1e-5)


def test_the_model_in_memory_is_left_as_it_was(tmp_path: Path) -> None:
    model = pruned(tiny_llama(), storage="pivoted").to(torch.bfloat16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = dict(model.named_modules())
    sieve.export(model, tiny_tokenizer(), tmp_path / "export", "onnx")
    assert model.dtype == torch.bfloat16 and model.config.use_cache
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_shared_factors_and_plain_ones_are_the_model_in_memory(tmp_path: Path) -> None:
    for name, options in (("plain", {}), ("joint", {"storage": "pivoted", "joint": True})):
        model = tiny_llama()
        bank = banked(model, **options)
        with Switch(model, bank).to(uniform(bank, 0.3)):
            folder = sieve.export(model, tiny_tokenizer(), tmp_path / name, "onnx")
            wanted, found = both(model, sieve.load(folder)[0], 2, 12)
        torch.testing.assert_close(found, wanted, rtol=0, atol=ATOL)


def test_a_split_is_scored_as_by_the_model_in_memory(llama: Any) -> None:
    model, folder = llama
    loaded, tokenizer = sieve.load(folder)
    batches = sieve.scoring_batches(ROWS, tokenizer)
    ours, theirs = score(loaded, batches), score(model, batches)
    assert ours.predicted.tolist() == theirs.predicted.tolist()
    np.testing.assert_allclose(ours.losses, theirs.losses, atol=ATOL)


def test_eight_bits_are_smaller_and_near(llama: Any, tmp_path: Path) -> None:
    model, folder = llama
    small = sieve.export(model, tiny_tokenizer(), tmp_path / "small", "onnx_int8")
    assert sorted(file.name for file in small.glob("model*")) == ["model.onnx"]
    wanted, found = both(model, sieve.load(small)[0], 3, 30)
    assert 0 < (found - wanted).abs().max() < 0.4  # of logits of size 4
    assert 2 * (small / "model.onnx").stat().st_size < (folder / "model.onnx").stat().st_size


@pytest.mark.slow
def test_eight_bits_answer_as_the_model_in_memory_on_95_rows_of_100(tmp_path: Path) -> None:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        raw = compose("config", ["+task=almanac_medicine", "++task.max_rows.test=100"])
    rows = build_task(to_config(raw).task).splits["test"]
    model, tokenizer = sieve.load(ASSETS / "embedded")
    batches = scoring_batches(rows, tokenizer)
    loaded, _ = sieve.load(sieve.export(model, tokenizer, tmp_path / "export", "onnx_int8"))
    agree = score(loaded, batches).predicted == score(model, batches).predicted
    assert len(agree) == 100 and agree.sum() >= 95


@pytest.mark.slow
def test_weights_too_large_for_a_graph_stand_beside_it(llama: Any, monkeypatch: Any) -> None:
    model, folder = llama
    monkeypatch.setattr("sieve.exports.onnx.GRAPH_LIMIT", 0)
    for format, atol in (("onnx", ATOL), ("onnx_int8", 0.4)):
        path = sieve.export(model, tiny_tokenizer(), folder.parent / format, format)
        files = sorted(file.name for file in path.glob("model*"))
        assert files == ["model.onnx", "model.onnx.data"]
        assert graph_bytes(path) == sum((path / name).stat().st_size for name in files)
        wanted, found = both(model, sieve.load(path)[0], 2, 12)
        torch.testing.assert_close(found, wanted, rtol=0, atol=atol)
        data = (path / "model.onnx.data").read_bytes()
        (path / "model.onnx.data").write_bytes(data[: len(data) // 2])
        with pytest.raises(ValueError, match=r"damaged or incomplete.*export the model again"):
            sieve.load(path)


def test_the_graph_tells_nothing_of_the_machine_that_traced_it(llama: Any) -> None:
    written = (llama[1] / "model.onnx").read_bytes()
    assert b"input_ids" in written
    assert (
        b"stack_trace" not in written
        and str(Path(transformers.__file__).parent).encode() not in written
    )


def test_it_is_a_plain_graph_for_onnxruntime_alone(llama: Any) -> None:
    model, folder = llama
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    ids = tokens(1, 6)
    feed = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(6)[None], "logits_to_keep": torch.arange(6),
    }  # fmt: skip
    [found] = session.run(None, {name: value.numpy() for name, value in feed.items()})
    with torch.no_grad():
        wanted = model(ids).logits
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=0, atol=ATOL)
    config = json.loads((folder / "config.json").read_text())
    assert (folder / "generation_config.json").is_file()
    assert config["model_type"] == "llama" and "sieve" not in config and "auto_map" not in config


def test_an_architecture_that_cannot_be_traced_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    model = tiny_odd()
    sound = type(model).forward

    def stubborn(self: Any, input_ids: Any, **more: Any) -> Any:
        return sound(self, input_ids + int(input_ids.sum() > 10), **more)

    model.__class__ = type("StubbornForCausalLM", (type(model),), {"forward": stubborn})
    with pytest.raises(ValueError, match="StubbornForCausalLM cannot be exported to ONNX"):
        sieve.export(model, tiny_tokenizer(), tmp_path / "export", "onnx")
    assert not list(tmp_path.iterdir())


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def other_vocabulary(file: Path) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": 17}))


def foreign_graph(file: Path) -> None:
    """A sound graph that is no language model."""
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "foreign", ends[:1], ends[1:])
    opset = onnx.helper.make_opsetid("", 18)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), file)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: halve(folder / "model.onnx"), "damaged or incomplete"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"no graph"), "damaged or incomplete"),
        (lambda folder: foreign_graph(folder / "model.onnx"), "does not map input_ids to logits"),
        (lambda folder: other_vocabulary(folder / "config.json"), "logits of the 17 tokens"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "could not be read"),
        (lambda folder: halve(folder / "tokenizer.json"), "could not be read"),
        (lambda folder: (folder / "config.json").unlink(), "could not be read"),
        (lambda folder: (folder / "config.json").write_text("{"), "could not be read"),
    ],
)
def test_a_missing_or_damaged_file_gets_one_sentence(
    damage: Any, sentence: str, llama: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    shutil.copytree(llama[1], folder)
    damage(folder)
    with pytest.raises(ValueError, match=f"{sentence}.*export the model again"):
        sieve.load(folder)


def test_a_missing_package_is_told_before_anything_is_loaded(monkeypatch: Any) -> None:
    monkeypatch.setattr(
        "sieve.exports.onnx.find_spec", lambda name: None if name == "onnxscript" else name
    )
    with pytest.raises(ValueError, match=r"needs onnxscript; run pip install 'sieve-llm\[onnx\]'"):
        sieve.export(tiny_llama(), tiny_tokenizer(), "nowhere", "onnx")


@pytest.mark.slow
def test_a_run_writes_it_and_says_how_large_it_is(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    result = finished(world, "run", "export=onnx_int8", "projection.refit=false", "tolerance=.5")
    folder = world / "run" / "export"
    assert result["bytes"]["pruned"] == (folder / "model.onnx").stat().st_size
    assert "onnxruntime" in (folder / "README.md").read_text()
    assert isinstance(sieve.load(folder)[0], OnnxModel)
    done = run_sieve(world, world / "bad", "export=onnx", "quantization=int8")
    assert done.status == 1 and "export=onnx_int8 quantizes by itself" in done.stderr
