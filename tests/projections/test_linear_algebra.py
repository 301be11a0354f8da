"""On one thread LAPACK computes what torch computes on several."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from threads import torch_threads
from torch import Tensor

from sieve.projections.factors import finite, square_root
from sieve.projections.linear_algebra import (
    congruence,
    eigenvectors,
    float32_product,
    one_thread_each,
    product,
)

N = 40


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Torch computes with two threads, so that LAPACK is used where a test asks for it alone."""
    with torch_threads(2):
        yield


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def moment(seed: int = 0) -> Tensor:
    """A positive definite matrix."""
    z = random(N, 3 * N, seed=seed)
    return z @ z.T


def blas_threads() -> set[int]:
    return {
        library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"
    }


def test_one_thread_each_is_undone_after_an_error() -> None:
    with threadpool_limits(2, user_api="blas"):
        with pytest.raises(KeyError), one_thread_each():
            assert torch.get_num_threads() == 1 and blas_threads() == {1}
            raise KeyError
        assert torch.get_num_threads() == 2 and blas_threads() == {2}


def test_eigenvectors_diagonalize_the_lower_triangle() -> None:
    a = moment()
    spoiled = a.tril() + 7 * random(N, N).triu(1)  # Nothing may read what is above.
    for context in (nullcontext(), one_thread_each()):
        with context:
            values, vectors = eigenvectors(spoiled)
        torch.testing.assert_close(vectors * values @ vectors.T, a)
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(N, dtype=a.dtype))
        assert (values.diff() >= 0).all()


def test_a_congruence_has_its_lower_triangle() -> None:
    a, root = moment(1), torch.linalg.cholesky(moment(2))
    expected = (root.T @ a @ root).tril()
    torch.testing.assert_close(congruence(root, a).tril(), expected)
    with one_thread_each():
        torch.testing.assert_close(congruence(root, a).tril(), expected)


@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_a_root_multiplies_and_divides_as_the_whole_matrix_does(ridge: float) -> None:
    """A triangle where the moment has full rank, and eigenvectors where it has not."""
    z, other = random(N, 5), random(N, 7, seed=3)
    for second in (moment(), z @ z.T):
        root = square_root(second, ridge + 1e-12)
        full = root.full()
        with one_thread_each():
            around = root.around(moment(1)).tril()
        torch.testing.assert_close(around, (full.T @ moment(1) @ full).tril())
        torch.testing.assert_close(root.times(other), full @ other)
        torch.testing.assert_close(full.T @ root.solve(other), other, rtol=1e-6, atol=1e-6)


def test_lapack_changes_no_argument() -> None:
    a, root = moment(1), torch.linalg.cholesky(moment(2))
    before = a.clone(), root.clone()
    with one_thread_each():
        congruence(root, a)
        eigenvectors(a)
    assert torch.equal(a, before[0]) and torch.equal(root, before[1])


def test_eigenvectors_that_do_not_exist_are_an_error() -> None:
    for context in (nullcontext(), one_thread_each()):
        with context, pytest.raises(torch.linalg.LinAlgError, match="converge"):
            eigenvectors(torch.full((N, N), float("nan"), dtype=torch.float64))


def test_a_product_is_as_precise_as_the_less_precise_matrix() -> None:
    left, right = random(N, N), random(N, N, seed=1)
    exact = left @ right
    assert torch.equal(product(left, right), exact)
    rounded = right.bfloat16()
    close = product(left, rounded)
    assert close.dtype == torch.float64
    torch.testing.assert_close(close, left @ rounded.double(), rtol=1e-5, atol=1e-5)
    assert not torch.equal(close, left @ rounded.double())


def test_a_gpu_multiplies_in_float64() -> None:
    left, right = (
        torch.empty(N, N, device="meta", dtype=d) for d in (torch.float64, torch.float32)
    )
    assert product(left, right).dtype == torch.float64  # Only a CPU has the product in float32.
    with pytest.raises(RuntimeError, match="float32_product"):
        float32_product(left, right)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_number_makes_a_tensor_not_finite(dtype: torch.dtype, value: float) -> None:
    tensor = torch.zeros(33, 65, dtype=dtype)
    assert finite(tensor) and finite(tensor[:0])
    tensor[20, 40] = value
    assert not finite(tensor)
