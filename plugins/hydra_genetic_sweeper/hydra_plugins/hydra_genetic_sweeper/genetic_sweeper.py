"""The plugin class that Hydra discovers. It imports heavy modules only when a sweep starts."""

from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from .config import GeneticSweeperConf


class GeneticSweeper(Sweeper):
    """Search with a genetic algorithm. `config.py` documents the settings."""

    def __init__(self, **settings: Any) -> None:
        settings.pop("_recursive_", None)
        schema = OmegaConf.structured(GeneticSweeperConf)
        plain = {
            k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v
            for k, v in settings.items()
        }
        merged = OmegaConf.to_object(OmegaConf.merge(schema, plain))
        assert isinstance(merged, GeneticSweeperConf)
        self.settings = merged
        self.hydra_context: HydraContext | None = None
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Create the launcher and wrap the application so that its return values are saved."""
        from ._records import Recorder

        self.hydra_context, self.config = hydra_context, config
        recorder = Recorder(task_function, Path(str(config.hydra.sweep.dir)))
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=recorder, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the search and return the content of `optimization_results.yaml`.

        Args:
            arguments: the overrides of the command line, which every job gets.
        """
        from ._search import sweep

        assert self.hydra_context and self.config is not None and self.launcher
        return sweep(self.settings, self.hydra_context, self.config, self.launcher, arguments)
