"""Eigenvectors and products of closed forms, in float64: on one thread of a CPU by LAPACK.

LAPACK computes Rᵀ A R in a quarter of the operations of two products, and numpy's library finds
eigenvectors sooner than torch's. Two threads gain little on one matrix below a thousand columns and
wait for each other where other programs run, so a fit gives each thread a matrix of its own
(`one_thread_each`). Elsewhere torch computes. The functions are custom operations of torch, which a
counter of operations sees.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from scipy.linalg import lapack
from threadpoolctl import ThreadpoolController
from torch import Tensor


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Each thread of this process computes alone, by torch and by LAPACK.

    Only one thread of a process may be in this context: it restores the number of threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _libraries().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)


@cache
def _libraries() -> ThreadpoolController:
    """The BLAS libraries of numpy and scipy, whose threads torch does not know."""
    return ThreadpoolController()


def _alone(tensor: Tensor) -> bool:
    """Whether one thread of the CPU computes, in float64."""
    on_cpu = tensor.device.type == "cpu" and tensor.dtype == torch.float64
    return on_cpu and torch.get_num_threads() == 1


@torch.library.custom_op("sieve::eigenvectors", mutates_args=())
def eigenvectors(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, rising, and eigenvectors as columns, from the lower triangle of a matrix (n, n).

    Raises torch.linalg.LinAlgError where they are not found.
    """
    try:
        if _alone(symmetric):
            with _libraries().limit(limits=1, user_api="blas"):
                found = np.linalg.eigh(symmetric.numpy(), UPLO="L")
            values, vectors = map(torch.from_numpy, found)
        else:
            values, vectors = torch.linalg.eigh(symmetric)
    except np.linalg.LinAlgError as error:
        raise torch.linalg.LinAlgError(str(error)) from error
    if not values.isfinite().all():  # Some libraries return NaN instead.
        raise torch.linalg.LinAlgError("Eigenvalues did not converge")
    return values, vectors


@torch.library.custom_op("sieve::congruence", mutates_args=())
def congruence(root: Tensor, symmetric: Tensor) -> Tensor:
    """The lower triangle of Rᵀ A R (n, n) for a lower triangular R and a symmetric A."""
    if not _alone(symmetric):
        return root.T @ symmetric @ root
    # LAPACK stores matrices by columns: there, the transpose has the upper triangle.
    by_column = symmetric.numpy().T, root.numpy().T
    with _libraries().limit(limits=1, user_api="blas"):
        result, _ = lapack.dsygst(*by_column, itype=2, lower=0)
    return torch.from_numpy(result.T.copy())


def product(left: Tensor, right: Tensor) -> Tensor:
    """A B in float64; on a CPU computed in float32, which is faster, unless both are float64."""
    precise = left.dtype == right.dtype == torch.float64
    if precise or left.device.type != "cpu":
        return left.double() @ right.double()
    return float32_product(left, right)


@torch.library.custom_op("sieve::float32_product", mutates_args=())
def float32_product(left: Tensor, right: Tensor) -> Tensor:
    """A B, computed in float32, in float64."""
    return (left.float() @ right.float()).double()
