"""An ONNX graph writes the tokens that the model in memory writes, with a cache or without."""

import json
from pathlib import Path

import pytest
import torch
from exporting import pruned
from models import FAMILIES, tiny_odd, tiny_tokenizer
from sieved import banked, tokens, uniform
from transformers import GenerationConfig, PreTrainedModel
from written import writer

import sieve
from sieve.data.batches import pad_rows
from sieve.exports.onnx_model import OnnxModel
from sieve.exports.task_file import read_task, write_task
from sieve.predict.predictor import Predictor
from sieve.serve.engine import Engine
from sieve.tasks.config import TaskConfig

pytestmark = pytest.mark.slow

SIZES = ((1, 1), (1, 17), (2, 2), (3, 12))  # rows and tokens
CONFIG = GenerationConfig(max_new_tokens=14, do_sample=False, pad_token_id=0)
Exported = tuple[PreTrainedModel, OnnxModel, Path]


def with_graph(model: PreTrainedModel, folder: Path) -> Exported:
    path = sieve.export(model, tiny_tokenizer(), folder / "export", "onnx")
    return model, sieve.load(path)[0], path


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A model without its first attention, and its graph."""
    model = pruned(FAMILIES["llama"](), storage="pivoted")
    return with_graph(model, tmp_path_factory.mktemp("llama"))


def written(model: PreTrainedModel | OnnxModel, rows: int, length: int) -> list[list[int]]:
    """The likeliest tokens after left-padded rows."""
    ids = tokens(rows, length)
    mask = torch.ones_like(ids)
    if rows > 1:
        mask[0, : length // 3] = 0
    return model.generate(ids, attention_mask=mask, generation_config=CONFIG).tolist()


def assert_same(model: PreTrainedModel, graph: OnnxModel) -> None:
    for size in SIZES:
        assert written(graph, *size) == written(model, *size)


def test_a_graph_without_a_removed_attention_writes_what_the_model_writes(llama: Exported) -> None:
    model, graph, _ = llama
    assert list(graph.past) == ["past_key_values.0.key", "past_key_values.0.value"]
    assert_same(model, graph)
    new = {token for size in SIZES for row in written(graph, *size) for token in row[size[1] :]}
    assert len(new) > 7  # It does not repeat one token.


@pytest.mark.parametrize(
    "family",
    [
        "mistral",  # with a window shorter than the rows
        # Windows in some layers, learned positions, fused matrices, rotations of part of a head.
        *(pytest.param(f, marks=pytest.mark.slow) for f in ("gemma3", "gpt2", "phi3", "gpt_neox")),
    ],
)
def test_graphs_of_other_families_write_what_the_models_write(family: str, tmp_path: Path) -> None:
    model, graph, _ = with_graph(pruned(FAMILIES[family](), storage="pivoted"), tmp_path)
    assert graph.past
    assert_same(model, graph)


def test_a_graph_without_any_attention_writes_what_the_model_writes(tmp_path: Path) -> None:
    model = FAMILIES["llama"]()
    bank = banked(model, storage="pivoted")
    sieve.apply(model, bank, uniform(bank, 0.0))
    assert_same(*with_graph(model, tmp_path)[:2])


def test_a_graph_without_a_cache_reads_all_tokens_again(tmp_path: Path) -> None:
    model = tiny_odd()
    path = sieve.export(model, tiny_tokenizer(), tmp_path / "odd", "onnx")
    graph = OnnxModel(path / "model.onnx", model.config)  # No tool knows this architecture.
    assert not graph.past and not (tmp_path / "odd" / "genai_config.json").exists()
    expected = tokens(2, 5)
    for _ in range(CONFIG.max_new_tokens):
        expected = torch.cat([expected, model(expected).logits[:, -1].argmax(-1)[:, None]], 1)
    assert torch.equal(graph.generate(tokens(2, 5), generation_config=CONFIG), expected)


def test_rows_of_a_batch_end_at_their_own_end_tokens_and_stop_texts(llama: Exported) -> None:
    model, graph, _ = llama
    ids, mask, _ = pad_rows([tuple(tokens(1, 3 + n, n)[0].tolist()) for n in range(6)], 0)
    free = writer(max_new_tokens=9).write(model, ids, mask)
    decoded = tiny_tokenizer().decode(list(free[0]))
    for stop in ((), (decoded[3:5],)):
        rows = writer(stop, max_new_tokens=9).write(graph, ids, mask)
        assert rows == writer(stop, max_new_tokens=9).write(model, ids, mask)
    ends = GenerationConfig(max_new_tokens=9, do_sample=False, pad_token_id=0)
    ends.eos_token_id = [free[0][2], free[1][4]]
    results = [m.generate(ids, attention_mask=mask, generation_config=ends) for m in (graph, model)]
    assert torch.equal(*results) and (results[0] == 0).any()


def test_sampling_is_refused(llama: Exported) -> None:
    with pytest.raises(ValueError, match="writes the likeliest tokens; set do_sample=False"):
        llama[1].generate(tokens(1, 3), do_sample=True)
    with pytest.raises(ValueError, match="does not know the setting max_length; expected some of"):
        llama[1].generate(tokens(1, 3), max_length=9)


def test_genai_config_names_the_inputs_and_outputs_of_the_graph(llama: Exported) -> None:
    model, graph, folder = llama
    described = json.loads((folder / "genai_config.json").read_text())["model"]
    decoder, numbers = described["decoder"], range(described["decoder"]["num_hidden_layers"])
    sides = [
        {name % n for name in decoder[side].values() for n in numbers if "%d" in name}
        | {name for name in decoder[side].values() if "%d" not in name}
        for side in ("inputs", "outputs")
    ]
    session = graph.session
    assert sides[0] == {value.name for value in session.get_inputs()}
    assert sides[1] == {value.name for value in session.get_outputs()}
    assert (folder / decoder["filename"]).is_file()
    heads_and_size = [decoder["num_key_value_heads"], decoder["head_size"]]
    assert [list(shape)[1::2] for shape in graph.past.values()] == [heads_and_size] * 2
    assert described["vocab_size"] == model.config.vocab_size and described["eos_token_id"] == 2


def test_predictions_and_the_server_write_with_a_graph(llama: Exported, tmp_path: Path) -> None:
    model, _, folder = llama
    config = TaskConfig(name="w", kind="generation", prompt="{text}", max_new_tokens=6, stop=[])
    row, expected = {"text": "a good movie"}, sieve.export(model, tiny_tokenizer(), tmp_path / "e")
    answers = []
    for path in (folder, expected):
        write_task(config, (), path)
        predictor = Predictor(read_task(path), path, "cpu", "auto", 8192)
        [predicted] = predictor.answers([row], predictor.questions([row], "rows"))
        engine = Engine(path)
        [text] = engine.write(engine.encode([engine.task.question(row)]))
        answers.append((predicted[0]["predicted"], text.strip()))
    assert answers[0] == answers[1] and len(set(answers[0])) == 1


def test_a_graph_of_an_older_export_scores_and_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It has no cache, and takes the indexes of the positions to keep."""
    monkeypatch.setattr("sieve.exports.onnx_trace._sample_cache", lambda model: None)
    monkeypatch.setattr("sieve.exports.onnx_trace._count_logits", lambda graph: None)
    model, graph, _ = with_graph(FAMILIES["llama"](), tmp_path)
    assert "logits_to_keep" in graph.names and not graph.past
    assert_same(model, graph)
    ids = tokens(2, 12)
    expected = model(ids).logits[:, -3:]
    assert torch.allclose(graph(ids, logits_to_keep=3).logits, expected, atol=1e-4)
