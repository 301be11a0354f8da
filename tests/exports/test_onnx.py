"""An ONNX export computes the logits of the model in memory, within the tolerances below."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from exporting import pruned
from hydra import compose, initialize_config_dir
from models import FAMILIES, first_layers, tiny_llama, tiny_odd, tiny_tokenizer
from runs import finished, make_world, run_sieve
from sieved import banked, tokens, uniform
from transformers import AutoTokenizer, PreTrainedModel

import sieve
from sieve.bank.switch import Switch
from sieve.conversion import ASSETS, CONF, register_resolvers, to_config
from sieve.data.choices import scoring_batches
from sieve.evaluation.evaluation import score
from sieve.exports.onnx import graph_bytes
from sieve.exports.onnx_model import OnnxModel
from sieve.model.backbone import place
from sieve.tasks import Example, build_task

ATOL = 1e-4  # of logits of size 5, in float32
ROWS = [
    Example(f"{text} movie", (" negative", " positive"), index % 2)
    for index, text in enumerate(("a good", "a bad", "no", "yes", "true film", "the", "question"))
]


class Export(NamedTuple):
    """A pruned model in bfloat16, and its ONNX export."""

    model: PreTrainedModel
    folder: Path
    state: dict[str, torch.Tensor]  # before the export
    modules: dict[str, torch.nn.Module]  # before the export


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A model with pivoted factors, some of rank 0, and some dense matrices."""
    model = pruned(tiny_llama(), storage="pivoted")
    place(model, None, torch.bfloat16)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modules = dict(model.named_modules())
    folder = tmp_path_factory.mktemp("onnx") / "export"
    return Export(model, sieve.export(model, tiny_tokenizer(), folder, "onnx"), state, modules)


@pytest.fixture(scope="module")
def float_llama(llama: Export) -> PreTrainedModel:
    """The model of `llama` in float32, in which the graph computes."""
    model = copy.deepcopy(llama.model)
    place(model, None, torch.float32)
    return model


