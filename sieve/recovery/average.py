"""The running mean of trained weights, which a training checks and keeps in their place.

At a high learning rate the weights are scattered around their mean, and the mean is about as good
as the weights are once the rate has fallen. So a check in the middle of a training tells as much as
one at its end (Polyak and Juditsky, SIAM J. Control Optim. 30:838-855, 1992). Torch's AveragedModel
would copy the whole module, with the bank; here the trained weights alone are copied.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """An exponential moving average that reaches back over a ninth of the steps so far at most.

    Args:
        weights: what is averaged, by name; tensors that the optimizer changes in place.
        decay: of the average per step, 0.98 for the last 50 steps; 0: the weights themselves.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.weights, self.decay = weights, decay
        self.start_again()

    def start_again(self) -> None:
        """Begin at the weights as they are."""
        self.means = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step of the optimizer."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, weight in self.weights.items():
            self.means[name].lerp_(weight, 1 - decay)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let the weights have the values of their means inside the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self.weights.items():
            mean = self.means[name].clone()
            self.means[name].copy_(weight)
            weight.copy_(mean)
