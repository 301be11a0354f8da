"""Tune a dense model on a task's labels, before it is pruned: LoRA (arXiv:2106.09685) by PEFT.

    python -m sieve.tune my_adapter +task=sst2 model.path=my_model
    python -m sieve.run +task=sst2 model.path=my_model model.adapter=my_adapter

A tuned dense model is the honest standard for a pruned model that was trained on labels. Settings
are the files of `conf/`; the group `recovery` sets rank, steps and learning rate.
"""

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import CompactHydraException
from torch import Tensor, nn
from transformers import PreTrainedModel

from sieve.config import Config, RecoveryConfig
from sieve.conversion import CONF, register_resolvers, to_config
from sieve.data.batches import TokenBatch, as_targets, every_batch
from sieve.data.datamodule import SieveDataModule
from sieve.data.scored import ScoredBatch
from sieve.distributed.trainer import make_trainer, schedule
from sieve.evaluation.divergence import answer_logprobs
from sieve.evaluation.evaluation import score
from sieve.mistakes import explain
from sieve.stages import Run, opened
from sieve.stages.rows import training_rows
from sieve.tasks.metrics import AGREEMENT
from sieve.tasks.splits import reserve

log = logging.getLogger("sieve")
# What tuning sets where the command line does not: a larger change than a recovery's.
DEFAULTS = (
    "recovery=lora",
    "recovery.rank=16",
    "recovery.alpha=32",
    "recovery.steps=600",
    "recovery.learning_rate=1e-3",
    "recovery.batch_tokens=1024",
    "recovery.patience=6",
    "logger=none",
)
MOST_HELD_OUT = 500  # held-out rows that choose the step


