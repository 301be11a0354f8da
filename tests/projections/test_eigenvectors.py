"""Eigenvectors have the same sign whatever rounding does."""

import torch

from sieve.projections.factors import eigh


def test_the_largest_element_of_an_eigenvector_is_positive() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(20, 20, generator=generator, dtype=torch.float64)
    values, vectors = eigh(root @ root.T)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()
    torch.testing.assert_close(vectors * values @ vectors.T, root @ root.T)
