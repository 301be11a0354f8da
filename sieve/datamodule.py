"""The LightningDataModule of a task: tokenized batches, built once and dealt out to ranks."""

from collections.abc import Sequence
from typing import Any

import lightning as L
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from sieve.batches import (
    ScoringBatch,
    TokenBatch,
    calibration_batches,
    choice_logprobs,
    scoring_batches,
    shard,
)
from sieve.tasks.example import Example, Task

__all__ = [
    "ScoringBatch",
    "SieveDataModule",
    "TokenBatch",
    "calibration_batches",
    "choice_logprobs",
    "scoring_batches",
    "shard",
]


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
    """

    def __init__(
        self,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        batch_tokens: int = 4096,
        calibration_tokens: int | None = None,
        seed: int = 0,
        context_length: int | None = None,
    ) -> None:
        super().__init__()
        self.task = task
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self.calibration_tokens = calibration_tokens
        self.seed = seed
        self.context_length = context_length
        self._calibration: list[TokenBatch] | None = None
        self._scoring: dict[str, list[ScoringBatch]] = {}

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
        return calibration_batches(
            self.task.splits["calibration"],
            self.tokenizer,
            tokens,
            batch_tokens,
            self.seed,
            chat=self.task.chat,
            delimiter=self.task.delimiter,
            context_length=self.context_length,
        )

    def scoring(self, role: str) -> list[ScoringBatch]:
        """All scoring batches of a split, of all ranks; built once."""
        if role not in self._scoring:
            self._scoring[role] = self.scoring_batches(self.task.splits[role])
        return self._scoring[role]

    def scoring_batches(self, examples: Sequence[Example]) -> list[ScoringBatch]:
        """Scoring batches of some examples, which are counted from 0."""
        return scoring_batches(
            examples,
            self.tokenizer,
            self.batch_tokens,
            chat=self.task.chat,
            delimiter=self.task.delimiter,
            context_length=self.context_length,
        )

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
