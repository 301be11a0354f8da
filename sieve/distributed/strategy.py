"""`trainer=fsdp`: Lightning's ModelParallelStrategy (FSDP2) for models that are already sharded.

The ranks load the model together, so they join before that (`join`). Trainers that are made later
use the same process group.
"""

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh

from sieve.distributed.ranks import watch


class ShardedStrategy(ModelParallelStrategy):
    """Each rank holds a shard of every weight and processes its part of the rows.

    Takes the options of ModelParallelStrategy; `timeout` is how long a rank waits for a lost one.
    """

    def setup_environment(self) -> None:
        """Join the ranks once, and give the module their mesh."""
        if self._device_mesh is None:
            self._data_parallel_size = self.num_nodes * self.num_processes
            self._tensor_parallel_size = 1
            super().setup_environment()
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = self._device_mesh

    @property
    def mesh(self) -> DeviceMesh:
        """The mesh (ranks,) over which weights are sharded."""
        return self.device_mesh["data_parallel"]

    def join(self) -> None:
        """Start the other ranks of this machine, unless something else has, and join all ranks."""
        self.connect(L.LightningModule())  # Setting up an environment needs a module.
        if self.launcher is None:
            self.setup_environment()
        else:
            self.launcher.launch(self.setup_environment)
        watch(self.launcher)


def join(trainer: L.Trainer) -> DeviceMesh | None:
    """Join the ranks of a sharding trainer and return their mesh; None for other trainers.

    This starts the processes of the other ranks, which run the whole command line.
    """
    strategy: Strategy = trainer.strategy
    if not isinstance(strategy, ShardedStrategy):
        return None
    if not distributed.is_initialized():
        strategy.join()
    elif strategy._device_mesh is None:
        strategy.connect(L.LightningModule())
        strategy.setup_environment()
    return strategy.mesh
