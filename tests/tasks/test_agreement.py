"""Agreement with the dense model: rows without labels, and how their scores are compared."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from task_helpers import build, message_of, write_splits

from sieve.tasks.drop_test import upper_drop
from sieve.tasks.metrics import make_row_metric, metric_of
from sieve.tasks.row_values import same_answers
from sieve.tasks.scores import Drop, Scores, as_baseline, compare
from sieve.tasks.task import Example

QUESTION = {"q": "who", "options": ["anne", "bob", "cid"]}
AGREEMENT = metric_of("classification", "agreement")


def folder(root: Path, **columns: Any) -> Path:
    """Splits whose rows have only these columns, numbered."""
    first = next(iter(columns))
    return write_splits(
        root / "data",
        **{
            split: [columns | {first: f"{columns[first]} {split} {i}"} for i in range(6)]
            for split in ("train", "validation", "test")
        },
    )


@pytest.mark.parametrize(
    ("kind", "columns", "prompt", "choices"),
    [
        ("classification", {"text": "a film"}, "{text}", (" negative", " positive")),
        ("multiple_choice", QUESTION, "{q} {options}", (" A", " B", " C")),
        ("ranking", QUESTION, "{q}", (" anne", " bob", " cid")),
        ("ranking", QUESTION, "{q} {option}", (" yes", " yes", " yes")),
        ("generation", {"q": "who"}, "{q}", (" \n",)),
    ],
)
def test_rows_of_every_kind_need_no_label(
    tmp_path: Path, kind: str, columns: dict[str, Any], prompt: str, choices: tuple[str, ...]
) -> None:
    task = build(folder(tmp_path, **columns), kind=kind, prompt=prompt, metric="agreement")
    for examples in task.splits.values():
        assert len(examples) == 6 and {example.choices for example in examples} == {choices}
    assert task.metric.agreement and task.report["answers"] == {}


def test_texts_have_no_answers_to_agree_on(tmp_path: Path) -> None:
    settings = {"kind": "perplexity", "prompt": "{text}", "metric": "agreement"}
    said = message_of(ValueError, folder(tmp_path, text="a film"), **settings)
    assert "expected one of perplexity, bits" in said


def scores(values: list[float]) -> Scores:
    rows = np.zeros(len(values))
    return Scores(rows.astype(int), np.array(values), rows, metric=AGREEMENT)


def test_by_agreement_the_dense_model_is_right_on_every_row() -> None:
    assert as_baseline(scores([1, 0, 1])).values.tolist() == [1, 1, 1]
    by_labels = Scores(np.zeros(2, dtype=int), np.array([1.0, 0.0]), np.zeros(2))
    assert as_baseline(by_labels) is by_labels


@pytest.mark.parametrize("changed", [0, 3, 40])
def test_the_interval_of_changed_answers_is_that_of_clopper_and_pearson(changed: int) -> None:
    pruned = scores([0.0] * changed + [1.0] * (200 - changed))
    drop = compare(as_baseline(pruned), pruned)
    ends = stats.beta.ppf([0.025, 0.975], [changed, changed + 1], [201 - changed, 200 - changed])
    assert isinstance(drop, Drop) and drop.point == pytest.approx(changed / 200)
    assert (drop.low, drop.high) == pytest.approx((np.nan_to_num(ends[0]), ends[1]))


def test_the_upper_bound_of_few_changed_answers_is_exact() -> None:
    pruned = scores([0.0] * 2 + [1.0] * 298)
    upper = upper_drop(as_baseline(pruned), pruned, 0.9)
    assert stats.binom.cdf(2, 300, upper) == pytest.approx(0.1, abs=1e-6)


def test_a_ranking_agrees_by_its_first_option() -> None:
    metric = make_row_metric("ranking", "agreement")
    assert metric is not None
    example = Example("q", ("a", "b", "c"), 1)
    assert metric.choice([-2, -1, -3], example) == 1
    assert metric.choice([-1, -2, -3], example) == 0


@pytest.mark.parametrize(
    ("answer", "dense", "same"),
    [("The cat.", "cat", 1), ("3.0", "3", 1), ("", "", 1), ("nan", "NaN", 1), ("dog", "", 0)],
)
def test_written_answers_agree_after_normalization(answer: str, dense: str, same: int) -> None:
    assert same_answers([answer], [Example("q", (" x",), 0, references=(dense,))]) == [same]
