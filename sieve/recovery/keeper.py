"""Keeps the best state of a training, stops it in time, and lets a killed one go on.

At every check a `look` says how good the model is on rows that it is not trained on. The state is
what is trained, the optimizer's moments and how it went so far, as `training_state` writes it.
"""

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from sieve.distributed.strategy import ShardedStrategy
from sieve.recovery.training_state import load_state, save_state, save_state_together

log = logging.getLogger(__name__)
FORMAT = 1
MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # of Adam, per parameter
Look = Callable[[], tuple[float, float]]  # the larger the better, the first number first
Entry = dict[str, Any]  # of a look: step, accuracy, loss


class Keeper(L.Callback):
    """Looks at a module with `trained()`, `start` and `settings` every `check_every` steps.

    look: how good the module is as it stands, accuracy and minus loss; path: of what a killed
    training goes on from, None for none: a file, or a folder where ranks share out a model; note:
    what is told of every look. The first look is at the module as it came.
    """

    def __init__(
        self, module: Any, look: Look, path: Path | None, key: str, note: Callable[[Entry], None]
    ) -> None:
        self.module, self.look, self.path, self.key, self.note = module, look, path, key, note
        self.best: tuple[float, float] | None = None
        self.best_state: dict[str, Tensor] | None = None  # None while nothing beats the beginning
        self.history: list[Entry] = []
        self.worse = 0
        self.moments: dict[str, Tensor] = {}
        if path is not None and path.exists():
            self._resume(path)
        else:
            self.best = look()
            self._note(0, self.best)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Give the optimizer the moments of the training that goes on."""
        if self.moments:
            [optimizer] = trainer.optimizers
            for name, parameter in self.module.trained().items():
                optimizer.state[parameter] = {
                    moment: self.moments[f"{name}|{moment}"].to(
                        parameter.device if moment != "step" else "cpu"
                    )
                    for moment in MOMENTS
                }

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """A look, where a step that asks for one is done; the end, where a loss is not finite."""
        settings, step = self.module.settings, self.module.start + trainer.global_step
        if not self._sound(trainer, outputs):
            self._give_up(trainer, step, "loss")
            return
        done = (index + 1) % settings.accumulate == 0
        if not done or (step % settings.check_every and step < settings.steps):
            return
        found = self.look()
        if not all(map(math.isfinite, found)):
            self._give_up(trainer, step, "score on the selection rows")
            return
        self._note(step, found)
        assert self.best is not None
        if found > self.best:
            self.best, self.worse = found, 0
            self.best_state = _copied(self.module.trained())
        else:
            self.worse += 1
        if self.worse >= settings.patience:
            trainer.should_stop = True
        together = isinstance(trainer.strategy, ShardedStrategy)
        if self.path is not None and (together or trainer.is_global_zero):
            save = save_state_together if together else save_state
            save(self.path, *self._state(step, trainer.optimizers[0]))

    def _sound(self, trainer: L.Trainer, outputs: Any) -> bool:
        """Whether the loss of a batch is finite on every rank."""
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        sound = loss is None or bool(torch.isfinite(torch.as_tensor(loss)).all())
        return bool(trainer.strategy.reduce_boolean_decision(sound, all=True))

    def _give_up(self, trainer: L.Trainer, step: int, what: str) -> None:
        """End the training; what it goes on from and the best state stay as they are."""
        best = max(self.history, key=lambda e: (e["accuracy"], -e["loss"]))
        log.warning(
            "the %s of the training is not finite at step %d: it ends, and the best state so far, "
            "that of step %d, is kept; lower recovery.learning_rate, or set model.dtype=float32.",
            what, step, best["step"],
        )  # fmt: skip
        trainer.should_stop = True

    @torch.no_grad()
    def take_best(self) -> bool:
        """Put the best state into the module; False where nothing beat the beginning."""
        if self.best_state is None:
            return False
        for name, parameter in self.module.trained().items():
            parameter.copy_(self.best_state[name])
        return True

    def _note(self, step: int, found: tuple[float, float]) -> None:
        self.history.append({"step": step, "accuracy": found[0], "loss": -found[1]})
        self.note(self.history[-1])
        log.info("  recovery     step %4d  accuracy %.4f  loss %.4f", step, found[0], -found[1])

    def _state(
        self, step: int, optimizer: torch.optim.Optimizer
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, and what is told of them."""
        now = self.module.trained()
        tensors = {f"now|{name}": value for name, value in _copied(now).items()}
        tensors |= {f"best|{name}": value for name, value in (self.best_state or {}).items()}
        for name, parameter in now.items():
            for moment in MOMENTS:
                tensors[f"{name}|{moment}"] = optimizer.state[parameter][moment].cpu().contiguous()
        header = {
            "format": FORMAT, "key": self.key, "step": step, "best": self.best,
            "history": self.history, "worse": self.worse,
        }  # fmt: skip
        return tensors, header

    @torch.no_grad()
    def _resume(self, path: Path) -> None:
        """Go on from a state; ValueError where it is damaged or of another training."""
        held, header = load_state(path)
        if not header or (header["format"], header["key"]) != (FORMAT, self.key):
            raise ValueError(f"{path} is of another training; delete it and run again.")
        for name, parameter in self.module.trained().items():
            parameter.copy_(held[f"now|{name}"])
        best = {k.removeprefix("best|"): v for k, v in held.items() if k.startswith("best|")}
        self.best_state, self.best = best or None, tuple(header["best"])
        self.history, self.worse = header["history"], header["worse"]
        self.moments = {k: v for k, v in held.items() if not k.startswith(("now|", "best|"))}
        self.module.start = header["step"]
        for entry in self.history:
            self.note(entry)
        log.info("  recovery     goes on after step %d", header["step"])


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()
    }
