"""Which moments calibration collects, in how many passes, and how many rows all stages read."""

from dataclasses import replace

from sieve.config import Config, ProjectionConfig
from sieve.model.matrices import Matrix, blocks_of
from sieve.projections import get_projection
from sieve.projections.moments import Needs


def needs_of(projection: ProjectionConfig) -> Needs:
    """The moments that a projection needs. A V that siblings share needs input moments.

    Raises ValueError for an embedding, whose inputs are tokens, if they are of inputs.
    """
    needs = get_projection(projection.name).needs
    needs = replace(needs, input=needs.input or projection.joint, neurons=projection.narrow)
    if projection.prune_embedding and (needs.input or needs.magnitude):
        asks = "projection.joint=true" if projection.joint else f"projection={projection.name}"
        raise ValueError(
            f"{asks} needs vectors that a matrix reads, but an embedding reads tokens; set "
            "projection.prune_embedding=false."
        )
    return needs


def groups_of(matrices: list[Matrix], layers_at_once: int | None) -> list[list[Matrix]]:
    """Matrices whose moments are in memory together: all, or of `layers_at_once` blocks."""
    if layers_at_once is None:
        return [matrices]
    blocks = list(blocks_of(matrices).values())
    starts = range(0, len(blocks), layers_at_once)
    groups = [sum(blocks[start : start + layers_at_once], []) for start in starts]
    head = [matrix for matrix in matrices if matrix.layer is None]
    return [*groups, head] if head else groups


def most_tokens(config: Config) -> int:
    """The most tokens of calibration rows that a stage asks for."""
    tokens = [config.calibration.tokens]
    if config.recovery.method != "none":
        tokens.append(config.recovery.tokens)
    if get_projection(config.projection.name).learned:
        tokens.append(config.projection.learning.tokens)
    return max(tokens)
