"""The badge of a run: certified, likely or missed on test."""

from typing import Any

import pytest
from rich.console import Console

from sieve.report import answer_sentence, closing_table
from sieve.report.card import model_card
from sieve.report.page import render_page
from sieve.report.result import read
from sieve.report.verdict import verdict

Result = dict[str, Any]
BEYOND = {"point": 0.037, "low": 0.021, "high": 0.053}


def badge(result: Result) -> str:
    judged = verdict(read(result))
    assert judged.badge.startswith(judged.kind)
    return judged.badge


def chosen(result: Result) -> Result:
    return next(point for point in result["search"]["curve"] if point["chosen"])


def test_a_point_estimate_within_the_tolerance_is_likely(result: Result) -> None:
    assert badge(result) == "likely"
    assert verdict(read(result)).text == (
        "This is a point estimate: on the test split the drop is within the tolerance of 2.0 "
        "points, and so is its whole 95 % interval. Set confidence=0.9 to require this of fresh "
        "rows with 90 % confidence."
    )
    result["drop"]["high"] = 0.026
    assert badge(result) == "likely" and "interval" not in verdict(read(result)).text


def certificate(drop: float, upper: float) -> Result:
    certified = upper <= 0.02
    return {"rows": 1_643, "drop": drop, "upper": upper, "certified": certified}


def test_selection_rows_certify_a_model_whatever_the_bound_on_test_rows(result: Result) -> None:
    result |= {"confidence": 0.975, "certificate": certificate(0.01, 0.02)}
    for upper in (0.014, 0.026, None):
        result["drop"] |= {"upper": upper, "high": 0.03}
        assert badge(result) == "certified"
        assert verdict(read(result)).text == (
            "With 97.5 % confidence, over draws of selection rows, the drop on fresh rows is "
            "within the tolerance of 2.0 points."
        )


def test_a_finished_model_whose_bound_is_beyond_the_tolerance_is_likely(result: Result) -> None:
    result |= {"confidence": 0.9, "certificate": certificate(0.012, 0.0221)}
    assert badge(result) == "likely"
    assert verdict(read(result)).text.endswith(
        "The selection rows do not certify it with 90 % confidence: their bound is 2.3 points."
    )
    result["certificate"]["confidence"] = 0.99
    assert verdict(read(result)).text.endswith(
        "do not certify it with 99 % confidence, as is needed where the same rows test several "
        "models: their bound is 2.3 points."
    )
    result["certificate"] = None
    assert badge(result) == "likely"


def test_a_search_that_scored_all_selection_rows_leaves_none_to_certify(result: Result) -> None:
    result |= {"confidence": 0.9, "certificate": None}
    result["search"] |= {"method": "genetic", "confirmation": None}
    assert badge(result) == "likely" and "set search.confirmation=0.4" in verdict(read(result)).text
    result["search"]["method"] = "waterfill"
    assert "search.confirmation" not in verdict(read(result)).text


def test_the_finished_model_counts_not_the_genome_of_the_search(result: Result) -> None:
    result |= {"confidence": 0.9, "certificate": certificate(0.01, 0.02)}
    chosen(result)["feasible"] = False  # Before a training.
    assert badge(result) == "certified"
    result["certificate"] = certificate(0.03, 0.04)
    chosen(result)["feasible"] = True  # Before a quantization.
    assert badge(result) == "missed on selection"


@pytest.mark.parametrize(
    ("feasible", "words"),
    [
        (True, "test split, though it was on the selection split"),
        (False, "test split or the selection split"),
        (None, "test split"),
    ],
)
@pytest.mark.parametrize("confidence", [None, 0.9])
def test_a_drop_beyond_the_tolerance_on_test_is_a_miss(
    result: Result, feasible: bool | None, words: str, confidence: float | None
) -> None:
    result["drop"] |= BEYOND
    result["confidence"], chosen(result)["feasible"] = confidence, feasible
    sentence, text = answer_sentence(read(result)), verdict(read(result)).text
    assert badge(result) == "missed on test"
    assert text.startswith(f"The tolerance of 2.0 points was not met on the {words}. More")
    assert "needs" not in sentence and "a drop of 3.7 points" in sentence


def test_a_miss_on_the_selection_split_is_stated(result: Result) -> None:
    chosen(result)["feasible"] = False
    assert badge(result) == "missed on selection"
    text = verdict(read(result)).text
    assert "was not met on the selection split, though it was on the test" in text


def test_a_drop_of_exactly_the_tolerance_is_within_it(result: Result) -> None:
    result["drop"] |= {"point": 0.807 - 0.787, "high": 0.0200000000001}
    assert badge(result) == "likely" and "whole 95 % interval" in verdict(read(result)).text


def test_a_pruned_model_whose_numbers_are_not_finite_misses_the_tolerance(result: Result) -> None:
    result["pruned"]["not_finite"] = 3
    judged = verdict(read(result))
    assert badge(result) == "missed on test" and "needs" not in answer_sentence(read(result))
    assert "not finite (NaN or infinity) on 3 of" in judged.text and "float32" in judged.text


def test_an_unmeasured_drop_has_an_unknown_verdict() -> None:
    assert verdict(read({})).kind == "unknown"
    assert "not measured" in answer_sentence(read({}))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "likely"),
        ({"confidence": 0.9, "certificate": certificate(0.01, 0.02)}, "certified"),
        ({"drop": BEYOND}, "missed on test"),
    ],
)
def test_page_terminal_and_card_show_one_figure_and_one_badge(
    result: Result, changes: Result, expected: str
) -> None:
    result |= changes
    page = render_page(result).replace("\N{NO-BREAK SPACE}", " ")
    assert '<p class="figure">35.0 % <span>kept</span></p>' in page
    assert f'<p class="badge {expected.split()[0]}">{expected}</p>' in page
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(closing_table(result, {}))
    assert f"35.0 % kept   {expected}" in capture.get()
    card = model_card(result, "owner/model", "{text}")
    assert f"**35.0 % kept** of the prunable parameters · **{expected}**\n" in card
