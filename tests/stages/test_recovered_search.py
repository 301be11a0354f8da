"""Trained genomes are all tested on fresh rows, and the smallest that holds there is taken."""

import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtri

from sieve.recovery.walk import Attempt
from sieve.stages import recovered_search as module
from sieve.stages.recovered_search import RISK, _certified, _Search, search_recovered, shares


def judged(size: float, margin: float) -> Any:
    trained = SimpleNamespace(kept_fraction=size)
    return SimpleNamespace(trained=trained, score=SimpleNamespace(margin=margin))


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A search that notes the sizes that it attempts and trains to the end."""
    search: Any = object.__new__(_Search)
    search.attempted, search.finished = [], []

    def attempt(size: float, refused: float, parent: object) -> Attempt[Any]:
        search.attempted.append((size, refused, parent))
        return Attempt(size, False, judged(size, -0.1))

    def finish(trained: Any) -> Any:
        search.finished.append(trained.kept_fraction)
        return trained

    search.attempt, search.finish = attempt, finish
    return search


def test_accepted_genomes_come_from_the_largest_and_the_smallest_is_trained_to_the_end(
    search: Any,
) -> None:
    chain = search.downwards([judged(0.09, 0.01), judged(0.04, 0.003), judged(0.02, 0.001)])
    assert [next(chain).kept_fraction for _ in range(2)] == [0.09, 0.04]
    assert search.finished == []
    assert [trained.kept_fraction for trained in chain] == [0.02] == search.finished
    assert list(search.downwards([])) == []


@pytest.mark.parametrize(("refused", "trains"), [(0.05, True), (0.1, False), (0.15, False)])
def test_a_genome_no_larger_than_a_refused_one_is_not_trained(
    monkeypatch: pytest.MonkeyPatch, refused: float, trains: bool
) -> None:
    trained: list[str] = []
    larger = SimpleNamespace(key="larger")

    def until_accepted(*given: Any) -> Any:
        trained.append("genome")
        assert given[-1] is larger
        return SimpleNamespace(bank=None, genome=None, record={})

    score = SimpleNamespace(kept_fraction=0.1, feasible=True)
    judge = SimpleNamespace(on=lambda _: SimpleNamespace(score=lambda _: score))
    bank = SimpleNamespace(kept_fraction=lambda _: 0.1, ranks=lambda _: {"q": 3})
    search: Any = object.__new__(_Search)
    search.key, search.judged, search.run = "", [], None
    search.training = SimpleNamespace(
        settings=SimpleNamespace(tries=4), until_accepted=until_accepted, objective=judge
    )
    search._line = lambda larger, key: (bank, None)
    monkeypatch.setattr(module, "largest_within", lambda *_: "genome")
    monkeypatch.setattr(module, "_log", lambda *_: None)
    monkeypatch.setattr(module.Judged, "record", {})
    parent: Any = Attempt(0.4, True, SimpleNamespace(trained=larger))
    assert (search.attempt(0.2, refused, parent) is not None) == trains == bool(trained)


def test_the_first_size_and_the_number_of_sizes_are_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = list[Any]()
    monkeypatch.setattr(module, "walk", lambda *arguments: given.extend(arguments[1:]) or [])
    settings = SimpleNamespace(tries=3, first=0.5)
    run = SimpleNamespace(config=SimpleNamespace(test_confidence=None))
    training: Any = SimpleNamespace(run=run, settings=settings, head_start=0.0)
    calibrated: Any = SimpleNamespace(moments=lambda: None)
    search_recovered(training, calibrated, (None, None), 0.4, "key")  # type: ignore[arg-type]
    assert given == [0.4, 3, 0.5]


def test_a_larger_genome_lies_between_and_is_trained_to_the_end(search: Any) -> None:
    [larger] = search.larger(judged(0.1, 0.001), 0.4)
    assert larger.kept_fraction == pytest.approx(0.2)
    assert search.attempted == [(pytest.approx(0.2), 0.1, None)]
    assert search.finished == [pytest.approx(0.2)]


@pytest.mark.parametrize(
    ("within", "best", "risks"),
    [
        ("111", 2, [0.2, 0.4, 0.8]),
        ("110", 1, [0.2, 0.4, 0.8]),
        ("101", 2, [0.2, 0.4, 0.4]),
        ("011", 2, [0.2, 0.2, 0.6]),
        ("000", None, [0.2, 0.2, 0.4]),
        ("", None, []),
    ],
)
def test_a_genome_within_the_tolerance_hands_its_risk_on_to_the_next(
    within: str, best: int | None, risks: list[float]
) -> None:
    judge, tested = SimpleNamespace(confidence=0.9), list[float]()
    verdicts = iter(within)

    def score(_: object) -> Any:
        tested.append((1 - judge.confidence) / 0.1)
        return SimpleNamespace(feasible=next(verdicts) == "1")

    judge.score = score
    run = SimpleNamespace(config=SimpleNamespace(test_confidence=0.9))
    training: Any = SimpleNamespace(run=run, fresh=SimpleNamespace(on=lambda _: judge))
    chain = [SimpleNamespace(bank=None, genome=None) for _ in within]
    trained, scores = _certified(training, iter(chain), shares(len(chain)))
    assert len(scores) == len(chain) and trained is (None if best is None else chain[best])
    assert tested == pytest.approx(risks)


@pytest.mark.parametrize("accepted", [1, 2, 5])
def test_all_shares_of_the_risk_sum_to_one(accepted: int) -> None:
    assert sum(shares(accepted)) + sum(RISK[2:]) == pytest.approx(1)


def test_trained_genomes_that_are_all_beyond_the_tolerance_are_seldom_accepted() -> None:
    """By simulation: five genomes right at the tolerance, tested on the same rows."""
    random, draws = np.random.default_rng(0), 2_000
    judge = SimpleNamespace(confidence=0.9)
    # Scores of genomes that are pruned from one another are alike.
    normal = 0.8**0.5 * random.normal(size=(draws, 1)) + 0.2**0.5 * random.normal(size=(draws, 5))
    judge.score = lambda value: SimpleNamespace(feasible=value > ndtri(judge.confidence))
    run = SimpleNamespace(config=SimpleNamespace(test_confidence=0.9))
    training: Any = SimpleNamespace(run=run, fresh=SimpleNamespace(on=lambda _: judge))
    wrong = 0
    for values in normal:
        chain = [SimpleNamespace(bank=None, genome=value) for value in values]
        wrong += _certified(training, iter(chain), shares(5))[0] is not None  # type: ignore[arg-type]
    assert wrong / draws <= 0.1 * (1 - sum(RISK[2:])) + 0.01


@pytest.mark.parametrize(("tested", "risk"), [(["a score"], RISK[-1]), ([], 1.0)])
def test_a_genome_trained_as_it_is_has_the_risk_that_failed_sizes_left(
    monkeypatch: pytest.MonkeyPatch, tested: list[str], risk: float
) -> None:
    recover_module = importlib.import_module("sieve.stages.recover")
    trained = SimpleNamespace(record={"taken": True}, genome="genome", bank="trained")
    training = SimpleNamespace(to_the_end=lambda *_: trained)
    monkeypatch.setattr(recover_module, "Training", lambda *_: training)
    searched = {"certified": tested}, None
    monkeypatch.setattr(recover_module, "search_recovered", lambda *_: searched)
    bank: Any = SimpleNamespace(kept_fraction=lambda _: 0.2, ranks=lambda _: {"q": 3})
    run: Any = SimpleNamespace(recovers=True)
    model: Any = (bank, "genome")
    record, *_ = recover_module._recover(run, None, model, model, "key")  # type: ignore[arg-type]
    assert record == {"taken": True, "search": searched[0], "risk": risk}
