"""Which rows may help to confirm a winner."""

from types import SimpleNamespace
from typing import Any

import pytest

from sieve.config import SearchConfig
from sieve.stages import rows as module
from sieve.stages.rows import objective_on, overfits, training_rows
from sieve.tasks.example import Example


def run(confidence: float | None = None, **search: Any) -> Any:
    return SimpleNamespace(
        config=SimpleNamespace(confidence=confidence, search=SearchConfig(**search))
    )


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ({"method": "waterfill", "judge": "margin"}, False),
        ({"method": "uniform"}, False),
        ({"method": "genetic", "judge": "divergence"}, False),
        ({"method": "evopress", "judge": "divergence"}, False),
        ({"method": "genetic", "judge": "margin"}, True),
        ({"method": "evopress", "judge": "margin"}, True),
        ({"method": "random"}, True),
    ],
)
def test_rows_are_fitted_by_what_is_chosen_by_its_accuracy(
    search: dict[str, str], expected: bool
) -> None:
    assert overfits(run(**search)) == expected
    assert overfits(run(confidence=0.9, **search))  # A confidence takes no chances.


def test_a_genome_is_tested_at_its_share_of_the_risk(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(module, "Objective", lambda *_, **settings: given.update(settings))
    config = SimpleNamespace(confidence=0.9, test_confidence=0.95, tolerance=0.02)
    data = SimpleNamespace(scoring_batches=lambda rows: rows)
    stub: Any = SimpleNamespace(config=config, data=data, original_data=data, dense_data=data)
    stub.original_model, stub.task = None, SimpleNamespace(writing=None)
    stub.backbone = SimpleNamespace(model=None)
    objective_on(stub, stub, [[]])
    assert (given["confidence"], given["tolerance"]) == (0.95, 0.02)


def test_only_a_search_of_many_genomes_without_confirmation_leaves_no_row_fresh() -> None:
    assert SearchConfig("genetic", confirmation=0).fits_all_rows
    assert not SearchConfig("genetic", confirmation=0.4).fits_all_rows
    assert not SearchConfig("waterfill", confirmation=0).fits_all_rows


def test_too_few_rows_to_train_on_name_the_command_that_does_not_train() -> None:
    splits = {"calibration": [Example("a", (" x", " y"), 0)], "selection": []}
    few: Any = SimpleNamespace(task=SimpleNamespace(splits=splits))
    with pytest.raises(ValueError) as refused:
        training_rows(few)
    assert str(refused.value) == (
        "got 1 calibration rows, expected at least 4 to train on most of them and check on the "
        "others; provide more rows, or run sieve.run with recovery=none, which trains on none."
    )
