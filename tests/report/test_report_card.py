"""The model card says what the export is, with the result's own numbers."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_llama, tiny_tokenizer
from results import full_result
from sieved import banked, mixed

import sieve
from sieve.report import answer_sentence
from sieve.report.card import model_card
from sieve.report.result import read

PROMPT = "Review: {text}\\nSentiment:"


@pytest.fixture
def result() -> dict[str, Any]:
    return full_result()


def test_the_card_contains_answer_prompt_and_command(result: dict[str, Any]) -> None:
    card = model_card(result, "owner/model", PROMPT)
    assert card.startswith("---\n") and "base_model: owner/model" in card.split("---")[1]
    shown = "Review: {text}\nSentiment:"  # with a real line break
    for words in (answer_sentence(read(result)), shown, result["command"], "## License"):
        assert words in card


def test_only_a_hub_name_becomes_the_base_model_of_the_front_matter(result: dict[str, Any]) -> None:
    assert "base_model" not in model_card(result, "embedded", PROMPT)


@pytest.mark.parametrize(
    ("form", "there", "absent"),
    [("factorized", "sieve.load", "merged"), ("dense", "merged into plain", "trust_remote_code")],
)
def test_the_card_shows_how_to_load_each_format(
    result: dict[str, Any], form: str, there: str, absent: str
) -> None:
    card = model_card(result, "owner/model", PROMPT, form)
    assert there in card and absent not in card


def test_the_card_of_a_quantized_model_names_torchao(result: dict[str, Any]) -> None:
    assert "torchao" not in model_card(result, "owner/model", PROMPT)
    result["quantization"] = {"method": "int8"}
    card = model_card(result, "owner/model", PROMPT)
    assert "pip install torchao" in card and "| Quantization | int8 |" in card


def test_the_card_gives_the_accuracy_of_an_onnx_graph(result: dict[str, Any]) -> None:
    assert "as exported" not in model_card(result, "owner/model", PROMPT)
    result["export"] = {"format": "onnx_int8", "accuracy": 0.795}
    card = model_card(result, "owner/model", PROMPT, "onnx_int8")
    assert "| Accuracy on test, as exported | 79.5 % |" in card
    assert "library_name: onnx\n" in card


def test_the_card_of_a_gguf_file_names_llama_cpp(result: dict[str, Any]) -> None:
    card = model_card(result, "owner/model", PROMPT, "gguf")
    assert "library_name: gguf\n" in card and "llama-cli -m export/model.gguf" in card
    assert "trust_remote_code" not in card and "onnxruntime" not in card


ANSWERS = (" great", " awful", " not sure")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model in `export`."""
    folder = tmp_path_factory.mktemp("card")
    model = tiny_llama()
    bank = banked(model)
    sieve.apply(model, bank, mixed(bank))
    sieve.export(model, tiny_tokenizer(), folder / "export")
    return folder


@pytest.mark.parametrize("loader", ["sieve.load", "trust_remote_code=True"])
def test_the_code_of_the_card_predicts_the_likeliest_answer(
    result: dict[str, Any],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    loader: str,
) -> None:
    card = model_card(result, "owner/model", "Say {{{text}}}:\\n{a b}", answers=ANSWERS)
    assert "The answer is the likeliest of `great`, `awful`, `not sure`." in card
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    capsys.readouterr()
    for block in (next(block for block in blocks if loader in block), blocks[-1]):
        exec(block, names)
    prompt, tokenizer = "Say {your text}:\nyour text", names["tokenizer"]
    example = sieve.Example(prompt, ANSWERS, 0)
    batches = sieve.scoring_batches([example], tokenizer, chat="never")
    with torch.no_grad():
        [outcome] = [batch.outcome(names["model"]) for batch in batches]
    assert capsys.readouterr().out.splitlines()[-1] == ANSWERS[int(outcome.predicted[0])].strip()


def test_only_known_answers_of_a_language_model_are_predicted_by_code(
    result: dict[str, Any],
) -> None:
    heading = "How to predict one row"
    assert heading in model_card(result, "m", PROMPT, answers=ANSWERS)
    assert heading not in model_card(result, "m", PROMPT)
    assert heading not in model_card(result, "m", PROMPT, "onnx", answers=ANSWERS)
    loads = "AutoModelForSequenceClassification"
    assert heading not in model_card(result, "m", PROMPT, auto_class=loads, answers=ANSWERS)
    templated = model_card(result, "m", PROMPT, answers=ANSWERS, chat=True)
    assert "apply_chat_template" in templated and "add_special_tokens=False" in templated
