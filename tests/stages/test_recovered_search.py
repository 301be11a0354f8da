"""Trained genomes are candidates from the smallest up, and only as many as are asked for."""

from types import SimpleNamespace
from typing import Any

import pytest

from sieve.recovery.walk import Attempt
from sieve.stages.recovered_search import _Search


def judged(size: float, margin: float) -> Any:
    trained = SimpleNamespace(kept_fraction=size)
    return SimpleNamespace(trained=trained, score=SimpleNamespace(margin=margin))


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A search that notes the sizes that it attempts and trains to the end."""
    search: Any = object.__new__(_Search)
    search.attempted, search.finished = [], []

    def attempt(size: float, parent: object) -> Attempt[Any]:
        search.attempted.append((size, parent))
        return Attempt(size, False, judged(size, -0.1))

    def finish(trained: Any) -> Any:
        search.finished.append(trained.kept_fraction)
        return trained

    search.attempt, search.finish = attempt, finish
    return search


def test_the_second_candidate_is_the_accepted_one_with_the_largest_margin(search: Any) -> None:
    accepted = [judged(0.09, 0.01), judged(0.04, 0.003), judged(0.02, 0.001), judged(0.06, 0.02)]
    candidates = search.candidates(accepted, 0.5)
    assert next(candidates).kept_fraction == 0.02
    assert search.finished == [0.02]  # The second one is trained only if the first one fails.
    assert next(candidates).kept_fraction == 0.06
    assert next(candidates, None) is None and search.attempted == []


def test_without_another_accepted_genome_a_larger_one_is_trained(search: Any) -> None:
    candidates = search.candidates([judged(0.1, 0.001)], 0.4)
    assert next(candidates).kept_fraction == 0.1 and search.attempted == []
    assert next(candidates).kept_fraction == pytest.approx(0.2)
    assert search.attempted == [(pytest.approx(0.2), None)]
    assert search.finished == [0.1, pytest.approx(0.2)]


def test_without_any_accepted_genome_there_is_no_candidate(search: Any) -> None:
    assert list(search.candidates([], 0.4)) == []
