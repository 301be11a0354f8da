"""Levels, ranks and what they cost."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sieve.bank.genome import Genome, Sizing, get_storage, kept_fraction
from sieve.model.matrices import Matrix

NAMES = ("layers.0.q", "layers.0.down")
MATRICES = [
    Matrix(NAMES[0], 64, 48, "q", 0, False, NAMES[0]),
    Matrix(NAMES[1], 32, 96, "down", 0, True, NAMES[1]),
]
GRID = (1.0, 0.5, 0.1, 0.0)


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("fits_bias", [False, True])
@pytest.mark.parametrize("level", [0.0, 0.01, 0.1, 0.35, 0.5, 0.9, 0.999])
def test_the_rank_is_the_largest_that_stays_within_the_level(
    matrix: Matrix, fits_bias: bool, level: float
) -> None:
    sizing = Sizing(fits_bias=fits_bias)
    rank = sizing.rank(matrix, level)
    assert rank is not None
    bias = matrix.d_out if fits_bias and not matrix.has_bias else 0
    costs = [r * (matrix.d_out + matrix.d_in) + bias for r in range(200)]
    fitting = [r for r, cost in enumerate(costs) if cost <= level * matrix.size]
    assert rank == (fitting[-1] if fitting else 0)


def test_level_one_is_the_dense_matrix_and_level_zero_its_mean_output() -> None:
    sizing = Sizing()
    assert sizing.rank(MATRICES[0], 1.0) is None
    assert sizing.kept(MATRICES[0], None) == 64 * 48
    assert sizing.rank(MATRICES[0], 0.0) == 0
    assert sizing.kept(MATRICES[0], 0) == 64  # the mean output, as a bias
    assert sizing.kept(MATRICES[1], 0) == 0  # which the dense layer had already


@pytest.mark.parametrize(
    ("multiple", "free", "rank"),
    [
        (16, 15, 15),
        (16, 17, 16),
        (16, 31, 30),
        (16, 34, 32),
        (16, 63, 60),
        (16, 70, 64),
        (16, 127, 120),
        (16, 129, 128),
        (16, 1379, 1376),
        (8, 63, 60),
        (8, 71, 64),
        (8, 0, 0),
        (12, 200, 192),
        (12, 50, 48),
        (1, 333, 333),
    ],
)
def test_ranks_are_rounded_down_to_a_multiple_by_an_eighth_at_most(
    multiple: int, free: int, rank: int
) -> None:
    wide = replace(MATRICES[0], d_out=4096, d_in=4096)
    sizing = Sizing(rank_multiple=multiple)
    level = sizing.kept(wide, free) / wide.size
    assert sizing.rank(wide, level) == rank == sizing.rounded(free) == sizing.rounded(rank)
    assert rank > free * 7 / 8 or rank == free


def test_break_even_is_the_largest_rank_that_costs_no_more_than_dense() -> None:
    for matrix in MATRICES:
        top = Sizing().top_rank(matrix)
        assert top * (matrix.d_out + matrix.d_in) <= matrix.size
        assert (top + 1) * (matrix.d_out + matrix.d_in) > matrix.size


def test_kept_fraction_counts_every_number_by_hand() -> None:
    genome = Genome(GRID, (1, 2), NAMES, "bank")
    rank_q = (64 * 48 // 2) // (64 + 48)
    rank_down = int(32 * 96 * 0.1) // (32 + 96)
    expected = (rank_q * 112 + rank_down * 128) / (64 * 48 + 32 * 96)
    assert kept_fraction(genome, MATRICES, Sizing()) == expected
    assert kept_fraction(Genome(GRID, (0, 0), NAMES, "bank"), MATRICES, Sizing()) == 1


def test_a_genome_survives_its_file_and_the_file_is_readable(tmp_path: Path) -> None:
    genome = Genome(GRID, (1, 3), NAMES, "f00d")
    genome.save(tmp_path / "genome.json")
    assert Genome.load(tmp_path / "genome.json") == genome
    body = json.loads((tmp_path / "genome.json").read_text())
    assert body["levels"] == {NAMES[0]: 0.5, NAMES[1]: 0.0}


def test_a_level_off_the_grid_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "genome.json"
    Genome(GRID, (1, 3), NAMES, "f00d").save(path)
    path.write_text(path.read_text().replace('.q": 0.5', '.q": 0.55'))
    with pytest.raises(ValueError, match=r"0\.55.*not on its grid"):
        Genome.load(path)


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": 99, "levels": {}}'])
def test_a_file_that_is_no_genome_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "g.json").write_text(text)
    with pytest.raises(ValueError, match="is not a genome"):
        Genome.load(tmp_path / "g.json")


def test_a_genome_of_another_bank_is_refused() -> None:
    genome = Genome(GRID, (1, 3), NAMES, "f00d")
    genome.check_bank("f00d", NAMES)
    with pytest.raises(ValueError, match="belongs to bank 'f00d'.*search again"):
        genome.check_bank("beef", NAMES)
    with pytest.raises(ValueError, match="search again"):
        genome.check_bank("f00d", NAMES[:1])


def test_an_unknown_storage_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="got storage 'round', expected one of plain, pivoted"):
        get_storage("round")
