"""Which rows a search scores, and in which stages."""

from importlib import import_module
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from sieve.search.score import Score
from sieve.stages import rows as module
from sieve.tasks import Example

search = import_module("sieve.stages.search")  # The package has a function of this name.


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
    run: Any = SimpleNamespace(config=config, objectives={})
    bank: Any = SimpleNamespace(fingerprint="bank")
    given: Any = module.searched_objective(run, bank)
    assert given is module.searched_objective(run, bank)  # The refit knows the search's scores.
    if not staged:
        assert given == ()
        return
    judge, order = given
    assert judge == "margin" and sorted(order) == list(range(20)) != order
    rows.reverse()
    run.objectives.clear()
    reversed_order: Any = module.searched_objective(run, bank)[1]  # type: ignore[index]
    assert [19 - i for i in reversed_order] == order  # The order of the file does not matter.


class Place(NamedTuple):
    """A genome of a line."""

    index: int
    indexes: tuple[int, int] = (0, 1)


class Rows:
    """An objective that knows half of the rows first: margins there, and on all rows."""

    def __init__(self, first: list[float], whole: list[float]) -> None:
        self.margins = {True: first, False: whole}
        self.provisional, self.evaluated = False, dict[Any, Score]()

    def score(self, genome: Any) -> Score:
        memo = self.evaluated.get(genome)
        if memo is None or not (memo.whole or memo.margin < 0 or self.provisional):
            margin = self.margins[self.provisional][genome.index]
            self.evaluated[genome] = Score(0.5, 0.9, margin, 10, whole=not self.provisional)
        return self.evaluated[genome]


@pytest.mark.parametrize("confidence", [0.9, None])
def test_the_chosen_genome_of_a_line_is_within_the_tolerance_on_all_rows(
    monkeypatch: pytest.MonkeyPatch, confidence: float | None
) -> None:
    monkeypatch.setattr(search, "confirmation_rows", lambda _: [])
    genomes = [Place(index) for index in range(16)]
    line: Any = SimpleNamespace(count=16, genome=lambda i: genomes[i])
    run: Any = SimpleNamespace(config=SimpleNamespace(confidence=confidence))
    for last in range(1, 16):
        for lucky in (0, 3):  # genomes beyond the tolerance that pass on the first rows
            whole = [0.1 if i <= last else -0.1 for i in range(16)]
            first = [0.1 if i <= last + lucky else -0.1 for i in range(16)]
            objective: Any = Rows(first, whole)
            chosen: Any = search._smallest(run, objective, line)
            assert chosen.index == last and objective.evaluated[chosen].feasible
            if not lucky and confidence is not None:
                assert sum(score.whole for score in objective.evaluated.values()) == 1
