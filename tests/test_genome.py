"""Levels, ranks and what they cost."""

import json
from pathlib import Path

import pytest

from sieve.genome import Genome, Sizing, get_storage, kept_fraction
from sieve.matrices import Matrix

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


def test_ranks_above_the_multiple_are_rounded_down_to_it() -> None:
    ranks = [Sizing(rank_multiple=8).rank(MATRICES[0], level / 100) for level in range(1, 100)]
    plain = [Sizing().rank(MATRICES[0], level / 100) for level in range(1, 100)]
    for rank, free in zip(ranks, plain, strict=True):
        assert rank is not None and free is not None
        assert rank == free if free < 8 else (rank % 8 == 0 and free - 8 < rank <= free)


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
    with pytest.raises(ValueError, match="is no genome"):
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
