"""The bank: nested at every rank, no heavier than the weights, whole or refused on disk."""

import copy
import dataclasses
import functools
import json
from pathlib import Path

import pytest
import torch
from models import FAMILIES, tiny_gpt2, tiny_llama, tiny_phi3, tiny_qwen2
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sieved import GRID, banked, mixed, tokens, uniform
from torch import Tensor
from transformers import PreTrainedModel

from sieve.bank.bank import Bank, fit
from sieve.bank.genome import Genome
from sieve.calibration.calibration import calibrate
from sieve.model.matrices import dense_weight, find_matrices
from sieve.projections import PROJECTIONS
from sieve.projections.moments import Moment, Moments

BUILDS = {"llama": tiny_llama, "phi3": tiny_phi3, "gpt2": tiny_gpt2}
CPU = torch.device("cpu")

CLOSED = [name for name, projection in PROJECTIONS.items() if not projection.learned]


# U has orthonormal columns, V = UᵀW.
ORTHONORMAL = ("output", "affine", "svd")
AFFINE = ("affine", "loss_aware_affine")


@functools.cache
def calibrated(family: str, projection: str = "output") -> tuple[PreTrainedModel, Moments]:
    """A model and the moments a projection needs, for tests that change neither."""
    model = FAMILIES[family]()
    batches = [{"input_ids": tokens(4, 16, seed)} for seed in (1, 2)]
    return model, calibrate(model, batches, needs=PROJECTIONS[projection].needs)


def fresh(family: str = "llama", projection: str = "output") -> tuple[PreTrainedModel, Moments]:
    """The same, for tests that change them."""
    return copy.deepcopy(calibrated(family, projection))


def name_of(model: PreTrainedModel, kind: str) -> str:
    """Name of the first matrix of a kind."""
    return next(matrix.name for matrix in find_matrices(model) if matrix.kind == kind)


def solve(weight: Tensor, moment: Moment, projection: str, rank: int) -> tuple[Tensor, Tensor]:
    """The best map B (d_out, d_in) of one rank and its bias (d_out,), in float64, by itself."""
    weight = weight.double()
    second = moment.covariance if projection == "affine" else moment.second.double()
    if projection == "svd":
        spread = weight @ weight.T
    else:
        spread = weight @ second @ weight.T if moment.side == "input" else second
    u = torch.linalg.svd(spread).U[:, :rank]
    mean = moment.output_mean(weight)
    bias = mean - u @ (u.T @ mean) if projection == "affine" or rank == 0 else torch.zeros(())
    return u @ (u.T @ weight), bias


