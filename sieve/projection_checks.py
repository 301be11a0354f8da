"""Checks of projection.narrow and projection.prune_embedding, for `sieve.checks`."""

from collections.abc import Iterator

from sieve.config import Config, shards

# Projections whose energies say what a squared error of the outputs costs, so neurons compare.
NARROW = ("loss_aware", "loss_aware_affine", "output", "affine", "whitened")
Check = Iterator[tuple[bool, str]]  # whether something is wrong, and the message


def check_narrow(config: Config) -> Check:
    """What MLPs that lose neurons do not go with."""
    projection, search = config.projection, config.search
    structural = search.alleles == "structural"
    advice = "set search.alleles=ranks" if structural else "set projection.narrow=false"
    yield (
        projection.name not in NARROW,
        f"projection={projection.name} weighs directions, not neurons, so it cannot compare them; "
        f"{advice}, or choose one of {', '.join(NARROW)}.",
    )
    yield (
        projection.tune_steps > 0,
        f"projection.tune_steps trains factors, and an MLP that loses neurons has none; {advice}, "
        "or train the result with recovery=full.",
    )
    yield (
        shards(config.trainer),
        f"trainer=fsdp shards weights that an MLP would lose rows of; {advice}, or trainer=ddp.",
    )
    yield (
        structural and search.method == "uniform",
        "search=uniform puts all matrices on one level, and search.alleles=structural knows only "
        "whole units and neurons; set search=waterfill or search=genetic.",
    )
    yield (
        structural and projection.prune_head | projection.prune_embedding | projection.joint,
        "search.alleles=structural removes only whole units and neurons; set "
        "projection.prune_head=false projection.prune_embedding=false projection.joint=false.",
    )


def check_embedding(config: Config) -> Check:
    """What a factorized embedding does not go with."""
    projection = config.projection
    advice = "set projection.prune_embedding=false"
    yield (
        projection.name == "learned",
        f"projection=learned does not learn the embedding; {advice}.",
    )
    yield (
        config.calibration.strategy == "stream",
        f"calibration.strategy=stream does not load the embedding as a matrix; {advice}.",
    )
    yield (
        shards(config.trainer),
        "trainer=fsdp shards the model over processes, where its embedding stays whole; "
        f"{advice}, or trainer=ddp.",
    )
    yield (
        config.recovery.method == "lora",
        f"recovery=lora cannot train an embedding; set recovery=full, or {advice[4:]}.",
    )
