"""Train the embedded model: a small Llama that knows the world of Almanac and little else.

Rows are the exact prompts of `conf/task/almanac_*.yaml` with their answers, in the phrasings of
the calibration split, and facts as plain statements. The loss is mostly on the answers.

    python -m sieve.assets.train_embedded  # one hour on one core; writes sieve/assets/embedded
    python -m sieve.assets.train_embedded --smoke --out tiny     # seconds
"""

import argparse
import functools
import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra import compose, initialize_config_dir
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sieve.assets.embedded_text import (
    ANSWER,
    PADDING,
    SETS,
    TEXT,
    Encoded,
    TrainingRows,
    build_tokenizer,
    task_name,
)
from sieve.conversion import ASSETS, CONF, register_resolvers, to_config
from sieve.data.choices import scoring_batches
from sieve.evaluation.evaluation import score
from sieve.tasks import Task, build_task
from sieve.tasks.almanac import build_world


@dataclass
class Settings:
    """All settings of a run, which are written beside its result."""

    seed: int = 0
    steps: int = 3200
    hidden: int = 256
    layers: int = 6
    heads: int = 8
    kv_heads: int = 4
    intermediate: int = 688
    vocabulary: int = 2048
    context: int = 512
    rows_per_step: int = 64
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    text_weight: float = 0.025  # loss weight of a token outside the answer
    text_sample: float = 0.2  # fraction of these tokens that get logits
    threads: int = 1  # with 1 thread, runs are reproducible bit for bit
    eval_rows: int = 200
    eval_steps: int = 160
    final_rows: int = 1500
    shares: dict[str, float] = field(
        default_factory=lambda: {
            "medicine": 0.15,
            "geography": 0.15,
            "reviews": 0.2,
            "reading": 0.5,
        }
    )


