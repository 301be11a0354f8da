"""The section on test rows: how many changed, which ones, and which class lost the most."""

import json
from pathlib import Path
from typing import Any

import pytest

from sieve.report import write_report
from sieve.report.flips import SHOWN, shortened
from sieve.report.page import render_page
from sieve.report.result import read
from sieve.report.rows import class_sentence, flips_sentence

Result = dict[str, Any]


@pytest.fixture(autouse=True)
def small_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sieve.report.page.get_plotlyjs", lambda: "/* plotly.js */")


def line(row: int, **changes: Any) -> str:
    record = {
        "row": row,
        "outcome": "lost",
        "prompt": f"Review: number {row} <b>\nSentiment:",
        "right": "positive",
        "dense": "positive",
        "pruned": "negative",
        "dense_score": 1.0,
        "pruned_score": 0.0,
    }
    return json.dumps(record | changes) + "\n"


def page_with(result: Result, folder: Path, lines: list[str]) -> str:
    (folder / "flips.jsonl").write_text("".join(lines))
    write_report(result, folder / "report.html")
    return (folder / "report.html").read_text()


def test_the_first_rows_are_shown_and_the_file_is_named(result: Result, tmp_path: Path) -> None:
    result["flips"] = {"rows": 30, "lost": 28, "won": 2, "changed": 0}
    page = page_with(result, tmp_path, [line(1000 + i) for i in range(30)])
    assert "30 of 1,821 test rows changed: 28 lost and 2 won." in page
    assert "<code>flips.jsonl</code>" in page and "The first 20 rows" in page
    assert "number 1000 &lt;b&gt; Sentiment:" in page
    assert f"number {1000 + SHOWN - 1} " in page and f"number {1000 + SHOWN} " not in page


def test_a_run_without_flips_says_so(result: Result, tmp_path: Path) -> None:
    result["flips"] = {"rows": 0, "lost": 0, "won": 0, "changed": 0}
    page = page_with(result, tmp_path, [])
    assert "No test row changed its answer." in page and "flips.jsonl" not in page


def test_older_results_have_no_such_section(result: Result) -> None:
    assert "Which rows changed" not in render_page(result)


def test_scores_that_are_not_right_or_wrong_are_shown(result: Result, tmp_path: Path) -> None:
    result |= {"metric": "f1", "flips": {"rows": 1, "lost": 1, "won": 0, "changed": 0}}
    written = {"dense": None, "pruned": None, "dense_score": 0.5, "pruned_score": 0.125}
    page = page_with(result, tmp_path, [line(3, **written)])
    assert "<span>0.50</span>" in page and "<span>0.12</span>" in page


def test_texts_are_announced_as_the_largest_losses(result: Result) -> None:
    result |= {"relative": True, "flips": {"rows": 100, "lost": 100, "won": 0, "changed": 0}}
    assert "the 100 texts that lost the most" in flips_sentence(read(result))


def test_a_class_that_lost_far_more_stands_out(result: Result) -> None:
    result["classes"] = [
        {"answer": "positive", "rows": 909, "dense": 0.8, "pruned": 0.74, "lost": 60, "won": 5},
        {"answer": "negative", "rows": 912, "dense": 0.81, "pruned": 0.86, "lost": 4, "won": 50},
    ]
    words = class_sentence(read(result))
    assert words == (
        "“positive” lost far more than the mean: its accuracy fell from 80.0 % to 74.0 % on "
        "909 rows, a drop of 6.0 points; over all rows it is 0.6 points."
    )
    page = render_page(result).replace("\u00a0", " ")
    assert words in page and "<caption><span>Accuracy for each right answer" in page


def test_classes_that_lost_alike_have_only_a_table(result: Result) -> None:
    result["classes"] = [
        {"answer": name, "rows": 900, "dense": 0.8, "pruned": 0.79, "lost": 20, "won": 11}
        for name in ("negative", "positive")
    ]
    assert class_sentence(read(result)) == ""
    assert "Accuracy for each right answer" in render_page(result)


def test_many_classes_are_folded(result: Result) -> None:
    one = {"rows": 20, "dense": 0.8, "pruned": 0.75, "lost": 1, "won": 0}
    result["classes"] = [one | {"answer": f"intent {i}"} for i in range(77)]
    assert "<summary>Accuracy for each of 77 right answers" in render_page(result)


@pytest.mark.parametrize("limit", [30, 220])
def test_a_long_prompt_keeps_its_beginning_and_its_end(limit: int) -> None:
    text = "Question:\n" + "word " * 200 + "\nAnswer:"
    short = shortened(text, limit)
    assert len(short) <= limit + 3 and short.startswith("Question: word")
    assert short.endswith("Answer:") and " … " in short
    assert shortened("one\n two", limit) == "one two"


@pytest.mark.parametrize("limit", range(60, 260, 7))
def test_a_long_prompt_is_cut_between_words(limit: int) -> None:
    words = "Which of these programs and hard disks store something for several years?".split()
    text = " ".join(words * 5)
    start, end = (part.split() for part in shortened(text, limit).split(" … "))
    assert start == (words * 5)[: len(start)] and end == (words * 5)[-len(end) :]
    assert len(" ".join(start)) > limit / 3 and len(" ".join(end)) > min(60, limit // 3) / 2


def test_a_word_without_end_is_cut_inside() -> None:
    assert shortened("a" * 300, 90) == f"{'a' * 60} … {'a' * 30}"
