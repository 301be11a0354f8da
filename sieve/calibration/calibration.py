"""Calibration: collect the moments of every matrix over the task's prompts.

`CalibrationModule` runs token batches through the dense model under a Lightning Trainer;
`calibrate` does the same without a Trainer. Padding does not count. Where a projection needs
gradients, each batch also runs backwards from the loss of its answers. Weights stay frozen, so no
gradient of a weight is computed. The common prefix of a batch's rows runs once. Its gradient is a
sum over rows, so each row's loss gets a random sign, which keeps the mean second moment right.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sieve.calibration.answer_loss import answer_loss
from sieve.calibration.collector import MomentCollector
from sieve.calibration.faults import find_fault
from sieve.data.batches import (
    as_inputs,
    as_targets,
    count_tokens,
    present_tensors,
    trailing_positions,
)
from sieve.data.encoding import Tokens
from sieve.data.prefix import prefix_of, run_prefix, run_rows, whole_rows, without_prefix
from sieve.distributed.sharding import Turns
from sieve.model.backbone import forward, with_input_gradients
from sieve.model.matrices import Matrix, find_matrices
from sieve.projections import get_projection
from sieve.projections.moments import PLAIN, Moments, Needs
from sieve.runtime.progress import track

HEADROOM = 64  # float16: how far a later gradient may exceed the largest of the first batch


class CalibrationModule(L.LightningModule):
    """Runs token batches through the dense model under `trainer.predict`.

    Args:
        model: the model.
        matrices: None takes all prunable ones.
        needs: the statistics that the projection needs.
        answers: the kind of loss: "sampled", "gold" or "margin" (`answer_loss.py`).
        weighting: of tokens in the moments of activations; see `MomentCollector`.
        checkpointing: recompute every block in the backward pass, so that only one block's
            activations are in memory.
        seed: of sampled answers.
        dense: the dense layers of a model that is already pruned.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        matrices: list[Matrix] | None = None,
        needs: Needs = PLAIN,
        answers: str = "sampled",
        weighting: str = "none",
        checkpointing: bool = False,
        seed: int = 0,
        dense: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.answers, self.seed, self.checkpointing = answers, seed, checkpointing
        self.collector = MomentCollector(
            model, matrices or find_matrices(model), needs, weighting, dense
        )
        self._scaled = model.dtype != torch.float16
        blocks = self.collector.blocks if checkpointing else ()
        self.turns = Turns(model, self.collector.needs_gradient, blocks)
        self.moments: Moments | None = None
        self._batch = 0

    def predict_step(self, batch: object, batch_idx: int = 0) -> int:
        """Collect from one batch; returns its number of rows."""
        self._batch, whole, prefix = batch_idx, as_inputs(batch), prefix_of(batch)
        parts = whole_rows(whole, prefix) if self.checkpointing else [whole]
        targets = as_targets(batch).split([len(part["input_ids"]) for part in parts])
        for inputs, wanted in zip(parts, targets, strict=True):
            self._collect(inputs, wanted, () if self.checkpointing else prefix)
        return len(whole["input_ids"])

    def _collect(self, inputs: dict[str, Tensor], targets: Tensor, prefix: Tokens) -> None:
        """Run rows (B, T), of which the prefix runs once, and collect their moments."""
        rows = len(inputs["input_ids"])
        if self.collector.needs_gradient:
            # Lightning predicts in inference mode, whose tensors cannot have gradients.
            with torch.inference_mode(False), torch.enable_grad():
                inputs = {name: tensor.clone() for name, tensor in inputs.items()}
                if not self._scaled:
                    self._find_scale(inputs, targets, prefix)
                self._both_ways(inputs, targets.clone(), rows, prefix)
            return
        answers, keep = None, 1
        if self.collector.weighting == "answer" or self.collector.reads_head:
            answers = targets >= 0
            keep = trailing_positions(answers)
        with torch.no_grad(), self.collector.watching(rows):
            logits = self._logits(inputs, answers, keep, prefix)
        self._check(logits, inputs)

    def _logits(
        self, inputs: dict[str, Tensor], answers: Tensor | None, keep: int, prefix: Tokens
    ) -> Tensor:
        """Logits (B, keep, V) of rows (B, T), in one or two passes that the collector is told of.

        answers: (B, T) bool, the positions that predict an answer token.
        """
        mask = inputs.get("attention_mask")
        if not prefix:
            self.collector.begin(mask, answers)
            return forward(self.model, inputs, keep)
        assert mask is not None
        ones, count = mask.new_ones(1, len(prefix)), len(prefix)
        none = None if answers is None else ones == 0
        self.collector.begin(ones, none, copies=len(mask))
        pairs = run_prefix(self.model, prefix)
        own = without_prefix(inputs, count)["attention_mask"][:, count:]
        self.collector.begin(own, None if answers is None else answers[:, count:])
        return run_rows(self.model, inputs, keep, pairs)

    def _both_ways(
        self, inputs: dict[str, Tensor], targets: Tensor, rows: int, prefix: Tokens
    ) -> None:
        """A forward pass, and a backward pass from the loss at targets (B, T), under the hooks."""
        keep = trailing_positions(targets >= 0)
        blocks = self.collector.blocks if self.checkpointing else ()
        # The embedding's own output has no gradient, so its hook comes after that of gradients.
        with with_input_gradients(self.model, blocks), self.collector.watching(rows):
            logits = self._logits(inputs, targets >= 0, keep, prefix)
            self._check(logits.detach(), inputs)
            ids, wanted, signs = inputs["input_ids"], targets[:, -keep:], bool(prefix)
            loss = answer_loss(logits, wanted, self.answers, ids, self.seed, signs)
            (loss * self.collector.scale).backward()

    def _check(self, logits: Tensor, inputs: dict[str, Tensor]) -> None:
        """Raise ValueError with the rows that gave NaN, and the matrix where it first appeared."""
        if not torch.isnan(logits).any():
            return
        names = [matrix.name for matrix in self.collector.matrices]
        fault = find_fault(self.model, names, inputs, logits)
        if fault is not None:
            raise ValueError(f"calibration batch {self._batch}: {fault}")

    def _find_scale(self, inputs: dict[str, Tensor], targets: Tensor, prefix: Tokens) -> None:
        """Choose a scale of the loss at which float16 gradients neither vanish nor overflow."""
        self.collector.largest = 0.0
        self._both_ways(inputs, targets.clone(), 0, prefix)
        largest, self.collector.largest = self.collector.largest, None
        if 0 < largest < math.inf:
            limit = torch.finfo(torch.float16).max / HEADROOM
            self.collector.scale = 2.0 ** math.floor(math.log2(limit / largest))
        self._scaled = True

    def configure_model(self) -> None:
        """Do nothing: a model that ranks share is already sharded."""

    def on_predict_start(self) -> None:
        """Ranks may have different numbers of batches."""
        self.turns.begin()

    def on_predict_end(self) -> None:
        """Reduce over ranks while the process group still exists."""
        self.turns.end()
        self.moments = self.collector.moments(release=True)


