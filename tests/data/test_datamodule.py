"""Lightning gets every batch of a task exactly once, whatever the number of ranks."""

import warnings
from collections.abc import Iterable
from types import SimpleNamespace

import lightning as L
import pytest
from token_helpers import RAGGED, make_examples, make_tokenizer

from sieve.data.batches import TokenBatch, count_rows
from sieve.data.choices import ScoringBatch
from sieve.data.datamodule import SieveDataModule
from sieve.data.scored import ScoredBatch
from sieve.tasks import Task
from sieve.tasks.metrics import ACCURACY


def make_task() -> Task:
    splits = {
        "calibration": make_examples(" positive", " negative", count=9),
        "selection": RAGGED,
        "test": make_examples(" very good", " bad", count=8),
    }
    return Task("toy", "reviews", ACCURACY, splits, {})


def make_module(**settings: object) -> SieveDataModule:
    return SieveDataModule(make_task(), make_tokenizer(), **{"batch_tokens": 60, **settings})


def indices(loader: Iterable[ScoredBatch]) -> list[int]:
    return [index for batch in loader for index in batch.examples.tolist()]


def test_loaders_give_the_batches_of_their_split() -> None:
    module = make_module()
    assert sorted(indices(module.test_dataloader())) == list(range(8))
    batches = list(module.predict_dataloader())
    assert all(isinstance(batch, TokenBatch) for batch in batches)
    assert sum(len(batch.input_ids) for batch in batches) == 9


def test_the_rows_of_a_calibration_limit_no_training() -> None:
    module = make_module(calibration_rows=3)
    assert count_rows(module.calibration) == count_rows(module.calibration_parts(10_000)) == 3
    assert count_rows(module.calibration_batches(60, 10_000)) == 9


def test_batches_are_built_once() -> None:
    module = make_module()
    assert module.scoring("test") is module.scoring("test")
    assert module.calibration is module.calibration


def test_every_rank_gets_its_own_share(monkeypatch: pytest.MonkeyPatch) -> None:
    examples: list[int] = []
    for rank in range(3):
        module = make_module()
        monkeypatch.setattr(module, "trainer", SimpleNamespace(global_rank=rank, world_size=3))
        share = indices(module.test_dataloader())
        assert share
        examples += share
    assert sorted(examples) == list(range(8))


def test_calibration_tokens_and_context_length_limit_the_rows() -> None:
    few = make_module(calibration_tokens=1).calibration
    assert sum(len(batch.input_ids) for batch in few) == 1
    with pytest.raises(ValueError, match="longer than the model's context"):
        make_module(context_length=5).test_dataloader()


class Collector(L.LightningModule):
    """Records the examples that a trainer passes to it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def test_step(self, batch: ScoringBatch, batch_idx: int) -> None:
        assert isinstance(batch, ScoringBatch)
        self.seen += batch.examples.tolist()


def test_a_trainer_passes_the_batches_on_unchanged() -> None:
    module, collector = make_module(batch_tokens=30), Collector()
    with warnings.catch_warnings():
        # The batches are tensors already, so worker processes would only cost time.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.test(collector, datamodule=module, verbose=False)
    assert sorted(collector.seen) == list(range(8))
