"""A Lightning callback that keeps a training's best state, stops it early and resumes it.

At every check the running mean of the trained parameters is scored on rows that they are not
trained on. If training has only done harm so far, it starts again at a third of the rate. The saved
state is the trained parameters, their mean, the optimizer's moments and the checks so far;
`training_state` writes it to disk.
"""

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypedDict

import lightning as L
import torch
from torch import Tensor

from sieve.distributed.strategy import ShardedStrategy
from sieve.recovery.average import Average
from sieve.recovery.module import RecoveryModule
from sieve.recovery.training_state import load_state, save_state, save_state_together

log = logging.getLogger(__name__)
FORMAT = 4
PREFIXES = ("now|", "mean|", "best|")  # of saved tensors that are no moments of the optimizer
SLOWER = 3  # by which a rate that has only done harm is divided
Evaluate = Callable[[], tuple[float, float]]  # accuracy, minus loss: compared in this order


class Check(TypedDict):
    """The record of one check."""

    step: int
    accuracy: float
    loss: float


def log_check(check: Check) -> None:
    """Log a check of a recovery."""
    log.info("  recovery     step %(step)4d  score %(accuracy).4f  loss %(loss).4f", check)


class Keeper(L.Callback):
    """Checks a module every `config.check_every` steps; the first check is of the untrained one.

    Args:
        module: what is trained.
        evaluate: scores the module as it stands; larger is better.
        path: where the state is saved to resume from: a file, or a folder for a sharded model.
            None saves nothing.
        key: fingerprint of the training; a saved state of another one is refused.
        note: called with every check, also with earlier checks of a resumed training.
        enough: asked after every check, also the first; True ends the training.

    Raises:
        ValueError: the score of the untrained module is not finite.
    """

    def __init__(
        self,
        module: RecoveryModule,
        evaluate: Evaluate,
        path: Path | None,
        key: str,
        note: Callable[[Check], None],
        enough: Callable[[], bool] = lambda: False,
    ) -> None:
        self.module, self.evaluate, self.note, self.enough = module, evaluate, note, enough
        self.path, self.key = path, key
        self.best_state = _copied(module.trained())
        self.average = Average(module.trained(), module.config.ema_decay)
        self.improved = False  # whether a check beat the first one
        self.history: list[Check] = []
        self.worse = 0  # checks since the best one
        self.ended = False  # by `enough`
        self.moments: dict[str, Tensor] = {}
        if path is not None and path.exists():
            self._resume(path)
        else:
            self.best = evaluate()
            if not all(map(math.isfinite, self.best)):
                raise ValueError(
                    "the pruned model's score before training is not finite (NaN or infinity), so "
                    "no training can start from it; set model.dtype=float32."
                )
            self._record(0, self.best)
            self.ended = enough()

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train."""
        config = self.module.config
        return self.ended or self.module.start >= config.steps or self.worse >= config.patience

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Give the optimizer the moments of a resumed training."""
        if self.moments:
            [optimizer] = trainer.optimizers
            for name, parameter in self.module.trained().items():
                optimizer.state[parameter] = {
                    moment: value.to(parameter.device if value.ndim else "cpu")
                    for moment, value in _under(f"{name}|", self.moments).items()
                }

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Tensor | Mapping[str, object] | None,
        batch: object,
        index: int,
    ) -> None:
        """Check the model where a check is due; end the training where a loss is not finite."""
        config, step = self.module.config, self.module.start + trainer.global_step
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        finite = loss is None or bool(torch.isfinite(torch.as_tensor(loss)).all())
        if not trainer.strategy.reduce_boolean_decision(finite, all=True):
            self._give_up(trainer, step, "loss")
            return
        if (index + 1) % config.accumulate:
            return
        self.average.update()
        if step % config.check_every and step < config.steps:
            return
        with self.average.installed():
            score = self.evaluate()
        if not all(map(math.isfinite, score)):
            self._give_up(trainer, step, "score on the held-out rows")
            return
        self._record(step, score)
        if score > self.best:
            self.best, self.worse = score, 0
            self.best_state, self.improved = _copied(self.average.means), True
        else:
            self.worse += 1
        self.ended = self.enough()
        if self.ended or self.worse >= config.patience:
            trainer.should_stop = True
        elif step < config.steps and not self.improved and score[1] < self.best[1]:
            self._start_again(trainer.optimizers[0], step)
        together = isinstance(trainer.strategy, ShardedStrategy)
        if self.path is not None and (together or trainer.is_global_zero):
            save = save_state_together if together else save_state
            save(self.path, *self._state(step, trainer.optimizers[0]))

    def _start_again(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Go back to the untrained state, with a third of the rate for the steps that are left."""
        self._load(self.best_state)
        self.average.start_again()
        optimizer.state.clear()
        self.module.start_again(step, self.module.rate / SLOWER)
        log.info("  recovery     starts again at the rate %.2g", self.module.rate)

    def _give_up(self, trainer: L.Trainer, step: int, what: str) -> None:
        """End the training; the saved state and the best state stay as they are."""
        best = max(self.history, key=lambda check: (check["accuracy"], -check["loss"]))
        log.warning(
            "the %s of the training is not finite at step %d: the training ends with its best "
            "state, that of step %d. Lower recovery.learning_rate, or set model.dtype=float32.",
            what,
            step,
            best["step"],
        )
        trainer.should_stop = True

    def take_best(self) -> bool:
        """Load the best state into the module; False where nothing beat the untrained one."""
        if self.improved:
            self._load(self.best_state)
        return self.improved

    @torch.no_grad()
    def _load(self, state: Mapping[str, Tensor]) -> None:
        for name, parameter in self.module.trained().items():
            parameter.copy_(state[name])

    def _record(self, step: int, score: tuple[float, float]) -> None:
        self.history.append({"step": step, "accuracy": score[0], "loss": -score[1]})
        self.note(self.history[-1])

    def _state(
        self, step: int, optimizer: torch.optim.Optimizer
    ) -> tuple[dict[str, Tensor], dict[str, object]]:
        """The tensors to save, and the header that describes them."""
        current = self.module.trained()
        tensors = {f"now|{name}": value for name, value in _copied(current).items()}
        tensors |= {f"mean|{name}": value for name, value in _copied(self.average.means).items()}
        tensors |= {f"best|{name}": value for name, value in self.best_state.items()}
        for name, parameter in current.items():
            for moment, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{name}|{moment}"] = value.cpu().contiguous()
        header = {
            "format": FORMAT,
            "key": self.key,
            "step": step,
            "rate": self.module.rate,
            "restart": self.module.restart,
            "averaged": self.average.steps,
            "best": self.best,
            "improved": self.improved,
            "history": self.history,
            "worse": self.worse,
            "ended": self.ended,
        }
        return tensors, header

    def _resume(self, path: Path) -> None:
        """Load a saved state; ValueError where it is damaged or belongs to another training."""
        tensors, header = load_state(path)
        if not header or (header["format"], header["key"]) != (FORMAT, self.key):
            raise ValueError(f"{path} belongs to another training; delete it and run again.")
        self._load(_under("now|", tensors))
        self.average.steps = header["averaged"]
        for name, mean in _under("mean|", tensors).items():
            self.average.means[name].copy_(mean)
        self.best_state, self.improved = _under("best|", tensors), header["improved"]
        self.best = tuple(header["best"])
        self.history, self.worse = header["history"], header["worse"]
        self.ended = header["ended"]
        self.moments = {k: v for k, v in tensors.items() if not k.startswith(PREFIXES)}
        self.module.start = header["step"]
        self.module.start_again(header["restart"], header["rate"])
        for check in self.history:
            self.note(check)
        log.info("  recovery     resumes after step %d", header["step"])


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()
    }