def main() -> None:
    """Entry point of `python -m sieve.tune`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="the folder of the adapter")
    parser.add_argument("--test", action="store_true", help="score the test rows too, at the end")
    parser.add_argument("overrides", nargs="+", help="settings, such as +task=sst2 model.path=m")
    arguments = parser.parse_args()
    if "=" in str(arguments.out):
        parser.error(f"expected the folder of the adapter first, got {arguments.out}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    register_resolvers()
    try:
        with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            config = to_config(compose("config", [*DEFAULTS, *arguments.overrides]))
        tune(config, arguments.out, ("selection", "test") if arguments.test else ("selection",))
    except CompactHydraException as error:
        sys.exit(explain(error))
    except (ValueError, RuntimeError, OSError) as error:
        log.debug("failed", exc_info=True)
        sys.exit(str(error))


def tune(
    config: Config, out: Path, splits: Sequence[str] = ("selection",)
) -> dict[str, tuple[float, float]]:
    """Train an adapter on the calibration rows and save its best state to `out`.

    Args:
        splits: the splits that the dense model is scored on before and after.

    Returns:
        The dense model's accuracy on each split, before and after.

    Raises:
        ValueError: an adapter exists in `out`, the settings name another method than LoRA, or no
            check during training was better than the dense model.
        RuntimeError: PEFT is not installed.
    """
    _check(config, out)
    with opened(config, out) as run:
        before = {split: _accuracy(run, split) for split in splits}
        held_out, batches = divided(run)
        module = TuningModule(run.backbone.model, config.recovery, config.seed)
        keeper = BestAdapter(module, held_out, out)
        limits = {"max_steps": config.recovery.steps, "max_epochs": -1}
        limits["accumulate_grad_batches"] = config.recovery.accumulate
        trainer = make_trainer(config.trainer | limits, [keeper])
        trainer.fit(module, every_batch(batches, config.seed))
        run.settle()
        keeper.load_best()
        accuracies = {split: (before[split], _accuracy(run, split)) for split in splits}
    for split, (dense, tuned) in accuracies.items():
        log.info("%s score of the dense model: %.4f before, %.4f after", split, dense, tuned)
    log.info("Prune the tuned model with model.adapter=%s", out)
    return accuracies


def divided(run: Run) -> tuple[Sequence[ScoredBatch], list[TokenBatch]]:
    """Held-out calibration rows, which choose the best step, and batches of the rows to train on.

    A pruned model is trained on the same rows and checked on the others, which are new to both.
    """
    rows = training_rows(run)
    chosen = reserve(rows.reserved, 1, "tuning", MOST_HELD_OUT).reserved
    task = replace(run.task, splits=run.task.splits | {"calibration": rows.rest})
    data: SieveDataModule = run.data_of(task)
    batch_tokens = min(run.config.recovery.batch_tokens, run.batch_tokens)
    return (
        data.scoring_batches(chosen),
        data.calibration_batches(batch_tokens, None, share=False),
    )


class TuningModule(L.LightningModule):
    """Trains LoRA matrices on all linear layers of a model towards the right answers.

    Args:
        model: dense and frozen; gets the LoRA layers in place.
        config: rank, alpha, steps and learning rate.
        seed: of the random start.
    """

    def __init__(self, model: PreTrainedModel, config: RecoveryConfig, seed: int = 0) -> None:
        super().__init__()
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError as error:
            raise RuntimeError(
                "tuning needs PEFT; install it with pip install 'sieve-llm[recovery]'."
            ) from error
        torch.manual_seed(seed)
        settings = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        # In lists, so that Lightning leaves the frozen model in evaluation mode.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT calls what newer transformers deprecates.
            self._models = [model], [get_peft_model(model, settings)]
        self.config = config

    @property
    def model(self) -> PreTrainedModel:
        """The model, which computes with the LoRA matrices."""
        return self._models[0][0]

    @property
    def adapted(self) -> Any:
        """PEFT's wrapper of the model."""
        return self._models[1][0]

    def trained(self) -> list[nn.Parameter]:
        """The LoRA matrices."""
        return [p for p in self.adapted.parameters() if p.requires_grad]

    def training_step(self, batch: TokenBatch, batch_idx: int = 0) -> Tensor:
        """Mean negative log-likelihood of the right answers' tokens, nats."""
        targets = as_targets(batch)
        logprobs = answer_logprobs(self.model, batch)
        return nn.functional.nll_loss(logprobs, targets[targets >= 0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam; `on_before_optimizer_step` sets the rate."""
        return torch.optim.Adam(self.trained(), self.config.learning_rate)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient and set the learning rate."""
        nn.utils.clip_grad_norm_(self.trained(), self.config.max_norm)
        for group in optimizer.param_groups:
            rate = schedule(self.global_step, self.config.steps)
            group["lr"] = self.config.learning_rate * rate


class BestAdapter(L.Callback):
    """Scores held-out rows every `check_every` steps and saves the adapter whenever it is better.

    Args:
        held_out: scoring batches of rows that are not trained on.
        out: the folder of the adapter, which holds the best state so far.
    """

    def __init__(self, module: TuningModule, held_out: Sequence[ScoredBatch], out: Path) -> None:
        self.module, self.held_out, self.out = module, held_out, out
        self.checks_since_best, self.saved = 0, False
        self.best = self._check(0)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Check the model where a check is due, and stop after `patience` checks without gain."""
        config, step = self.module.config, trainer.global_step
        due = step % config.check_every == 0 or step >= config.steps
        if (index + 1) % config.accumulate or not due:
            return
        result = self._check(step)
        if result > self.best:
            self.best, self.checks_since_best, self.saved = result, 0, True
            self.module.adapted.save_pretrained(str(self.out), save_embedding_layers=False)
        else:
            self.checks_since_best += 1
        trainer.should_stop = self.checks_since_best >= config.patience

    def load_best(self) -> None:
        """Load the best state into the model; ValueError if no check beat the dense model."""
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        if not self.saved:
            raise ValueError(
                "no state of the training was better on held-out rows than the dense model, so no "
                "adapter was saved; raise recovery.steps, or lower recovery.learning_rate."
            )
        weights = load_file(self.out / "adapter_model.safetensors")
        set_peft_model_state_dict(self.module.adapted, weights)

    def _check(self, step: int) -> tuple[float, float]:
        scores = score(self.module.model, self.held_out)
        log.info("step %4d  score %.4f  loss %.4f", step, scores.mean, scores.loss)
        return scores.mean, -scores.loss


def _accuracy(run: Run, split: str) -> float:
    return score(run.backbone.model, run.data.scoring(split), f"Scoring {split} rows").accuracy


def _check(config: Config, out: Path) -> None:
    if config.recovery.method != "lora":
        raise ValueError(
            f"recovery.method is {config.recovery.method}, expected lora, since a tuned model is "
            "saved as an adapter; leave recovery out."
        )
    if config.task.metric == AGREEMENT:
        raise ValueError(
            "tuning needs labels, and task.metric=agreement reads none; leave task.metric out."
        )
    if (out / "adapter_config.json").exists():
        raise ValueError(f"{out} already has an adapter; choose another folder or delete it.")


if __name__ == "__main__":
    main()
