"""Lightning Trainers as Sieve uses them: no checkpoints of their own, no sampler, rich progress."""

import logging
import math
import warnings
from collections.abc import Sequence
from typing import Any

import lightning as L
from hydra.utils import instantiate
from lightning.pytorch.callbacks import RichProgressBar

from sieve.config import shards
from sieve.runtime.progress import console

DEFAULTS: dict[str, Any] = {
    "_target_": "lightning.Trainer",
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,  # The data module deals batches to ranks itself.
}


WARMUP = 0.1  # of all steps


class StageProgressBar(RichProgressBar):
    """Lightning's progress bar, named after what Sieve does in a loop."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training"  # Lightning counts epochs, and Sieve's trainings have steps.

    @property
    def predict_description(self) -> str:
        return "Calibrating"

    @property
    def test_description(self) -> str:
        return "Testing"


def make_trainer(settings: dict[str, Any], callbacks: Sequence[L.Callback] = ()) -> L.Trainer:
    """A Trainer from the `trainer` group of the configuration.

    callbacks: beside the progress bar, where there is a terminal to show it.
    Raises ValueError when the accelerator or devices asked for are not there.
    """
    for name in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    # Lightning asks torch in a way that torch has begun to deprecate.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
    # Batches are ready in memory: a worker would only copy them.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    shown = console.is_terminal
    # What a sharded model gathers in inference mode could not be written to after it.
    given = {"enable_progress_bar": shown, "inference_mode": not shards(settings)} | settings
    bars = [StageProgressBar()] if shown else []
    try:
        return instantiate(DEFAULTS | given, callbacks=[*bars, *callbacks])
    except Exception as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(
            f"the trainer cannot be made ({reason}); choose trainer=cpu, gpu, ddp or fsdp, or set "
            "trainer.devices."
        ) from error


def schedule(step: int, steps: int) -> float:
    """Part of the learning rate at a step: warm-up over a tenth, then cosine decay to 0."""
    warm = max(1, round(WARMUP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
