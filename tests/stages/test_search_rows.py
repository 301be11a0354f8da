"""Which rows a search scores, and in which stages."""

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest

from sieve.tasks import Example

module = import_module("sieve.stages.search")  # The package has a function of this name.


@pytest.mark.parametrize(
    ("method", "confidence", "staged"),
    [
        ("waterfill", 0.9, True),
        ("uniform", 0.9, True),
        ("waterfill", None, False),
        ("genetic", 0.9, False),
    ],
)
def test_a_line_with_a_confidence_scores_its_rows_in_stages_by_hash(
    monkeypatch: pytest.MonkeyPatch, method: str, confidence: float | None, staged: bool
) -> None:
    rows = [Example(f"row {i}", (" a", " b"), 0) for i in range(20)]
    monkeypatch.setattr(module, "search_rows", lambda _: rows)
    monkeypatch.setattr(module, "search_objective", lambda *given: given[2:])
    config = SimpleNamespace(confidence=confidence, search=SimpleNamespace(method=method))
    run: Any = SimpleNamespace(config=config)
    given: Any = module._objective(run, None)  # type: ignore[arg-type]
    if not staged:
        assert given == ()
        return
    judge, order = given
    assert judge == "margin" and sorted(order) == list(range(20)) != order
    rows.reverse()
    reversed_order: Any = module._objective(run, None)[1]  # type: ignore[arg-type, index]
    assert [19 - i for i in reversed_order] == order  # The order of the file does not matter.