def test_every_kind_and_shape_of_matrix_is_among_those_tested() -> None:
    matrices = [matrix for build in BUILDS.values() for matrix in find_matrices(build())]
    kinds = {m.kind for m in matrices}
    assert kinds == {"q", "k", "v", "o", "gate", "up", "down", "qkv", "gate_up"}
    assert {(m.d_out > m.d_in) - (m.d_out < m.d_in) for m in matrices} == {-1, 0, 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("projection", ORTHONORMAL)
@pytest.mark.parametrize("family", BUILDS)
def test_the_first_columns_are_the_best_factors_of_every_rank(
    family: str, projection: str, dtype: torch.dtype
) -> None:
    model, moments = calibrated(family)
    bank = fit(model, moments, projection, dtype=dtype)
    for matrix in bank.matrices:
        weight = dense_weight(model.get_submodule(matrix.name))
        moment = moments.of(matrix)
        stored = bank.factors[matrix.name].to(CPU, torch.float64)
        assert stored.rank == bank.sizing.top_rank(matrix)
        # U has orthonormal columns, so rows of at most 1, and column j of V = UᵀW is at most ‖w_j‖
        # (‖mean‖ for the offset). Rounding each by eps / 2 moves U V by at most eps ‖w_j‖ at any
        # rank (Cauchy-Schwarz); a tenth is for products of roundings and float16's subnormals.
        slack = 1.1 * torch.finfo(dtype).eps
        for rank in range(stored.rank + 1):
            product, bias = solve(weight, moment, projection, rank)
            error = (stored.u[:, :rank] @ stored.v[:rank] - product).abs()
            assert (error <= slack * weight.double().norm(dim=0)).all(), (matrix.name, rank)
            fitted = stored.bias(rank)
            assert (fitted is not None) == (projection == "affine" or rank == 0)
            if fitted is not None:
                size = moment.output_mean(weight).norm()
                assert ((fitted - bias).abs() <= 2 * slack * size).all(), (matrix.name, rank)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("projection", CLOSED)
def test_factors_weigh_at_most_what_the_dense_weights_weigh(
    projection: str, dtype: torch.dtype
) -> None:
    for family in BUILDS:
        bank = fit(*calibrated(family, projection), projection, dtype=dtype)
        for matrix in bank.matrices:
            factors = bank.factors[matrix.name]
            assert factors.u.dtype == factors.v.dtype == dtype
            # The storage, not the view: a slice of the whole solution would keep all of it.
            held = sum(part.untyped_storage().nbytes() for part in (factors.u, factors.v))
            assert held <= matrix.size * dtype.itemsize
            one_more = (factors.rank + 1) * (matrix.d_out + matrix.d_in)
            assert one_more > matrix.size


def test_the_factors_are_stored_in_the_models_own_dtype_by_default() -> None:
    model, moments = fresh()
    assert fit(model, moments).dtype == torch.float32
    bank = fit(model.to(torch.bfloat16), moments)
    assert {f.u.dtype for f in bank.factors.values()} == {bank.dtype} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("projection", ["output", *AFFINE])
def test_a_bank_survives_its_file_exactly(
    projection: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    bank = fit(*calibrated("gpt2", projection), projection, rank_multiple=4, dtype=dtype)
    bank.save(tmp_path / "bank.safetensors")
    again = Bank.load(tmp_path / "bank.safetensors")
    for field in ("matrices", "sizing", "projection", "dtype", "fingerprint"):
        assert getattr(again, field) == getattr(bank, field)
    assert again.sizing.fits_bias == (projection in AFFINE)
    assert list(again.factors) == list(bank.factors)
    for name, factors in bank.factors.items():
        assert (factors.offset is not None) == (projection in AFFINE)
        for field in dataclasses.fields(factors):
            ours, theirs = (getattr(f[name], field.name) for f in (bank.factors, again.factors))
            if ours is None:
                assert theirs is None
            else:
                assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    assert [file.name for file in tmp_path.iterdir()] == ["bank.safetensors"]


@pytest.mark.parametrize("length", [0, 1, 8, 100, 0.25, 0.5, 0.99, -1])
def test_a_torn_file_is_named(length: float, tmp_path: Path) -> None:
    path = tmp_path / "torn.safetensors"
    fit(*calibrated("llama")).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(length * len(whole)) if 0 < length < 1 else int(length)])
    with pytest.raises(ValueError, match=r"torn\.safetensors is damaged .*; delete it"):
        Bank.load(path)


@pytest.mark.parametrize("content", [b"{}", b"PK\x03\x04" + bytes(100), b"some text\n" * 20])
def test_a_file_of_another_format_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.safetensors is damaged"):
        Bank.load(path)


def test_tensors_that_are_no_bank_are_named(tmp_path: Path) -> None:
    save_file({"u": torch.ones(2)}, tmp_path / "plain.safetensors")
    calibrated("llama")[1].save(tmp_path / "moments.safetensors")
    for name in ("plain", "moments"):
        with pytest.raises(ValueError, match=rf"{name}\.safetensors is not a bank; delete it"):
            Bank.load(tmp_path / f"{name}.safetensors")


def test_a_bank_of_another_format_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    fit(*calibrated("llama")).save(path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["sieve_bank"])
    metadata = {"sieve_bank": json.dumps(header | {"format": header["format"] + 1})}
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(ValueError, match=r"old\.safetensors is not a bank; delete it"):
        Bank.load(path)


