"""`trainer=fsdp`: Lightning's ModelParallelStrategy (FSDP2) for models that are sharded already.

Its ranks meet before the model is loaded (`join`), for even that they do together; a trainer that
is made later finds them joined.
"""

from typing import Any

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import distributed

from sieve.distributed.ranks import watch


class ShardedStrategy(ModelParallelStrategy):
    """All ranks share out the weights, and each takes its part of the rows.

    options: of ModelParallelStrategy, such as `timeout`, after which a rank that waits for a lost
    one gives up.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)

    def setup_environment(self) -> None:
        """Join the ranks, once, and give a module their mesh."""
        if self._device_mesh is None:
            self._data_parallel_size = self.num_nodes * self.num_processes
            self._tensor_parallel_size = 1
            super().setup_environment()
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = self._device_mesh

    @property
    def shards(self) -> Any:
        """The mesh (ranks,) that weights are cut along."""
        return self.device_mesh["data_parallel"]

    def join(self) -> None:
        """Start the other ranks of this machine, where nothing else has, and meet all of them."""
        self.connect(L.LightningModule())  # Whoever sets up an environment asks for one.
        if self.launcher is None:
            self.setup_environment()
        else:
            self.launcher.launch(self.setup_environment)
        watch(self.launcher)


def join(trainer: L.Trainer) -> Any:
    """Meet the other ranks of a trainer that shards; the mesh, or None where the trainer does not.

    The processes are started here, and run the command line from its beginning.
    """
    strategy: Strategy = trainer.strategy
    if not isinstance(strategy, ShardedStrategy):
        return None
    if not distributed.is_initialized():
        strategy.join()
    elif strategy._device_mesh is None:
        strategy.connect(L.LightningModule())
        strategy.setup_environment()
    return strategy.shards