def calibrate(
    model: PreTrainedModel,
    batches: Iterable[object],
    matrices: list[Matrix] | None = None,
    needs: Needs = PLAIN,
    projection: str | None = None,
    **options: Any,
) -> Moments:
    """The moments of `model` over batches of token ids, without a Trainer.

    Args:
        model: the model.
        batches: mappings, such as a tokenizer returns, or objects with `input_ids` (B, T) and,
            where there is padding, `attention_mask` (B, T). For gradients also `targets` (B, T),
            −100 where nothing is predicted; without it every next token is a target.
        matrices: None takes all prunable ones.
        needs: the statistics to collect.
        projection: the name of the projection to fit; sets `needs`, `answers` and `weighting`.
        options: of `CalibrationModule`.

    Raises:
        ValueError: there are no tokens, or an activation or a gradient is not finite.
    """
    if projection is not None:
        needs = get_projection(projection).needs
        options = {"answers": "margin", "weighting": needs.weighting} | options
    with torch.inference_mode(False):  # Inference mode would make sums read-only.
        module = CalibrationModule(model, matrices, needs, **options).to(model.device)
    shown = track(batches, "Calibrating", unit="tokens", size=count_tokens)
    for index, batch in enumerate(shown):
        names = ("input_ids", "attention_mask", "position_ids", "targets")
        module.predict_step(
            {k: v.to(model.device) for k, v in present_tensors(batch, names).items()}, index
        )
    return module.collector.moments(release=True)
