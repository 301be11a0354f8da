"""The walk over sizes finds the smallest size that works, from the nearest larger trained model."""

import pytest

from sieve.recovery.walk import RESOLUTION, Attempt, walk


def sizes_from(smallest: float, floor: float = 0.0):
    """An attempt that is accepted from `smallest` up, and its calls as (size, parent's size)."""
    calls: list[tuple[float, float | None]] = []

    def attempt(size: float, refused: float, parent: Attempt[None] | None) -> Attempt[None] | None:
        if size < floor:
            return None
        assert size > refused
        calls.append((size, parent.kept_fraction if parent else None))
        return Attempt(size, size >= smallest, None)

    return attempt, calls


@pytest.mark.parametrize("smallest", [0.003, 0.04, 0.13, 0.4])
def test_the_answer_is_within_the_resolution_of_the_smallest_size_that_works(
    smallest: float,
) -> None:
    attempt, _ = sizes_from(smallest)
    accepted = [a.kept_fraction for a in walk(attempt, 0.8, tries=20, first=0.1) if a.accepted]
    assert smallest <= min(accepted) < smallest * RESOLUTION


def test_every_attempt_starts_from_the_smallest_accepted_one_that_is_larger() -> None:
    attempt, calls = sizes_from(0.04)
    walk(attempt, 0.8, tries=20, first=0.1)
    assert calls[0][1] is None
    for index, (size, parent) in enumerate(calls[1:], start=1):
        larger = [s for s, _ in calls[:index] if s >= 0.04]
        assert parent == (min(larger) if larger else None)
        assert parent is None or parent > size


def test_sizes_between_the_search_and_a_refused_first_attempt_are_tried() -> None:
    attempt, calls = sizes_from(0.7)
    walk(attempt, 0.8, tries=20, first=0.1)
    assert all(0.08 <= size < 0.8 for size, _ in calls)


def test_tries_limit_the_attempts() -> None:
    attempt, calls = sizes_from(0.001)
    assert len(walk(attempt, 1.0, tries=3, first=0.1)) == len(calls) == 3


def test_the_walk_ends_where_no_genome_is_small_enough() -> None:
    attempt, _ = sizes_from(0.0, floor=0.1)
    attempts = walk(attempt, 1.0, tries=20, first=0.1)
    assert [a.kept_fraction for a in attempts] == pytest.approx([0.1])


def test_a_first_size_that_no_genome_has_is_followed_by_larger_ones() -> None:
    attempt, _ = sizes_from(0.3, floor=0.25)
    accepted = [a.kept_fraction for a in walk(attempt, 1.0, tries=4, first=0.1) if a.accepted]
    assert 0.3 <= min(accepted) < 0.3 * RESOLUTION


def test_a_size_without_a_genome_above_the_refused_one_is_followed_by_larger_ones() -> None:
    trained: list[float] = []

    def attempt(size: float, refused: float, parent: object) -> Attempt[None] | None:
        genome = max(g for g in (0.01, 0.05, 0.3, 0.6, 0.8) if g <= size)
        if genome <= refused:
            return None
        trained.append(genome)
        return Attempt(genome, genome >= 0.3, None)

    accepted = [a.kept_fraction for a in walk(attempt, 0.8, tries=20, first=0.1) if a.accepted]
    assert min(accepted) == 0.3 and len(set(trained)) == len(trained)


def test_a_model_of_size_zero_has_no_attempts() -> None:
    attempt, _ = sizes_from(0.0, floor=0.1)
    assert walk(attempt, 0.0, tries=4, first=0.1) == []
