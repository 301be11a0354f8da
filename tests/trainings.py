"""What tests of training share: batches, settings, a Trainer, a module and its score."""

from typing import Any

import lightning as L
import torch
from sieved import tokens
from transformers import PreTrainedModel

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.bank.switch import Switch
from sieve.config import RecoveryConfig
from sieve.distributed.trainer import make_trainer
from sieve.recovery.keeper import Evaluate
from sieve.recovery.module import RecoveryModule

BATCHES = [{"input_ids": tokens(4, 16, seed)} for seed in range(6)]
QUICK = RecoveryConfig("lora", steps=6, check_every=2, learning_rate=1e-2, ema_decay=0.0)


def trainer(callbacks: list[L.Callback], steps: int, **settings: Any) -> L.Trainer:
    return make_trainer({"max_steps": steps, "max_epochs": -1, **settings}, callbacks)


def module_of(
    model: PreTrainedModel, bank: Bank, genome: Genome, settings: RecoveryConfig = QUICK
) -> RecoveryModule:
    return RecoveryModule(Switch(model, bank, as_stored=False), genome, settings)


def evaluated(module: RecoveryModule) -> Evaluate:
    """Scores the model by its loss over all batches; the accuracy is constant."""

    @torch.no_grad()
    def evaluate() -> tuple[float, float]:
        with module.installed():
            losses = [float(module.switch.model(**b, labels=b["input_ids"]).loss) for b in BATCHES]
        return 0.5, -sum(losses) / len(losses)

    return evaluate
