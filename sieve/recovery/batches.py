"""The training batches of every optimizer step, in an order that depends on the seed alone."""

from collections.abc import Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from sieve.config import RecoveryConfig


class StepBatches(Dataset[object]):
    """The batches that one rank trains on, from step `start` to the last step.

    Every epoch shuffles all batches anew. Which batches a step takes depends on the step and the
    seed alone, so a resumed training continues with the same batches, and `world` ranks together
    take the batches that one process would accumulate.
    """

    def __init__(
        self,
        batches: Sequence[object],
        config: RecoveryConfig,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
    ) -> None:
        self.batches, self.rank, self.world, self.seed = batches, rank, world, seed
        self.first = start * config.accumulate * world
        self.count = (config.steps - start) * config.accumulate

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> object:
        if index >= self.count:
            raise IndexError(index)
        epoch, position = divmod(self.first + index * self.world + self.rank, len(self.batches))
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * epoch)
        return self.batches[int(torch.randperm(len(self.batches), generator=generator)[position])]

    def loader(self) -> DataLoader[object]:
        """A loader that yields the batches unchanged."""
        return DataLoader(self, batch_size=None, collate_fn=_unchanged)


def _unchanged(batch: object) -> object:
    return batch