@torch.no_grad()
def both_logits(
    model: PreTrainedModel, loaded: OnnxModel, rows: int, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the model and of its graph at the tokens that are not padding."""
    ids = tokens(rows, length)
    mask = torch.ones_like(ids)
    mask[0, : length // 3] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    positions = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    accepted = positions if "position_ids" in loaded.names else {}
    expected = model(**inputs, **accepted, use_cache=False).logits
    return expected[mask.bool()], loaded(**inputs, **positions).logits[mask.bool()]


@pytest.mark.parametrize(("rows", "length"), [(2, 12), (1, 1), (3, 127)])
def test_a_graph_has_the_logits_of_the_model_at_any_size(
    llama: Export, float_llama: PreTrainedModel, rows: int, length: int
) -> None:
    expected, logits = both_logits(float_llama, sieve.load(llama.folder)[0], rows, length)
    torch.testing.assert_close(logits, expected, rtol=0, atol=ATOL)


def test_an_export_leaves_the_model_unchanged(llama: Export) -> None:
    assert llama.model.dtype == torch.bfloat16 and llama.model.config.use_cache
    assert dict(llama.model.named_modules()) == llama.modules
    state = llama.model.state_dict()
    assert all(torch.equal(value, llama.state[name]) for name, value in state.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gemma2", {"storage": "pivoted"}),
        ("opt", {"projection": "affine", "storage": "plain"}),
    ],
)
def test_graphs_of_other_families_have_the_logits_of_the_model(
    family: str, options: dict[str, str], tmp_path: Path
) -> None:
    model = pruned(FAMILIES[family](), **options)
    loaded, _ = sieve.load(sieve.export(model, tiny_tokenizer(), tmp_path / "export", "onnx"))
    for size in ((2, 12), (3, 30)):
        expected, logits = both_logits(model, loaded, *size)
        torch.testing.assert_close(logits, expected, rtol=0, atol=ATOL)


def test_a_graph_computes_only_the_last_logits_to_keep(llama: Export) -> None:
    model, _ = sieve.load(llama.folder)
    ids = tokens(2, 12)
    all_logits = model(ids).logits
    for keep in (1, 5, 12):
        logits = model(ids, logits_to_keep=keep).logits
        assert logits.shape[1] == keep
        torch.testing.assert_close(logits, all_logits[:, -keep:], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_graph_of_shared_factors_has_the_logits_of_the_model(tmp_path: Path) -> None:
    model = tiny_llama()
    bank = banked(model, storage="pivoted", joint=True)
    with Switch(model, bank).to(uniform(bank, 0.3)):
        folder = sieve.export(model, tiny_tokenizer(), tmp_path / "joint", "onnx")
        expected, logits = both_logits(model, sieve.load(folder)[0], 2, 12)
    torch.testing.assert_close(logits, expected, rtol=0, atol=ATOL)


def test_a_graph_scores_a_split_as_the_model_does(
    llama: Export, float_llama: PreTrainedModel
) -> None:
    loaded, tokenizer = sieve.load(llama.folder)
    batches = sieve.scoring_batches(ROWS, tokenizer)
    of_graph, of_model = score(loaded, batches), score(float_llama, batches)
    assert of_graph.predicted.tolist() == of_model.predicted.tolist()
    np.testing.assert_allclose(of_graph.losses, of_model.losses, atol=ATOL)


@pytest.mark.slow
def test_an_8_bit_graph_agrees_with_the_model_on_95_rows_of_100(tmp_path: Path) -> None:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        raw = compose("config", ["+task=almanac_medicine", "++task.max_rows.test=100"])
    rows = build_task(to_config(raw).task).splits["test"]
    model, tokenizer = first_layers(2), AutoTokenizer.from_pretrained(ASSETS / "embedded")
    batches = scoring_batches(rows, tokenizer)
    loaded, _ = sieve.load(sieve.export(model, tokenizer, tmp_path / "export", "onnx_int8"))
    scores = score(model, batches)
    agree = score(loaded, batches).predicted == scores.predicted
    assert len(agree) == 100 and agree.sum() >= 95 and scores.accuracy > 0.9


@pytest.mark.slow
def test_8_bit_weights_are_smaller_and_weights_too_large_for_a_graph_are_beside_it(
    llama: Export, float_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sieve.exports.onnx.GRAPH_LIMIT", 0)
    path = sieve.export(llama.model, tiny_tokenizer(), tmp_path / "small", "onnx_int8")
    assert sorted(file.name for file in path.glob("model*")) == ["model.onnx", "model.onnx.data"]
    weights = onnx.load(path / "model.onnx", load_external_data=False).graph.initializer
    kinds = {weight.data_type for weight in weights if weight.name.endswith("_quantized")}
    assert kinds == {onnx.TensorProto.UINT8}  # Sums of signed ones saturate on some processors.
    data = path / "model.onnx.data"
    assert graph_bytes(path) == (path / "model.onnx").stat().st_size + data.stat().st_size
    assert 2 * graph_bytes(path) < graph_bytes(llama.folder)
    expected, logits = both_logits(float_llama, sieve.load(path)[0], 3, 30)
    assert 0 < (logits - expected).abs().max() < 0.4  # of logits of size 4
    halve(data)
    with pytest.raises(ValueError, match=r"damaged or incomplete.*export the model again"):
        sieve.load(path)


def test_a_graph_has_no_paths_of_the_machine_that_traced_it(llama: Export) -> None:
    content = (llama.folder / "model.onnx").read_bytes()
    assert b"input_ids" in content and b"stack_trace" not in content
    assert str(Path(transformers.__file__).parent).encode() not in content


def test_onnxruntime_runs_a_graph_without_sieve(
    llama: Export, float_llama: PreTrainedModel
) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(llama.folder / "model.onnx", options)
    ids = tokens(1, 6)
    feed = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    feed["position_ids"] = torch.arange(6)[None]
    feed |= {f"past_key_values.0.{part}": torch.zeros(1, 2, 0, 8) for part in ("key", "value")}
    assert {value.name for value in session.get_inputs()} == feed.keys()
    logits, *states = session.run(None, {name: value.numpy() for name, value in feed.items()})
    with torch.no_grad():
        expected = float_llama(ids).logits
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=0, atol=ATOL)
    assert [value.shape for value in states] == [(1, 2, 6, 8)] * 2  # the attention that remains
    config = json.loads((llama.folder / "config.json").read_text())
    assert (llama.folder / "generation_config.json").is_file()
    assert config["model_type"] == "llama" and "sieve" not in config and "auto_map" not in config


def test_an_architecture_that_cannot_be_traced_is_refused_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    model = tiny_odd()
    forward = type(model).forward

    def untraceable(
        self: PreTrainedModel, input_ids: torch.Tensor, **inputs: torch.Tensor
    ) -> object:
        return forward(self, input_ids + int(input_ids.sum() > 10), **inputs)

    model.__class__ = type("UntraceableForCausalLM", (type(model),), {"forward": untraceable})
    with pytest.raises(ValueError, match="UntraceableForCausalLM cannot be exported to ONNX"):
        sieve.export(model, tiny_tokenizer(), tmp_path / "export", "onnx")
    assert not list(tmp_path.iterdir())


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def other_vocabulary(file: Path) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": 17}))


def foreign_graph(file: Path) -> None:
    """Write a valid graph that is not a language model."""
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
        (lambda folder: other_vocabulary(folder / "config.json"), "logits of size 17"),
        (lambda folder: halve(folder / "tokenizer.json"), "could not be read"),
        (lambda folder: (folder / "config.json").unlink(), "could not be read"),
    ],
)
def test_a_missing_or_damaged_file_is_named_in_the_error(
    damage: Callable[[Path], object], sentence: str, llama: Export, tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    shutil.copytree(llama.folder, folder)
    damage(folder)
    with pytest.raises(ValueError, match=f"{sentence}.*export the model again"):
        sieve.load(folder)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sieve.exports.onnx.find_spec", lambda name: None if name == "onnxscript" else name
    )
    with pytest.raises(ValueError, match=r"needs onnxscript; run pip install 'sieve-llm\[onnx\]'"):
        sieve.export(tiny_llama(), tiny_tokenizer(), "nowhere", "onnx")


@pytest.mark.slow
def test_a_run_exports_a_graph_and_reports_its_size(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    result = finished(world, "run", "export=onnx_int8", "projection.refit=false", "tolerance=.5")
    folder = world / "run" / "export"
    assert result["bytes"]["pruned"] == (folder / "model.onnx").stat().st_size
    assert "onnxruntime" in (folder / "README.md").read_text()
    assert isinstance(sieve.load(folder)[0], OnnxModel)
    done = run_sieve(world, world / "bad", "export=onnx", "quantization=int8")
    assert done.status == 1 and "export=onnx_int8 quantizes by itself" in done.stderr
