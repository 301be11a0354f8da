"""The finished model, with its training and quantization, is tested on the selection rows."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sieve.config import QuantizationConfig, SearchConfig
from sieve.stages import certificate as module
from sieve.tasks.drop_test import upper_drop
from sieve.tasks.scores import Scores


def right(count: int, rows: int = 400) -> Scores:
    values = np.arange(rows) < count
    return Scores(values.astype(int), values, np.zeros(rows))


def certificate_of(
    monkeypatch: pytest.MonkeyPatch,
    pruned: Scores,
    method: str = "none",
    risk: float | None = None,
) -> Any:
    """The record of a finished model with the scores `pruned`, and what was done, in order."""
    done: list[str] = []
    data = SimpleNamespace(scoring_batches=lambda rows: rows)
    config = SimpleNamespace(
        test_confidence=0.95, tolerance=0.02, seed=0, quantization=QuantizationConfig(method)
    )
    run = SimpleNamespace(
        config=config,
        data=data,
        original_data=data,
        original_model=nullcontext,
        backbone=SimpleNamespace(model=None),
    )
    scores = iter([right(380), pruned])

    def score(*_: Any) -> Scores:
        done.append("score")
        return next(scores)

    class Switched(nullcontext[Any]):
        def __enter__(self) -> Any:
            return SimpleNamespace(to=lambda genome: done.append(f"switch to {genome}"))

    monkeypatch.setattr(module, "score", score)
    monkeypatch.setattr(module, "scored_switch", lambda *_: Switched())
    monkeypatch.setattr(module, "quantize", lambda *_: done.append("quantize"))
    monkeypatch.setattr(module, "fresh_rows", lambda _: list(range(400)))
    monkeypatch.setattr(module, "dense_examples", lambda rows: rows)
    genome: Any = "genome"
    return module._test(run, None, genome, risk), done  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "certified"), [(379, True), (374, False)])
def test_a_model_is_certified_if_the_upper_bound_of_its_drop_is_within_the_tolerance(
    monkeypatch: pytest.MonkeyPatch, count: int, certified: bool
) -> None:
    record, done = certificate_of(monkeypatch, right(count))
    assert done == ["score", "switch to genome", "score"]
    bound = upper_drop(right(380), right(count), 0.95)
    assert record["upper"] == bound and record["rows"] == 400
    assert record["drop"] == pytest.approx((380 - count) / 400)
    assert record["certified"] is certified is (bound <= 0.02)


def test_a_quantized_model_is_tested_as_it_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    _, done = certificate_of(monkeypatch, right(379), "int8")
    assert done == ["score", "switch to genome", "quantize", "score"]


def test_a_model_trained_after_all_sizes_failed_has_the_risk_that_they_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record, _ = certificate_of(monkeypatch, right(379), risk=0.1)
    assert record["confidence"] == pytest.approx(0.995)
    assert record["upper"] == pytest.approx(upper_drop(right(380), right(379), 0.995))
    whole, _ = certificate_of(monkeypatch, right(379), risk=1.0)
    assert whole["confidence"] == pytest.approx(0.95) and whole["upper"] < record["upper"]


@pytest.mark.parametrize(
    ("method", "risk", "before"),
    [("none", None, True), ("int8", None, False), ("none", 1.0, False)],
)
def test_a_test_repeats_another_unless_training_or_quantization_came_between(
    monkeypatch: pytest.MonkeyPatch, method: str, risk: float | None, before: bool
) -> None:
    assert certificate_of(monkeypatch, right(379), method, risk)[0]["tested_before"] is before


def test_numbers_that_are_not_finite_certify_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = right(380)
    broken.losses[0] = np.nan
    assert certificate_of(monkeypatch, broken)[0]["certified"] is False


def test_rows_that_a_search_fitted_certify_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_dense", lambda *_: False)
    search = SearchConfig("genetic", confirmation=0.0)
    run: Any = SimpleNamespace(config=SimpleNamespace(confidence=0.9, search=search))
    model: Any = None
    assert module.certify(run, model, model, None) is None
