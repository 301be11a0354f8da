"""The answer sentence: honest in every case."""

from typing import Any

import pytest

from sieve.report import answer_sentence
from sieve.report.page import render_page
from sieve.report.result import read
from sieve.report.sentence import (
    drop_text,
    prompt_sentence,
    unlabelled_sentence,
    vocabulary_sentence,
)
from sieve.report.verdict import verdict

Result = dict[str, Any]


def test_the_sentence_states_kept_fractions_accuracies_drop_interval_and_rows(
    result: Result,
) -> None:
    assert answer_sentence(read(result)) == (
        "sst2 needs 35.0 % of reader-6m's prunable parameters (55.0 % of the whole model): "
        "accuracy 80.1 % instead of 80.7 %, a drop of 0.6 points (95 % interval −0.4 to 1.6) on "
        "1,821 test rows."
    )


def test_with_fewer_tokens_the_whole_model_comes_first(result: Result) -> None:
    tokens = {"tokens": 13939, "dense_tokens": 49152, "rows": 1821, "same": 1815}
    result["vocabulary"] = tokens | {"rows_kept": 1184, "same_kept": 1184}
    assert answer_sentence(read(result)).startswith(
        "sst2 needs 55.0 % of reader-6m's parameters (35.0 % of the prunable ones): accuracy"
    )
    sentence = (
        "The vocabulary has 13,939 of 49,152 tokens; 1,184 of 1,821 test rows use no others. The "
        "answer is the dense model's on 1,184 of these rows, and on 1,815 of all."
    )
    assert vocabulary_sentence(read(result)) == sentence
    page = render_page(result)
    assert "55.0\N{NO-BREAK SPACE}%" in page and "of all parameters" in page
    result["kept_fraction"]["prunable"], result["drop"]["point"] = 1.0, 0
    assert "sst2 needs 55.0 % of" in answer_sentence(read(result))
    assert "Nothing was pruned" not in verdict(read(result)).text


def test_with_a_factorized_embedding_the_whole_model_comes_first(result: Result) -> None:
    shape = {"name": "model.embed_tokens", "layer": None, "d_out": 256, "d_in": 8192}
    embedding = shape | {"kind": "embedding", "level": 1.0, "rank": None, "kept_fraction": 1.0}
    result["matrices"].insert(0, embedding)
    assert "35.0 % of reader-6m's prunable parameters (55.0 %" in answer_sentence(read(result))
    embedding |= {"level": 0.1, "rank": 25, "kept_fraction": 0.1}
    assert "55.0 % of reader-6m's parameters (35.0 % of the" in answer_sentence(read(result))


def test_agreement_is_with_the_dense_model(result: Result) -> None:
    result |= {"metric": "agreement"}
    assert "agreement with the dense model 80.1 %, a drop of 0.6 points" in answer_sentence(
        read(result)
    )


@pytest.mark.parametrize(("changed", "said"), [(31, "31 answers differ"), (1, "1 answer differs")])
def test_rows_without_labels_bound_the_drop(result: Result, changed: int, said: str) -> None:
    rows = {"rows": 2000, "changed": changed, "upper": 0.0203, "confidence": 0.9}
    assert unlabelled_sentence(read(result | {"unlabelled": rows})) == (
        f"On 2,000 rows without labels {said} from the dense model's: with 90 % confidence at "
        "most 2.1 % do, so the drop is at most 2.1 points."
    )
    assert unlabelled_sentence(read(result)) == ""
    text = render_page(result | {"unlabelled": rows})
    assert "2,000 rows without labels" in text


def test_a_model_path_is_named_by_its_last_part(result: Result) -> None:
    result["model"] = "meta-llama/Llama-3.1-8B/"
    assert "35.0 % of Llama-3.1-8B's prunable parameters" in answer_sentence(read(result))


def test_a_negative_drop_is_called_a_gain_with_the_interval_of_the_drop(
    result: Result,
) -> None:
    result["drop"] |= {"point": -0.004, "low": -0.012, "high": 0.003}
    assert "a gain of 0.4 points (95 % interval of the drop −1.2 to 0.3)" in answer_sentence(
        read(result)
    )


def test_a_drop_that_rounds_to_nothing_has_no_sign(result: Result) -> None:
    result["drop"] |= {"point": -0.0001}
    assert "a drop of 0.0 points" in answer_sentence(read(result))


def test_a_dense_model_at_chance_misses_the_tolerance(result: Result) -> None:
    result["baseline"] = {"accuracy": 0.51, "chance": 0.5, "beats_chance": False}
    sentence = answer_sentence(read(result))
    assert "reader-6m does not do sst2" in sentence
    assert "51.0 %, is no better than chance (50.0 %)" in sentence
    assert "needs" not in sentence
    assert verdict(read(result)).kind == "missed"
    result["baseline"] |= {"accuracy": 0.3, "inverted": True}
    sentence = answer_sentence(read(result))
    assert "30.0 %, is significantly worse than chance, so labels may be swapped." in sentence


def test_a_dense_result_is_within_the_tolerance_with_any_confidence(result: Result) -> None:
    result["confidence"], result["kept_fraction"]["prunable"] = 0.9, 1.0
    result["drop"] |= {"point": 0.0, "upper": 0.03}
    assert verdict(read(result)).text == "Nothing was pruned, so nothing is lost."
    assert drop_text(read(result)) == "0.0 points"
    assert "interval" not in answer_sentence(read(result))
    result["quantization"] = {"method": "int8"}  # The weights are no longer the dense model's.
    assert "interval" in answer_sentence(read(result))


def test_a_search_that_pruned_nothing_names_the_tolerance(result: Result) -> None:
    result["kept_fraction"] = {"prunable": 1.0, "model": 1.0}
    result["pruned"] = dict(result["baseline"])
    result["drop"] = {"point": 0.0, "low": 0.0, "high": 0.0, "mcnemar_p": 1.0}
    for point in result["search"]["curve"]:
        point["feasible"] = point["chosen"] = point["level"] == 1.0
    assert answer_sentence(read(result)) == (
        "Nothing of reader-6m could be pruned for sst2 within the tolerance of 2.0 points on the "
        "selection split, so all its parameters stay: accuracy stays 80.7 % on 1,821 test rows."
    )


def test_a_dense_result_without_a_search_does_not_name_the_tolerance(result: Result) -> None:
    result["kept_fraction"]["prunable"] = 1.0
    result["search"]["curve"] = []
    assert answer_sentence(read(result)).startswith("Nothing of reader-6m was pruned for sst2")


@pytest.mark.parametrize("missing", ["drop", "baseline", "pruned", "examples", "search", "model"])
def test_a_missing_part_leaves_one_sentence(result: Result, missing: str) -> None:
    result[missing] = None
    sentence = answer_sentence(read(result))
    assert sentence.startswith("sst2 needs 35.0 % of ")
    assert sentence.endswith(".")
    assert "None" not in sentence + verdict(read(result)).text


def test_two_prompts_are_compared_in_one_sentence(result: Result) -> None:
    assert prompt_sentence(read(result)) == ""
    result["prompt"] = {
        "student_prompt": "row",
        "dense_tokens_per_row": 161.2,
        "pruned_tokens_per_row": 39.7,
        "dense_ms_per_row": 35.04,
        "pruned_ms_per_row": None,
    }
    assert prompt_sentence(read(result)) == (
        "For one row the dense model reads 161 tokens in 35.0 ms with 6,450,000 parameters; the "
        "pruned model reads 40 tokens with 3,547,500 parameters."
    )
    assert prompt_sentence(read(result)) in render_page(result).replace("\N{NO-BREAK SPACE}", " ")