@pytest.mark.parametrize("key", ["matrices", "sizing", "projection", "dtype", "fingerprint"])
def test_a_bank_whose_header_lacks_a_key_is_damaged(key: str, tmp_path: Path) -> None:
    path = tmp_path / "short.safetensors"
    fit(*calibrated("llama")).save(path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["sieve_bank"])
    del header[key]
    save_file(load_file(path), path, metadata={"sieve_bank": json.dumps(header)})
    with pytest.raises(ValueError, match=rf"short\.safetensors is damaged \('{key}'\)"):
        Bank.load(path)


# Shapes of the tiny Llama, by hand: q, o 32 x 32; k, v 16 x 32; gate, up 48 x 32; down 32 x 48.
# A rank costs 64, 48 and 80 numbers. `affine` first pays d_out numbers for the bias.
KINDS = ("q", "k", "v", "o", "gate", "up", "down")
RANKS = {
    ("output", 0.6): (9, 6, 6, 9, 11, 11, 11),
    ("output", 0.3): (4, 3, 3, 4, 5, 5, 5),
    ("affine", 0.6): (9, 6, 6, 9, 10, 10, 11),
    ("affine", 0.3): (4, 2, 2, 4, 5, 5, 5),
}


@pytest.mark.parametrize(("projection", "level"), RANKS)
def test_ranks_are_those_counted_by_hand(projection: str, level: float) -> None:
    bank = fit(*calibrated("llama"), projection, rank_multiple=4)  # No rank here is 16 or more.
    ranks = bank.ranks(uniform(bank, level))
    assert [m.kind for m in bank.matrices] == [*KINDS, *KINDS]
    assert tuple(ranks.values()) == RANKS[projection, level] * 2


def test_kept_parameters_are_those_counted_by_hand() -> None:
    model, moments = calibrated("llama")
    bank = fit(model, moments)
    levels = (0.6, 1.0, 0.0, 0.3, 0.6, 0.3, 1.0, *(0.3,) * 7)
    genome = mixed(bank, levels)
    # q rank 9, k dense, v its mean, o rank 4, gate rank 11, up rank 5, down dense; then rank 4 ...
    first = 9 * 64 + 512 + 16 + 4 * 64 + 11 * 80 + 5 * 80 + 1536
    second = 4 * 64 + 3 * 48 + 3 * 48 + 4 * 64 + 5 * 80 + 5 * 80 + 5 * 80
    assert bank.size == 2 * (2 * 1024 + 2 * 512 + 3 * 1536) == 15360
    assert bank.kept_parameters(genome) == first + second
    assert bank.kept_fraction(genome) == (first + second) / 15360
    # Without o nothing of its attention is needed but the mean of o.
    without_o = mixed(bank, (0.6, 1.0, 0.3, 0.0, *levels[4:]))
    assert bank.kept_parameters(without_o) == first + second - 9 * 64 - 512 - 16 - 4 * 64 + 32
    affine = fit(model, moments, "affine")
    # gate loses a rank; every factorized matrix gains a bias, v at level 0 had its mean.
    first += -80 + 32 + 32 + 48 + 48
    second += -2 * 48 + (32 + 16 + 16 + 32 + 48 + 48 + 32)
    assert affine.kept_parameters(mixed(affine, levels)) == first + second


def test_a_bias_that_the_dense_layer_has_is_not_counted_again() -> None:
    bank = banked(tiny_qwen2(), "affine")
    # Biases in q, k and v alone: gate 48 and up 48 gain one, in two layers.
    genome = mixed(bank, (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0))
    assert bank.kept_parameters(genome) == 2 * (32 * 32 + 48 + 48 + 32 * 48)


@pytest.mark.parametrize("projection", CLOSED)
def test_the_dense_genome_keeps_everything(projection: str) -> None:
    bank = fit(*calibrated("gpt2", projection), projection)
    dense = Genome(GRID, (0,) * len(bank.names), bank.names, bank.fingerprint)
    assert set(bank.ranks(dense).values()) == {None}
    assert bank.kept_fraction(dense) == 1


