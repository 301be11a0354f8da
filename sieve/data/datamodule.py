"""The LightningDataModule of a task: tokenized batches, built once and dealt out to ranks."""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import lightning as L
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from sieve.data.batches import TokenBatch, shard
from sieve.data.prefix import Sharing
from sieve.data.reader import Reader
from sieve.tasks.example import Example
from sieve.tasks.task import Task

log = logging.getLogger(__name__)
PARTS = 8


def _only_item(item: Any) -> Any:
    return item


class SieveDataModule(L.LightningDataModule):
    """The batches of a task for Lightning: calibration to fit or predict, selection, test.

    Train with `use_distributed_sampler=False`: the ranks' shares are dealt here.

    Args:
        batch_tokens: padded tokens per batch.
        calibration_tokens: tokens of calibration, padding not counted; None takes all rows.
        context_length: the longest row that the model takes; None does not check.
        classes: of a classifier, see `sieve.data.reader.Reader`.
        mix: gives the tasks that calibration rows come from, each with its share of the tokens,
            once they are needed; by default the task alone.
        sharing: when what all scored rows begin with is run once; None is never.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        batch_tokens: int = 4096,
        calibration_tokens: int | None = None,
        seed: int = 0,
        context_length: int | None = None,
        classes: Callable[[Task], tuple[int, ...]] | None = None,
        mix: Callable[[], Sequence[tuple[Task, float]]] | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        super().__init__()
        self.task = task
        self._mix = mix
        self.reader = Reader(tokenizer, context_length, classes, self._shorten, sharing)
        self.batch_tokens = batch_tokens
        self.calibration_tokens = calibration_tokens
        self.seed = seed
        self.shortened = 0  # prompts of one split that were too long and had a field shortened
        self._calibration: list[TokenBatch] | None = None
        self._scoring: dict[str, list[Any]] = {}

    def _shorten(self, prompts: int) -> None:
        if prompts > self.shortened:
            self.shortened = prompts
            log.warning(
                "%d prompts were longer than the model's context; the field that task.truncate "
                "names was shortened in them.", prompts,
            )  # fmt: skip

    @cached_property
    def mix(self) -> list[tuple[Task, float]]:
        """The tasks that calibration rows come from, and their shares of the tokens."""
        return [(self.task, 1.0)] if self._mix is None else list(self._mix())

    def calibration(self) -> list[TokenBatch]:
        """All calibration batches, of all ranks; built once."""
        if self._calibration is None:
            tokens = self.calibration_tokens
            self._calibration = self.calibration_batches(self.batch_tokens, tokens)
        return self._calibration

    def calibration_parts(self, tokens: int) -> list[TokenBatch]:
        """The first rows of calibration, in at least 8 batches as far as there are rows."""
        limit = tokens if self.calibration_tokens is None else min(tokens, self.calibration_tokens)
        batch_tokens = max(1, min(self.batch_tokens, limit // PARTS))
        batches = self.calibration_batches(batch_tokens, limit)
        if len(batches) >= PARTS:
            return batches
        padded = sum(batch.input_ids.numel() for batch in batches)
        return self.calibration_batches(max(1, padded // PARTS), limit)

    def calibration_batches(self, batch_tokens: int, tokens: int | None) -> list[TokenBatch]:
        """Calibration batches of so many tokens, of at most so many each."""
        found: list[TokenBatch] = []
        for task, share in self.mix:
            own = None if tokens is None else max(1, round(tokens * share))
            found += self.reader.calibration(task, own, batch_tokens, self.seed)
        return found

    def scoring(self, role: str) -> list[Any]:
        """All scoring batches of a split, of all ranks; built once."""
        if role not in self._scoring:
            self._scoring[role] = self.scoring_batches(self.task.splits[role])
        return self._scoring[role]

    def scoring_batches(self, examples: Sequence[Example]) -> list[Any]:
        """Scoring batches of some examples, which are counted from 0."""
        return self.reader.scoring(self.task, examples, self.batch_tokens)

    def train_dataloader(self) -> DataLoader[Any]:
        """This rank's calibration batches."""
        return self._loader(self.calibration())

    def predict_dataloader(self) -> DataLoader[Any]:
        """This rank's calibration batches, for a pass without gradients."""
        return self._loader(self.calibration())

    def val_dataloader(self) -> DataLoader[Any]:
        """This rank's selection batches."""
        return self._loader(self.scoring("selection"))

    def test_dataloader(self) -> DataLoader[Any]:
        """This rank's test batches."""
        return self._loader(self.scoring("test"))

    def _loader(self, batches: Sequence[Any]) -> DataLoader[Any]:
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        if len(batches) < world_size:
            raise ValueError(
                f"got {len(batches)} batches for {world_size} processes, expected one for each at "
                "least; lower batch_tokens or trainer.devices."
            )
        mine: Any = shard(batches, rank, world_size)
        return DataLoader(mine, batch_size=None, shuffle=False, collate_fn=_only_item)
