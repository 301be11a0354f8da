"""Lightning Trainers as Sieve uses them: no checkpoints, no samplers, our own progress bars."""

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import lightning as L
from hydra.utils import instantiate

from sieve.config import shards
from sieve.runtime.progress import console, progress_bar

DEFAULTS: dict[str, Any] = {
    "_target_": "lightning.Trainer",
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,  # Sieve has its own.
    "use_distributed_sampler": False,  # The data module splits batches over ranks.
}
WARMUP = 0.1  # share of all steps


class StageProgress(L.Callback):
    """The progress bar of a Trainer's loop, in the style of all others.

    It counts steps of a training, tokens of a calibration and rows of a test.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._advance: Callable[[float], None] = lambda _: None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Show a bar with the steps that are left."""
        total = trainer.max_steps
        if total < 0 and trainer.max_epochs:
            total = round(trainer.max_epochs * trainer.num_training_batches)
        self._begin("Training", total if total > 0 else None, "steps")

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Count a step, which may take several batches."""
        steps = trainer.accumulate_grad_batches
        self._advance(float((index + 1) % steps == 0))

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Remove the bar."""
        self._stack.close()

    def on_predict_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Show a bar with the tokens of all batches."""
        self._begin("Calibrating", _total(trainer.predict_dataloaders, _tokens), "tokens")

    def on_predict_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Count the tokens of a batch."""
        self._advance(_tokens(batch))

    def on_predict_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Remove the bar."""
        self._stack.close()

    def on_test_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Show a bar with the rows of all batches."""
        self._begin("Testing", _total(trainer.test_dataloaders, _rows), "rows")

    def on_test_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Count the rows of a batch."""
        self._advance(_rows(batch))

    def on_test_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Remove the bar."""
        self._stack.close()

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        """Remove the bar, or it would hide the message."""
        self._stack.close()

    def _begin(self, description: str, total: float | None, unit: str) -> None:
        progress = self._stack.enter_context(progress_bar())
        bar = progress.add_task(description, total=total, unit=unit)
        self._stack.callback(progress.remove_task, bar)
        self._advance = partial(progress.advance, bar)


def _tokens(batch: Any) -> float:
    return float(getattr(batch, "tokens", 0))


def _rows(batch: Any) -> float:
    return float(len(getattr(batch, "examples", ())))


def _total(loader: Any, size: Callable[[Any], float]) -> float | None:
    """The size of all batches of a loader; None if that cannot be known."""
    batches = getattr(loader, "dataset", None)
    return sum(map(size, batches)) or None if isinstance(batches, Sequence) else None


def make_trainer(settings: dict[str, Any], callbacks: Sequence[L.Callback] = ()) -> L.Trainer:
    """A Trainer from the `trainer` group of the configuration, with a progress bar in a terminal.

    Raises ValueError if the accelerator or the devices are not available.
    """
    for name in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    # Lightning uses an API that newer torch deprecates.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
    # Batches are already in memory; workers would only copy them.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    options = dict(DEFAULTS)
    # Weights that a sharded model gathers in inference mode could not be written to afterwards.
    options |= {"inference_mode": not shards(settings)} | settings
    bars = [StageProgress()] if console.is_terminal else []
    try:
        return instantiate(options, callbacks=[*bars, *callbacks])
    except Exception as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(
            f"The trainer cannot be created ({reason}). Choose trainer=cpu, gpu, ddp or fsdp, or "
            "set trainer.devices."
        ) from error


def schedule(step: int, steps: int) -> float:
    """Factor of the learning rate at a step: warm-up over a tenth, then cosine decay to 0."""
    warm = max(1, round(WARMUP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
