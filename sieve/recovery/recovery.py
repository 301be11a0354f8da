"""Recovery: train a pruned model's factors, keep the best state, or change nothing.

The loss is that of the right answers, the Kullback-Leibler divergence from the dense model's
answers (distillation), or their sum. At every check the model is scored on rows that it is not
trained on. `recover` serves `recovery=lora` and `recovery=full`; `tune` is its preset for
`projection=kl`.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.bank.switch import Switch
from sieve.config import RecoveryConfig
from sieve.data.batches import Batch, split_batches
from sieve.distributed.trainer import make_trainer
from sieve.evaluation.divergence import divergences
from sieve.model.backbone import eager_attention, place
from sieve.recovery.keeper import Check, Evaluate, Keeper, log_check
from sieve.recovery.module import RecoveryModule
from sieve.recovery.teacher import TrainingBatch
from sieve.runtime.artifacts import fingerprint

log = logging.getLogger(__name__)
HELD_OUT = 0.15  # of the calibration prompts, for checks; at most as many as selection rows
TUNING_CHECKS = 6  # times that `tune` measures the held-out divergence


@dataclass(frozen=True)
class Recovered:
    """A bank and a genome after training, and the history of the training."""

    bank: Bank
    genome: Genome
    taken: bool  # False where no check beat the untrained model; bank and genome are its own
    history: list[Check]
    rate: float  # the peak of the learning rate, after restarts


def recover(
    module: RecoveryModule,
    batches: Sequence[TrainingBatch],
    evaluate: Evaluate,
    trainer: Callable[[list[L.Callback], int], L.Trainer],
    seed: int = 0,
    path: Path | None = None,
    note: Callable[[Check], None] = log_check,
    enough: Callable[[], bool] = lambda: False,
) -> Recovered:
    """Train a module and merge its best state into a bank; the model is dense again afterwards.

    Args:
        module: what is trained, and how.
        batches: the calibration batches of all ranks.
        evaluate: scores the module; calls `module.installed()` itself.
        trainer: makes a Trainer from callbacks and a number of steps.
        seed: of the order of the batches.
        path: where the state is saved at every check, to resume a killed training from.
        note: called with every check.
        enough: asked after every check; True ends the training.

    Raises:
        ValueError: where `path` belongs to another training, or is damaged.
    """
    switch, config = module.switch, module.config
    key = fingerprint(switch.bank.fingerprint, module.genome.levels, asdict(config), seed)
    keeper = Keeper(module, evaluate, path, key, note, enough)
    if not keeper.finished:
        training = trainer([keeper], config.steps - module.start)
        rank, world = training.global_rank, training.world_size
        own = step_batches(batches, config, module.start, rank, world, seed)
        # A loader needs only a sequence.
        with eager_attention(switch.model):
            training.fit(module, DataLoader(cast("Dataset[object]", own), batch_size=None))
        place(module, switch.model.device)
    taken = keeper.take_best()
    bank, genome = module.bank() if taken else (switch.bank, module.genome)
    switch.restore()
    return Recovered(bank, genome, taken, keeper.history, module.rate)


def numbered(batches: Sequence[object]) -> list[TrainingBatch]:
    """Batches that the dense and the pruned model read alike."""
    return [TrainingBatch(batch, index) for index, batch in enumerate(batches)]


def step_batches(
    batches: Sequence[Batch],
    config: RecoveryConfig,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    seed: int = 0,
) -> list[Batch]:
    """The batches that one rank trains on, from step `start` to the last step.

    Every epoch shuffles all batches anew. Which batches a step takes depends on the step and the
    seed alone, so a resumed training continues with the same batches, and `world` ranks together
    take the batches that one process would accumulate.
    """

    @cache
    def order(epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed + 1_000_003 * epoch)
        return torch.randperm(len(batches), generator=generator).tolist()

    first, last = (step * config.accumulate * world for step in (start, config.steps))
    places = [divmod(index, len(batches)) for index in range(first + rank, last, world)]
    return [batches[order(epoch)[position]] for epoch, position in places]


def tune(
    model: PreTrainedModel,
    bank: Bank,
    genome: Genome,
    batches: Sequence[object],
    steps: int = 300,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> tuple[Bank, Genome]:
    """Train all factors of a genome towards the dense model's answers, without labels.

    Trains on three quarters of the calibration batches on this process's device. Returns the state
    with the lowest divergence on the other batches, or the given bank and genome where it never
    fell. Raises ValueError with fewer than two batches.
    """
    fitted, held_out = split_batches(batches)
    config = RecoveryConfig(
        "full",
        loss="kl",
        hidden=0.0,
        steps=steps,
        learning_rate=learning_rate,
        check_every=max(1, steps // TUNING_CHECKS),
        patience=TUNING_CHECKS,
    )
    module = RecoveryModule(Switch(model, bank, as_stored=False), genome, config, seed)
    if not module.trained():
        return bank, genome
    # The device of this process alone, whatever its rank.
    device: dict[str, Any] = {"accelerator": "cpu", "devices": 1}
    if model.device.type == "cuda":
        device = {"accelerator": "gpu", "devices": [model.device.index or 0]}
    result = recover(
        module.to(model.device),
        numbered(fitted),
        lambda: (0.0, -divergences(model, [module.installed], held_out)[0]),
        lambda callbacks, count: make_trainer(
            device | {"max_steps": count, "max_epochs": -1}, callbacks
        ),
        seed,
        note=lambda check: log.debug("  tuned %s", check),
    )
    losses = [check["loss"] for check in result.history]
    log.info("  tuned        held-out divergence %.4f -> %.4f nats", losses[0], min(losses))
    return result.bank, result.genome
