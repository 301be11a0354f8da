"""What a run shares with its stages, opened in this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from runs import arguments

from sieve import stages
from sieve.conversion import CONF, register_resolvers, to_config
from sieve.stages import Run


@contextmanager
def session(world: Path, *overrides: str) -> Iterator[Run]:
    """A run on the model and the data of a folder that `make_world` made."""
    register_resolvers()
    given = arguments(world, world / "run", *overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = to_config(compose("config", [a for a in given if not a.startswith("hydra.")]))
    with stages.opened(config, world / "run") as run:
        yield run