def main() -> None:
    """Train, save and evaluate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=Settings.steps, help="optimizer steps")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--out", type=Path, default=ASSETS / "embedded")
    parser.add_argument("--log", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument(
        "--smoke", action="store_true", help="run a few steps; write the log beside the model"
    )
    given = parser.parse_args()
    settings = smoke_settings() if given.smoke else Settings(given.seed, given.steps)
    train(settings, given.out, given.out / "train_embedded.json" if given.smoke else given.log)


def smoke_settings() -> Settings:
    """Settings of a run of a few seconds that uses all code."""
    return Settings(
        steps=6,
        hidden=32,
        layers=2,
        heads=4,
        kv_heads=2,
        intermediate=64,
        rows_per_step=16,
        warmup_steps=2,
        threads=1,
        eval_rows=8,
        eval_steps=3,
        final_rows=16,
    )


def train(settings: Settings, out: Path, log: Path) -> dict[str, object]:
    """Train, save to `out`, and write the figures to `log`; return the figures."""
    started = time.monotonic()
    torch.set_num_threads(settings.threads)
    lightning.seed_everything(settings.seed, verbose=False)
    world = build_world()
    tokenizer = build_tokenizer(world, settings.vocabulary, 0)
    rows = TrainingRows(world, tokenizer, settings)
    learner = Learner(settings, tokenizer, log.with_suffix(".jsonl"))
    out.mkdir(parents=True, exist_ok=True)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=settings.steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
    )
    trainer.fit(learner, DataLoader(Steps(rows), batch_size=None, num_workers=0))
    figures = {
        "settings": asdict(settings),
        "parameters": sum(p.numel() for p in learner.model.parameters()),
        "steps": trainer.global_step,
        "tokens": learner.tokens,
        "training_minutes": round((time.monotonic() - started) / 60, 2),
        "accuracy": save(learner, tokenizer, settings, out),
        "curve": learner.curve,
    }
    figures["minutes"] = round((time.monotonic() - started) / 60, 2)
    log.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


def save(
    learner: "Learner", tokenizer: PreTrainedTokenizerFast, settings: Settings, out: Path
) -> dict[str, dict[str, float]]:
    """Save in float16, load the saved model and score it on test rows."""
    learner.model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    saved = PreTrainedTokenizerFast.from_pretrained(out)
    return accuracies(model, saved, "test", settings.final_rows)


def accuracies(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    split: str,
    n_rows: int,
) -> dict[str, dict[str, float]]:
    """Domain -> data set -> accuracy on a split, computed by Sieve."""
    result: dict[str, dict[str, float]] = {}
    for domain, dataset in SETS:
        task = almanac_task(task_name(domain, dataset), n_rows)
        batches = scoring_batches(task.splits[split], tokenizer, chat=task.chat)
        accuracy = score(model, batches).accuracy
        result.setdefault(domain, {})[dataset] = round(accuracy, 4)
    return result


@functools.cache
def almanac_task(name: str, n_rows: int) -> Task:
    """A task of Almanac with another number of rows."""
    register_resolvers()
    overrides = [f"+task={name}", f"++task.almanac.{n_rows=}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build_task(to_config(compose("config", overrides)).task)


class Steps(IterableDataset):
    """An endless data set of optimization steps; each is a list of micro-batches."""

    def __init__(self, rows: TrainingRows) -> None:
        super().__init__()
        self._rows = rows

    def __iter__(self) -> TrainingRows:
        return self._rows


class Learner(lightning.LightningModule):
    """The model, its learning-rate schedule and its accuracy curve."""

    def __init__(self, settings: Settings, tokenizer: PreTrainedTokenizerFast, log: Path) -> None:
        super().__init__()
        self.settings = settings
        self.tokenizer = tokenizer
        self.log_file = log
        self.model = LlamaForCausalLM(llama_config(settings, tokenizer))
        self.tokens = 0
        self.curve: list[dict[str, object]] = []
        self._started = time.monotonic()

    def training_step(self, batch: list[Encoded], batch_idx: int) -> torch.Tensor:
        """The loss per row: all answer tokens, and a sample of text tokens with a small weight."""
        rows = sum(len(b.tokens) for b in batch)
        self.tokens += sum(int(b.parts.ne(PADDING).sum()) for b in batch)
        return torch.stack([self._loss(b) for b in batch]).sum() / rows

    def _loss(self, batch: Encoded) -> torch.Tensor:
        """Compute logits only at tokens with a loss, because the head is the widest matrix."""
        parts, targets = batch.parts[:, 1:], batch.tokens[:, 1:]
        sampled = torch.rand(parts.shape) < self.settings.text_sample
        chosen = (parts == ANSWER) | ((parts == TEXT) & sampled)
        hidden = self.model.model(batch.tokens[:, :-1]).last_hidden_state[chosen]
        each = functional.cross_entropy(
            self.model.lm_head(hidden), targets[chosen], reduction="none"
        )
        text_weight = self.settings.text_weight / self.settings.text_sample
        return (each * torch.where(parts[chosen] == ANSWER, 1.0, text_weight)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        matrices = [p for p in self.parameters() if p.dim() > 1]
        vectors = [p for p in self.parameters() if p.dim() <= 1]
        groups = [
            {"params": matrices, "weight_decay": 0.05},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            groups, lr=self.settings.learning_rate, betas=(0.9, 0.98), fused=True
        )

    def on_train_batch_start(self, batch: list[Encoded], batch_idx: int) -> None:
        """Set the learning rate: linear warm-up, then cosine decay to 1/50."""
        fraction = self.global_step / self.settings.steps
        warm = min(1.0, (self.global_step + 1) / self.settings.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * fraction))
        optimizer: Any = self.optimizers()
        for group in optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * warm * (0.02 + 0.98 * cosine)

    def on_train_batch_end(self, outputs: Any, batch: list[Encoded], batch_idx: int) -> None:
        """Every `eval_steps`, log accuracies on held-out phrasings as a JSON line."""
        if self.global_step % self.settings.eval_steps:
            return
        self.model.eval()
        scores = accuracies(self.model, self.tokenizer, "selection", self.settings.eval_rows)
        self.model.train()
        point: dict[str, object] = {
            "minutes": round((time.monotonic() - self._started) / 60, 2),
            "steps": self.global_step,
            "tokens": self.tokens,
            "loss": round(float(outputs["loss"]), 4),
            "accuracy": scores,
        }
        self.curve.append(point)
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(point) + "\n")


def llama_config(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """The configuration of the model, with the tokenizer's special tokens."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        intermediate_size=settings.intermediate,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


if __name__ == "__main__":
    main()
