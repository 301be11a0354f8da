"""Blocks that threads solve at the same time have the factors of one thread."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from models import tiny_llama
from sieved import tokens
from threads import torch_threads

import sieve.bank.bank
from sieve.bank.bank import Bank, finish, fit, fit_blocks, unfinished
from sieve.bank.solver import AT_ONCE, Solver, at_once, most_bytes
from sieve.calibration.calibration import calibrate
from sieve.model.matrices import Matrix, find_matrices
from sieve.projections import PROJECTIONS

NAMES = ["output", "loss_aware", "whitened", "affine"]


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    with torch_threads(3):
        yield


@pytest.mark.parametrize("projection", NAMES)
def test_threads_solve_as_one_does(projection: str, tmp_path: Path) -> None:
    model = tiny_llama(num_hidden_layers=4)
    batches = [{"input_ids": tokens(4, 16, seed)} for seed in (1, 2)]
    moments = calibrate(model, batches, needs=PROJECTIONS[projection].needs)
    together = fit(model, moments, projection)
    assert torch.get_num_threads() == 3
    solver = Solver(model, moments, projection)
    fit_blocks(solver, tmp_path, "key", unfinished(solver, tmp_path))
    finish(solver, tmp_path)
    torch.set_num_threads(1)
    alone = fit(model, moments, projection)
    assert list(together.factors) == list(alone.factors)
    assert together.fingerprint == alone.fingerprint
    for name, expected in alone.factors.items():
        for bank in (together, Bank.load(tmp_path)):
            for part in ("u", "v", "energy", "mean"):
                assert torch.equal(getattr(bank.factors[name], part), getattr(expected, part))


def test_several_threads_solve_in_one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = tiny_llama(num_hidden_layers=6), set[tuple[int, int]]()
    moments = calibrate(model, [{"input_ids": tokens(4, 16, 1)}])
    met = threading.Barrier(3)  # It breaks unless three solve at the same time.
    solve = Solver.solve

    def watched(self: Solver, gene: Matrix, *args: object) -> object:
        if gene.kind == "q_proj":
            met.wait(timeout=60)
        seen.add((threading.get_ident(), torch.get_num_threads()))
        return solve(self, gene, *args)

    monkeypatch.setattr(Solver, "solve", watched)
    fit(model, moments)
    assert {threads for _, threads in seen} == {1}
    assert len({thread for thread, _ in seen}) == 3


def test_an_error_of_one_thread_ends_the_fit_with_its_message() -> None:
    model = tiny_llama(num_hidden_layers=4)
    moments = calibrate(model, [{"input_ids": tokens(4, 16, 1)}])
    name = find_matrices(model)[9].name
    with torch.no_grad():
        model.get_submodule(name).weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=f"{name}: the weights are not finite"):
        fit(model, moments)
    assert torch.get_num_threads() == 3


def test_as_many_blocks_are_solved_as_memory_and_threads_allow() -> None:
    small = Matrix("model.layers.0.q", 64, 64, "q", 0, False, "")
    wide = Matrix("model.layers.1.q", 3000, 3000, "q", 1, False, "")
    blocks = {str(i): [small] for i in range(8)}
    assert at_once(blocks, 1) == 1 and at_once(blocks, 3) == 3 and at_once(blocks, 64) == 8
    assert at_once({}, 4) == 1
    assert AT_ONCE / 2 < most_bytes(wide) < AT_ONCE
    assert at_once(blocks | {"wide": [small, wide]}, 8) == 8
    assert at_once(blocks | {"wide": [wide], "too": [wide]}, 8) == 1
    head = Matrix("lm_head", 49152, 576, "lm_head", None, False, "")
    assert at_once(blocks | {"lm_head": [head]}, 8) > 1


def test_what_a_run_reads_block_by_block_is_solved_one_after_another(tmp_path: Path) -> None:
    """With the roundings of threads that solve together."""
    model, open_at_once, most = tiny_llama(num_hidden_layers=4), 0, 0
    moments = calibrate(model, [{"input_ids": tokens(4, 16, 1)}])

    @contextmanager
    def loaded(name: str) -> Iterator[None]:
        nonlocal open_at_once, most
        open_at_once += 1
        most = max(most, open_at_once)
        assert torch.get_num_threads() == 1
        yield
        open_at_once -= 1

    solver = Solver(model, moments)
    fit_blocks(solver, tmp_path, "key", unfinished(solver, tmp_path), loaded=loaded)
    finish(solver, tmp_path)
    assert most == 1
    bank, whole = Bank.load(tmp_path), fit(model, moments)
    assert all(torch.equal(bank.factors[n].u, whole.factors[n].u) for n in whole.factors)


def test_a_fit_that_resumes_with_one_block_has_the_same_factors(tmp_path: Path) -> None:
    model = tiny_llama(num_hidden_layers=4)
    needs = PROJECTIONS["loss_aware"].needs
    moments = calibrate(model, [{"input_ids": tokens(4, 16, 1)}], needs=needs)
    solver = Solver(model, moments, "loss_aware")
    paths = unfinished(solver, tmp_path)
    for part in (paths[:3], paths[3:]):
        fit_blocks(solver, tmp_path, "key", part)
    finish(solver, tmp_path)
    bank, whole = Bank.load(tmp_path), fit(model, moments, "loss_aware")
    for name, expected in whole.factors.items():
        assert torch.equal(bank.factors[name].u, expected.u)
        assert torch.equal(bank.factors[name].v, expected.v)


@pytest.mark.parametrize(("large", "expected"), [(0, 1), (2**40, 0)])
def test_memory_of_large_matrices_is_returned_at_once(
    large: int, expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entered = 0

    @contextmanager
    def watched() -> Iterator[None]:
        nonlocal entered
        entered += 1
        yield

    monkeypatch.setattr(sieve.bank.bank, "lean", watched)
    monkeypatch.setattr(sieve.bank.bank, "LARGE", large)
    model = tiny_llama(num_hidden_layers=3)
    solver = Solver(model, calibrate(model, [{"input_ids": tokens(4, 16, 1)}]))
    fit_blocks(solver, tmp_path, "key", unfinished(solver, tmp_path))
    assert entered == expected
