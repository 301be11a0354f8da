"""What a search says of the dense model's score on its rows, compared with guessing."""

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sieve.config import SearchConfig
from sieve.evaluation.evaluation import Scores, compare_with_chance
from sieve.stages.selecting import check_baseline
from sieve.tasks.example import Example
from sieve.tasks.metrics import ACCURACY, Metric

CHOICES = (" no", " yes")


def rows(no: int, yes: int) -> list[Example]:
    return [Example(str(i), CHOICES, int(i >= no)) for i in range(no + yes)]


def scores_of(examples: list[Example], predicted: list[int], metric: Metric = ACCURACY) -> Scores:
    right = np.array([e.answer == p for e, p in zip(examples, predicted, strict=True)])
    return Scores(np.array(predicted), right, np.zeros(len(examples)), metric=metric)


def check(
    tolerance: float,
    examples: list[Example],
    predicted: list[int],
    kind: str = "",
    metric: Metric = ACCURACY,
) -> None:
    run: Any = SimpleNamespace(
        config=SimpleNamespace(tolerance=tolerance, search=SearchConfig(confirmation=0), seed=0),
        task=SimpleNamespace(
            splits={"selection": examples}, writing=None, kind=kind or "classification"
        ),
        leads=True,
    )
    check_baseline(run, scores_of(examples, predicted, metric))


def wrong_on(examples: list[Example], count: int) -> list[int]:
    """Predictions that are wrong on `count` rows, spread over both answers."""
    wrong = set(np.linspace(0, len(examples) - 1, count).astype(int).tolist())
    return [1 - e.answer if i in wrong else e.answer for i, e in enumerate(examples)]


def test_a_tolerance_that_leads_to_chance_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    balanced = rows(100, 100)
    with pytest.raises(ValueError) as refused:
        check(0.3, balanced, wrong_on(balanced, 40))  # .8 − .3 is .5
    assert str(refused.value) == (
        "tolerance=0.3 is too large: a model at chance would pass, because on the selection split "
        "chance is 0.500 and the dense model scores 0.800; set tolerance below 0.3, or choose a "
        "prompt or a model that does the task better."
    )
    check(0.29, balanced, wrong_on(balanced, 40))
    uneven = rows(180, 20)  # The common answer is right on .9 of the rows.
    with pytest.raises(ValueError, match="set tolerance below 0.07, or"):
        check(0.08, uneven, wrong_on(uneven, 6))
    assert not caplog.records


def test_agreement_asks_for_rows_with_other_answers_and_not_for_a_better_model(
    caplog: pytest.LogCaptureFixture,
) -> None:
    agreement = Metric("agreement", agreement=True)
    mostly, always = rows(198, 2), rows(200, 0)
    with pytest.raises(ValueError) as refused:
        check(0.02, mostly, wrong_on(mostly, 0), metric=agreement)
    assert str(refused.value) == (
        "tolerance=0.02 is too large: a model that always gives the same answer would pass, "
        "because the dense model gives one answer to 99.0% of the selection rows; set tolerance "
        "below 0.01, or provide rows that it answers differently."
    )
    check(0.005, mostly, wrong_on(mostly, 0), metric=agreement)
    assert not caplog.records
    check(0.02, always, wrong_on(always, 0), metric=agreement)
    assert "gives one answer to 100.0% of the selection rows" in caplog.text
    assert "better model" not in caplog.text and "labels" not in caplog.text


def test_at_chance_a_warning_is_enough(caplog: pytest.LogCaptureFixture) -> None:
    balanced = rows(100, 100)
    check(0.5, balanced, wrong_on(balanced, 96))
    assert "scores 0.520 on the selection split, no better than chance (0.500)" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("classification", "check the order of task.labels, and task.label_values."),
        ("multiple_choice", "check which answers the rows call right."),
    ],
)
def test_worse_than_chance_says_that_labels_may_be_swapped(
    caplog: pytest.LogCaptureFixture, kind: str, advice: str
) -> None:
    balanced = rows(100, 100)
    check(0.02, balanced, wrong_on(balanced, 150), kind)
    [record] = caplog.records
    said = record.getMessage()
    assert "scores 0.250 on the selection split, significantly worse than chance" in said
    assert said.endswith(f"so labels may be swapped; {advice}")


def inverted(examples: list[Example], predicted: list[int]) -> bool:
    chance = compare_with_chance(scores_of(examples, predicted), examples)
    assert chance is not None and not (chance.inverted and chance.beaten)
    return chance.inverted


def test_uneven_answers_alone_do_not_look_swapped() -> None:
    uneven = rows(160, 40)
    assert not inverted(uneven, [1] * 200)  # one answer: .2 is what it gets by luck
    assert not inverted(uneven, [i % 2 for i in range(200)])  # .5 is below .8, and no sign of it
    assert inverted(uneven, wrong_on(uneven, 180))
    # 8 of 200 right answers fewer than by luck are not significant, 20 are (P = .003).
    assert not inverted(rows(100, 100), wrong_on(rows(100, 100), 108))
    assert inverted(rows(100, 100), wrong_on(rows(100, 100), 120))
