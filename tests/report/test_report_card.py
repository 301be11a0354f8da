"""The model card says what the export is, with the result's own numbers."""

from typing import Any

import pytest
from results import full_result

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
    for words in (answer_sentence(read(result)), PROMPT, result["command"], "## License"):
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
