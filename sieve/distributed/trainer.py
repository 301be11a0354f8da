"""Lightning Trainers as Sieve uses them: without checkpoints and samplers, with rich progress."""

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
    "use_distributed_sampler": False,  # The data module splits batches over ranks.
}
WARMUP = 0.1  # share of all steps


class StageProgressBar(RichProgressBar):
    """Lightning's progress bar with the names of Sieve's stages."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training"  # Lightning would count epochs; Sieve counts steps.

    @property
    def predict_description(self) -> str:
        return "Calibrating"

    @property
    def test_description(self) -> str:
        return "Testing"


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
    terminal = console.is_terminal
    options = DEFAULTS | {"enable_progress_bar": terminal}
    # Weights that a sharded model gathers in inference mode could not be written to afterwards.
    options |= {"inference_mode": not shards(settings)} | settings
    bars = [StageProgressBar()] if terminal else []
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
