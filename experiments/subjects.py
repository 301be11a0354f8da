"""Subjects of experiments: a model with a task or with plain text, behind one interface.

A subject returns calibration batches for a seed, and measures its model in memory.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch import Tensor
from transformers import PreTrainedModel

from sieve.config import ModelConfig
from sieve.conversion import CONF, register_resolvers, to_config
from sieve.data.batches import as_inputs, as_targets
from sieve.data.calibration_rows import calibration_batches
from sieve.data.choices import choice_logprobs, scoring_batches
from sieve.model.backbone import forward, load_backbone
from sieve.tasks import build_task

SHARED = Path(os.environ.get("SIEVE_SHARED", "../shared"))
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Measured:
    """Measurements on held-out rows: correctness per row (None for text), loss in nats per example
    (per token for text), and KL(dense ‖ model) over the choices (per token)."""

    correct: list[bool]
    loss: float
    kl: float

    @property
    def accuracy(self) -> float | None:
        """Fraction of right rows; None for text."""
        return sum(self.correct) / len(self.correct) if self.correct else None


class Subject(Protocol):
    """A model with its calibration and test rows."""

    name: str
    model: PreTrainedModel

    def calibration(self, seed: int) -> list[Any]:
        """Calibration batches; the seed chooses the rows."""
        ...

    def measure(self) -> Measured:
        """Measure the current model on test rows. The first call must be on the dense model."""
        ...


class TaskSubject:
    """A classification or multiple-choice task of `conf/task`.

    Args:
        model: "embedded", or the name of a model in the shared folder.
        test_rows: the most rows to measure on.
        tokens: the most tokens to calibrate on.
    """

    def __init__(self, task: str, model: str, tokens: int = 25_000, test_rows: int = 500) -> None:
        overrides = [f"+task={task}", f"++task.max_rows.test={test_rows}"]
        if model == "embedded":
            overrides.append("model=embedded")
        else:
            overrides += [
                f"model.path={SHARED / 'models' / model}",
                f"task.data_dir={SHARED / 'data' / task}",
            ]
        register_resolvers()
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            config = to_config(compose("config", overrides))
        self.name, self.tokens = f"{task}/{model}", tokens
        self.task = build_task(config.task, 0)
        self.backbone = load_backbone(config.model, CPU)
        self.model = self.backbone.model
        self.rows = scoring_batches(
            self.task.splits["test"], self.backbone.tokenizer, normalize=self.task.normalize
        )
        self.dense: list[Tensor] = []

    def calibration(self, seed: int) -> list[Any]:
        """Rows in an order drawn from the seed until there are enough tokens."""
        return calibration_batches(
            self.task.splits["calibration"],
            self.backbone.tokenizer,
            self.tokens,
            batch_tokens=self.tokens // 8,
            seed=seed,
        )

    @torch.inference_mode()
    def measure(self) -> Measured:
        """Measure on test rows. The first call stores the dense model's distributions."""
        correct: list[bool] = []
        loss = kl = 0.0
        fresh = not self.dense
        for index, batch in enumerate(self.rows):
            logits = forward(self.model, as_inputs(batch), batch.keep)
            logprobs = choice_logprobs(logits, batch)
            shares = torch.log_softmax(logprobs, 1)
            if fresh:
                self.dense.append(shares)
            dense = self.dense[index]
            parts = dense.exp() * (dense - shares)
            kl += float(torch.where(dense.isinf(), 0.0, parts).sum())
            loss -= float(logprobs.gather(1, batch.answers[:, None]).sum())
            correct += (logprobs.argmax(1) == batch.answers).tolist()
        return Measured(correct, loss / len(correct), kl / len(correct))


class TextSubject:
    """Plain text, measured by the loss of the next token."""

    def __init__(self, data: str, model: str, tokens: int = 100_000, batch_rows: int = 16) -> None:
        self.name, self.tokens, self.batch_rows = f"{data}/{model}", tokens, batch_rows
        config = ModelConfig(path=str(SHARED / "models" / model))
        self.backbone = load_backbone(config, CPU)
        self.model = self.backbone.model
        self.limit = self.backbone.context_length or 512
        folder = SHARED / "data" / data
        self.train = self._encoded(folder / "train.jsonl")
        held = self._encoded(folder / "validation.jsonl") + self._encoded(folder / "test.jsonl")
        self.rows = self._batched(held)
        self.dense: list[Tensor] = []

    def _encoded(self, path: Path) -> list[list[int]]:
        texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
        return [self.backbone.tokenizer(text)["input_ids"][: self.limit] for text in texts]

    def _batched(self, rows: Sequence[list[int]]) -> list[dict[str, Tensor]]:
        ordered = sorted(rows, key=len)
        batches = []
        for start in range(0, len(ordered), self.batch_rows):
            group = ordered[start : start + self.batch_rows]
            ids = torch.zeros(len(group), max(map(len, group)), dtype=torch.long)
            mask = torch.zeros_like(ids)
            for index, row in enumerate(group):
                ids[index, : len(row)] = torch.tensor(row)
                mask[index, : len(row)] = 1
            batches.append({"input_ids": ids, "attention_mask": mask})
        return batches

    def calibration(self, seed: int) -> list[Any]:
        """Texts in an order drawn from the seed until there are enough tokens."""
        generator = torch.Generator().manual_seed(seed)
        chosen, total = [], 0
        for index in torch.randperm(len(self.train), generator=generator).tolist():
            if total >= self.tokens:
                break
            chosen.append(self.train[index])
            total += len(self.train[index])
        return self._batched(chosen)

    @torch.inference_mode()
    def measure(self) -> Measured:
        """Every next token of the held-out texts."""
        loss, kl, count = 0.0, 0.0, 0
        fresh = not self.dense
        for index, batch in enumerate(self.rows):
            targets = as_targets(batch)
            wanted = targets >= 0
            logprobs = torch.log_softmax(
                forward(self.model, batch, targets.shape[1])[wanted].float(), -1
            )
            if fresh:
                self.dense.append(logprobs)
            dense = self.dense[index]
            kl += float((dense.exp() * (dense - logprobs)).sum())
            loss -= float(logprobs.gather(1, targets[wanted][:, None]).sum())
            count += int(wanted.sum())
        return Measured([], loss / count, kl / count)