@pytest.mark.parametrize("projection", CLOSED)
@pytest.mark.parametrize(
    "other",
    [
        functools.partial(tiny_llama, hidden_size=64),
        functools.partial(tiny_llama, num_hidden_layers=1),
        tiny_gpt2,
    ],
    ids=["wider", "shallower", "another architecture"],
)
def test_moments_of_another_model_are_refused(other, projection: str) -> None:
    needs = PROJECTIONS[projection].needs
    moments = calibrate(other(), [{"input_ids": tokens()}], needs=needs)
    with pytest.raises(ValueError, match=r"belongs? to another model; calibrate this model first"):
        fit(tiny_llama(), moments, projection)


@pytest.mark.parametrize(("kind", "bad"), [("q", "nan"), ("gate", "inf"), ("down", "nan")])
@pytest.mark.parametrize("projection", CLOSED)
def test_weights_that_are_not_finite_are_named(projection: str, kind: str, bad: str) -> None:
    model, moments = fresh("llama", projection)
    name = name_of(model, kind)
    model.get_submodule(name).weight[3, 4] = float(bad)
    with pytest.raises(
        ValueError, match=rf"{name}: the weights are not finite; .*download it again"
    ):
        fit(model, moments, projection)


@pytest.mark.parametrize("part", ["second", "mean"])
@pytest.mark.parametrize("kind", ["q", "gate", "down"])
@pytest.mark.parametrize("projection", CLOSED)
def test_moments_that_are_not_finite_are_named(projection: str, kind: str, part: str) -> None:
    model, moments = fresh("llama", projection)
    name = name_of(model, kind)
    getattr(moments.entries[name], part)[-1] = float("nan")
    with pytest.raises(ValueError, match=rf"{name}: the moments are not finite; calibrate again"):
        fit(model, moments, projection)


def test_factors_beyond_float16_ask_for_float32() -> None:
    model, moments = fresh()
    name = name_of(model, "down")
    model.get_submodule(name).weight *= 2.0**20
    message = rf"{name}: factors do not fit torch\.float16; set projection\.dtype=float32"
    with pytest.raises(ValueError, match=message):
        fit(model, moments, dtype=torch.float16)
    assert fit(model, moments, dtype=torch.float32).dtype == torch.float32


def test_a_mean_beyond_float16_asks_for_float32() -> None:
    model, moments = fresh()
    name = name_of(model, "down")
    moments.entries[name].mean[0] = 1e5
    with pytest.raises(ValueError, match=rf"{name}: .*set projection\.dtype=float32"):
        fit(model, moments, dtype=torch.float16)


def test_the_default_fingerprint_is_the_same_every_time() -> None:
    assert fit(*fresh()).fingerprint == fit(*fresh()).fingerprint


def test_the_default_fingerprint_tells_settings_and_moments_apart() -> None:
    model, moments = fresh()
    keys = [fit(*fresh("llama", name), name).fingerprint for name in CLOSED]
    keys.append(fit(model, moments, rank_multiple=4).fingerprint)
    keys.append(fit(model, moments, dtype=torch.float16).fingerprint)
    keys.append(fit(model, calibrate(model, [{"input_ids": tokens()}])).fingerprint)
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("kind", ["q", "k", "v", "o", "gate", "up", "down"])
def test_the_default_fingerprint_changes_with_the_weights_of_any_matrix(kind: str) -> None:
    model, moments = fresh()
    bank = fit(model, moments)
    # On unchanged moments: what is kept of `down` is its outputs, which say nothing of W.
    model.get_submodule(name_of(model, kind)).weight[0, 0] += 0.125
    assert fit(model, moments).fingerprint != bank.fingerprint


def test_a_key_given_is_the_banks_fingerprint() -> None:
    assert fit(*calibrated("llama"), key="f00d").fingerprint == "f00d"


@pytest.mark.parametrize("setting", ["projection", "storage"])
def test_unknown_settings_are_refused_before_anything_is_solved(setting: str) -> None:
    with pytest.raises(ValueError, match=f"got {setting} 'magic', expected one of"):
        fit(tiny_llama(), Moments({}), **{setting: "magic"})


def test_what_is_learnt_by_gradient_is_not_taken_for_a_closed_form() -> None:
    with pytest.raises(ValueError, match="learned has no closed form; see `learn`"):
        fit(*fresh("llama"), "learned")
