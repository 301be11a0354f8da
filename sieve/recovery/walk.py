"""The smallest size that works after training, by bisection over sizes.

Each attempt prunes the nearest larger trained model further and trains it, so a small model can be
reached in several steps down.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
RATIO = 0.4  # kept fraction of an attempt over that of the accepted one before it
# At the end, the smallest accepted size over the largest refused one.
RESOLUTION = 1.2


@dataclass(frozen=True)
class Attempt(Generic[T]):
    """A pruned and trained model, `result`, and whether it is within the tolerance."""

    kept_fraction: float
    accepted: bool
    result: T


def walk(
    attempt: Callable[[float, float, Attempt[T] | None], Attempt[T] | None],
    largest: float,
    tries: int,
    first: float,
    ratio: float = RATIO,
    resolution: float = RESOLUTION,
) -> list[Attempt[T]]:
    """Attempts from the first to the last; the answer is the smallest accepted one, if any.

    The first attempt is far below the largest size. Accepted sizes are divided by a constant until
    an attempt is refused; then sizes are bisected on a logarithmic scale.

    Args:
        attempt: prunes to a kept fraction of at most its first argument and above its second, from
            the smallest accepted attempt or (None) from the dense model, and trains; returns None
            if there is no such genome, and a larger size is tried.
        largest: kept fraction that needs no training to be within the tolerance.
        tries: attempts at most.
        first: kept fraction of the first attempt over `largest`.
        ratio: kept fraction of an attempt over that of the accepted one before it.
        resolution: ends the walk between a refused size and an accepted one this much larger.
    """
    attempts: list[Attempt[T]] = []
    best: Attempt[T] | None = None
    refused, target = 0.0, largest * first
    while len(attempts) < tries:
        outcome = attempt(target, refused, best)
        if outcome is None:
            refused = target
        else:
            attempts.append(outcome)
            if outcome.accepted:
                best = outcome
            else:
                refused = outcome.kept_fraction
        upper = best.kept_fraction if best else largest
        if upper <= refused * resolution:
            break
        target = math.sqrt(upper * refused) if refused else upper * ratio
    return attempts
