"""Accuracy at sizes that nobody chose, and a map of bottlenecks put to the test."""

from typing import Any

import pytest
from models import tiny_llama
from runs import finished, make_world
from sieved import banked

from sieve.search.bottlenecks import SHARE, contrast
from sieve.search.lines import uniform_line, waterfill_line
from sieve.stages.curve import nearest

BANK = banked(tiny_llama(), "loss_aware", storage="pivoted")
SIZES = (0.5, 0.2, 0.1)


@pytest.mark.parametrize("line", [uniform_line(BANK), waterfill_line(BANK)])
def test_a_size_asked_for_is_the_largest_genome_that_keeps_no_more(line: Any) -> None:
    kept = [BANK.kept_fraction(line.genome(place)) for place in range(line.count)]
    for size, genome in zip(SIZES, nearest(line, BANK, SIZES), strict=True):
        assert BANK.kept_fraction(genome) == max(k for k in kept if k <= size)


def test_sizes_that_one_genome_answers_stand_there_once() -> None:
    assert len(nearest(uniform_line(BANK), BANK, [0.5, 0.5, 0.499])) == 1


def needs() -> list[dict[str, Any]]:
    """A map in which the later a matrix stands, the more it needs."""
    return [{"name": g.name, "kept_fraction": i / 100} for i, g in enumerate(BANK.genes)]


def test_a_contrast_takes_a_share_away_from_either_end_of_the_map() -> None:
    parts = contrast(BANK, needs())
    levels = {side: part.genome.levels for side, part in parts.items()}
    gone = {side: [n for n, x in found.items() if x < 1] for side, found in levels.items()}
    names = [gene.name for gene in BANK.genes]
    assert gone["others"] == names[: parts["others"].matrices]
    assert gone["bottlenecks"] == names[-parts["bottlenecks"].matrices :]
    largest = max(gene.size for gene in BANK.genes) / BANK.size
    for part in parts.values():
        assert 0.9 * SHARE < part.removed < SHARE + largest


def test_a_contrast_leaves_a_rank_where_no_matrix_may_go() -> None:
    part = contrast(BANK, needs(), lowest_rank=1)["others"]
    ranks = BANK.ranks(part.genome)
    assert {rank for rank in ranks.values() if rank is not None} == {1}


def test_a_contrast_takes_a_group_or_its_members_but_not_both() -> None:
    bank = banked(tiny_llama(), "loss_aware", storage="pivoted", joint=True)
    assert bank.groups
    rows = [{"name": g.name, "kept_fraction": i / 100} for i, g in enumerate(bank.genes)]
    for part in contrast(bank, rows).values():
        assert part.removed >= 0.9 * SHARE


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run that was asked for both."""
    world = make_world(tmp_path_factory.mktemp("world"))
    asked = ("curve=[.5,.1]", "search.bottlenecks=true", "export=none")
    return finished(world, "run", *asked) | {"again": finished(world, "again", *asked)}


@pytest.mark.slow
def test_a_run_measures_the_sizes_it_is_asked_for_on_the_test_rows(result: dict[str, Any]) -> None:
    for point, size in zip(result["curve"], (0.5, 0.1), strict=True):
        assert 0 < point["kept_fraction"] <= size
        drop = result["baseline"]["accuracy"] - point["accuracy"]
        assert point["drop"]["point"] == pytest.approx(drop)
        assert point["drop"]["low"] <= drop <= point["drop"]["high"]


@pytest.mark.slow
def test_a_run_without_evolution_has_a_map_of_bottlenecks_too(result: dict[str, Any]) -> None:
    assert len(result["search"]["bottlenecks"]) == len(result["matrices"])
    assert set(result["contrast"]) == {"bottlenecks", "others"}
    assert all(0.2 < part["removed"] < 0.6 for part in result["contrast"].values())


@pytest.mark.slow
def test_what_was_measured_before_is_taken_from_the_cache(result: dict[str, Any]) -> None:
    assert not result["cached"]["curve"] and result["again"]["cached"]["curve"]
    assert result["again"]["curve"] == result["curve"]


def test_nothing_is_measured_where_nothing_is_asked() -> None:
    from sieve.stages.curve import curve

    class Silent:
        config = type("Config", (), {"curve": []})()

    assert curve(Silent(), BANK, {"bottlenecks": None}) == {"curve": None, "contrast": None}  # type: ignore[arg-type]
