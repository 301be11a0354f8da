"""What the labels give without a language model stands beside the pruned model's accuracy."""

from typing import Any

from rich.console import Console

from sieve.report import closing_table
from sieve.report.card import model_card
from sieve.report.page import render_page
from sieve.report.result import read
from sieve.report.rivals import standards

TFIDF = {"accuracy": 0.835, "rows": 6920, "seconds": 3.1}
SENTENCE = (
    "Without a language model the labels alone give 83.5 % on the test split (TF-IDF with "
    "logistic regression, 6,920 rows); the pruned model has 80.1 %."
)


def with_rivals(result: dict[str, Any], **changes: Any) -> dict[str, Any]:
    rivals = {"tfidf": TFIDF, "tuned_dense": None, "trained_on_labels": False}
    return result | {"rivals": rivals | changes}


def terminal(result: dict[str, Any]) -> str:
    console = Console(width=80, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(closing_table(result, {}))
    return " ".join(capture.get().split())


def test_page_card_and_table_compare_with_the_labels_alone(result: dict[str, Any]) -> None:
    compared = with_rivals(result)
    assert SENTENCE in render_page(compared).replace("\N{NO-BREAK SPACE}", " ")
    assert SENTENCE in model_card(compared, "owner/model", "{text}")
    assert SENTENCE in terminal(compared)


def test_a_result_without_rivals_says_nothing_of_them(result: dict[str, Any]) -> None:
    assert standards(read(result)) == ""
    assert standards(read(with_rivals(result, tfidf=None))) == ""
    assert "TF-IDF" not in render_page(result) + terminal(result)


def test_training_on_labels_asks_for_a_tuned_dense_model(result: dict[str, Any]) -> None:
    trained = standards(read(with_rivals(result, trained_on_labels=True)))
    assert trained.startswith(SENTENCE)
    assert "python -m sieve.tune" in trained and "model.adapter" in trained


def test_a_tuned_dense_model_is_a_fair_standard(result: dict[str, Any]) -> None:
    tuned = with_rivals(result, trained_on_labels=True, tuned_dense=0.87)
    assert standards(read(tuned)) == SENTENCE
