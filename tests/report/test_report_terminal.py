"""The closing table: 80 columns, the same answer as the page."""

from pathlib import Path
from typing import Any

import pytest
from report.results import genetic_result
from rich.console import Console

from sieve.report import answer_sentence, closing_table
from sieve.report.result import read
from sieve.report.sentence import prompt_sentence
from sieve.report.spent import confirmation, spent

Result = dict[str, Any]


def lines(result: Result, paths: dict[str, Path] | None = None, width: int = 80) -> list[str]:
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(closing_table(result, paths or {}))
    return capture.get().splitlines()


def words(found: list[str]) -> str:
    return " ".join(" ".join(found).split())


def test_the_table_fits_eighty_columns_and_holds_the_answer(result: Result) -> None:
    result["model"] = "someone/" + "a-model-with-a-very-long-name-" * 4
    found = lines(result, {"report": Path("/home/someone") / ("deep/" * 30) / "report.html"})
    assert max(len(line) for line in found) <= 80
    assert "".join(answer_sentence(read(result)).split()) in "".join("".join(found).split())


def test_the_table_contains_every_measurement(result: Result) -> None:
    found = words(lines(result))
    for expected in (
        "task sst2",
        "model reader-6m",
        "kept 35.0 % of prunable, 55.0 % of all parameters",
        "accuracy on test 80.7 % → 80.1 %",
        "drop 0.6 points (95 % interval −0.4 to 1.6); tolerance 2.0",
        "on disk 12.9 MB → 7.2 MB",
        "speed prefill 1.20 ×, decode 0.95 × of the dense model",
    ):
        assert expected in found


def test_a_speed_from_the_cache_says_so(result: Result) -> None:
    result["speed"] |= {"prefill_spread": 0.05, "decode_spread": 0.3}
    result["cached"] = {"evaluate": True}
    assert (
        "speed prefill 1.20 × ± 5.0 %, decode too noisy to say of the dense model, measured in an "
        "earlier run" in words(lines(result))
    )


def test_the_table_ends_with_the_cost_of_the_search_and_the_confirmation(result: Result) -> None:
    assert words(lines(result)).endswith(
        "The search evaluated 8 genomes and scored 6,376 rows; 1 of them decided early."
    )
    found = genetic_result()
    assert words(lines(found)).endswith(f"{spent(read(found))} {confirmation(read(found))}")
    assert max(len(line) for line in lines(found)) <= 80


def test_a_long_path_is_printed_in_full(result: Result) -> None:
    path = Path("/home/someone") / ("deep/" * 30) / "report.html"
    assert str(path) in "".join("".join(lines(result, {"report": path})).split())


def test_brackets_are_not_read_as_markup(result: Result) -> None:
    result["task"] = "[red]sst2[/nothing]"
    assert "[red]sst2[/nothing]" in words(lines(result))


@pytest.mark.parametrize("key", ["drop", "speed", "bytes", "kept_fraction", "tolerance", "model"])
def test_any_part_may_be_missing(result: Result, key: str) -> None:
    result[key] = None
    assert "None" not in words(lines(result))
    del result[key]
    assert "None" not in words(lines(result))


def test_an_empty_result_still_has_a_table() -> None:
    assert "not measured" in words(lines({}))


def test_the_table_includes_the_accuracy_of_an_onnx_graph(result: Result) -> None:
    assert "exported graph" not in words(lines(result))
    result["export"] = {"format": "factorized", "accuracy": None}
    assert "exported graph" not in words(lines(result))
    result["export"] = {"format": "onnx_int8", "accuracy": 0.795}
    assert "exported graph 79.5 % on test" in words(lines(result))
    result["export"] = {"format": "gguf", "accuracy": 0.795}
    assert "exported file 79.5 % on test" in words(lines(result))


def test_the_cost_of_a_row_with_either_prompt_is_said(result: Result) -> None:
    result["prompt"] = {"dense_tokens_per_row": 161.2, "pruned_tokens_per_row": 39.7}
    assert prompt_sentence(read(result)) in words(lines(result))
