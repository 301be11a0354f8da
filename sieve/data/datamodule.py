"""The LightningDataModule of a task: tokenized batches, built once and split over ranks."""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import cast

import lightning as L
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from sieve.data.batches import Batch, TokenBatch, batches_of_rank
from sieve.data.reader import Reader
from sieve.data.scored import ScoredBatch
from sieve.data.sharing import PrefixSharing
from sieve.tasks.example import Example
from sieve.tasks.task import Task

log = logging.getLogger(__name__)
PARTS = 8


class SieveDataModule(L.LightningDataModule):
    """The batches of a task for Lightning: calibration to predict, and test.

    Train with `use_distributed_sampler=False`: this class splits the batches over the ranks.

    Args:
        batch_tokens: padded tokens per batch.
        calibration_tokens: tokens of calibration, without padding; None takes all rows.
        calibration_rows: the most rows of calibration; None: no limit.
        context_length: the most tokens of a row; None does not check.
        classes: returns the classes of a classifier for a task's labels; None for language models.
        mix: returns the tasks that calibration rows come from, each with its share of the tokens;
            called when the rows are needed. None: `task` alone.
        sharing: when to run the common prefix of rows once; None: never.
        share_calibration: whether calibration rows share their prefix too.
        apart: as for `Reader`.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_tokens: int = 4096,
        calibration_tokens: int | None = None,
        calibration_rows: int | None = None,
        seed: int = 0,
        context_length: int | None = None,
        classes: Callable[[Task], tuple[int, ...]] | None = None,
        mix: Callable[[], Sequence[tuple[Task, float]]] | None = None,
        sharing: PrefixSharing | None = None,
        share_calibration: bool = True,
        apart: Callable[[Task, Sequence[Example]], Sequence[bool]] | None = None,
    ) -> None:
        super().__init__()
        self.task = task
        self._mix = mix
        self.reader = Reader(tokenizer, context_length, classes, self._shortened, sharing, apart)
        self.batch_tokens = batch_tokens
        self.calibration_tokens, self.calibration_rows = calibration_tokens, calibration_rows
        self.share_calibration = share_calibration
        self.seed = seed
        self.shortened = 0  # the most prompts of a split that had a field shortened
        self._scoring: dict[str, Sequence[ScoredBatch]] = {}

    def _shortened(self, prompts: int) -> None:
        if prompts > self.shortened:
            self.shortened = prompts
            log.warning(
                "%d prompts were longer than the model's context; their field named by "
                "task.truncate was shortened.",
                prompts,
            )

    @cached_property
    def mix(self) -> list[tuple[Task, float]]:
        """The tasks that calibration rows come from, and their shares of the tokens."""
        return [(self.task, 1.0)] if self._mix is None else list(self._mix())

    @cached_property
    def calibration(self) -> list[TokenBatch]:
        """All calibration batches, of all ranks."""
        rows = self.calibration_rows
        return self.calibration_batches(self.batch_tokens, self.calibration_tokens, rows)

    def calibration_parts(self, tokens: int) -> list[TokenBatch]:
        """Calibration batches of about `tokens` tokens; at least 8, if there are 8 rows."""
        limit = tokens if self.calibration_tokens is None else min(tokens, self.calibration_tokens)
        batch_tokens = max(1, min(self.batch_tokens, limit // PARTS))
        batches = self.calibration_batches(batch_tokens, limit, self.calibration_rows)
        if len(batches) >= PARTS:
            return batches
        padded = sum(batch.input_ids[:, len(batch.prefix) :].numel() for batch in batches)
        return self.calibration_batches(max(1, padded // PARTS), limit, self.calibration_rows)

    def calibration_batches(
        self, batch_tokens: int, tokens: int | None, rows: int | None = None, share: bool = True
    ) -> list[TokenBatch]:
        """Batches of at most `batch_tokens` padded tokens that hold `tokens` calibration tokens.

        Args:
            rows: the most rows; None: no limit.
            share: False runs every row whole.
        """
        share, batches = share and self.share_calibration, list[TokenBatch]()
        for task, portion in self.mix:
            limits = [
                None if limit is None else max(1, round(limit * portion))
                for limit in (tokens, rows)
            ]
            batches += self.reader.calibration(
                task, limits[0], batch_tokens, self.seed, limits[1], share
            )
        return batches

    def scoring(self, role: str) -> Sequence[ScoredBatch]:
        """All scoring batches of a split, of all ranks; built once."""
        if role not in self._scoring:
            self._scoring[role] = self.scoring_batches(self.task.splits[role])
        return self._scoring[role]

    def divide_among(self, processes: int) -> None:
        """Halve the batches until each process has one of the test split."""
        rows = self.task.splits["test"]
        while len(self.scoring_batches(rows)) < processes and self.batch_tokens > 1:
            self.batch_tokens //= 2

    def scoring_batches(self, examples: Sequence[Example]) -> Sequence[ScoredBatch]:
        """Scoring batches of some examples, which are counted from 0."""
        return self.reader.scoring(self.task, examples, self.batch_tokens)

    def predict_dataloader(self) -> DataLoader[TokenBatch]:
        """This rank's calibration batches."""
        return self._loader(self.calibration)

    def test_dataloader(self) -> DataLoader[ScoredBatch]:
        """This rank's test batches."""
        return self._loader(self.scoring("test"))

    def _loader(self, batches: Sequence[Batch]) -> DataLoader[Batch]:
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        if len(batches) < world_size:
            raise ValueError(
                f"got {len(batches)} batches for {world_size} processes, expected at least one for "
                "each; lower batch_tokens or trainer.devices."
            )
        share = batches_of_rank(batches, rank, world_size)
        return DataLoader(cast("Dataset[Batch]", share), batch_size=None)
