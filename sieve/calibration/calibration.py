"""Calibration: streaming moments of every matrix over the task's prompts.

`CalibrationModule` runs token batches through the dense model under a Lightning Trainer;
`calibrate` is the same on plain objects. Padding never counts. Where a projection asks for
gradients, each batch is also run backwards from the task's own loss; weights stay frozen, so no
gradient of a weight is ever made.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sieve.calibration.answer_loss import answer_loss, generator_for
from sieve.calibration.collector import MomentCollector
from sieve.calibration.faults import find_fault
from sieve.data.batches import as_inputs, as_targets, present_tensors, trailing_positions
from sieve.distributed.sharding import Turns
from sieve.model.backbone import forward, with_input_gradients
from sieve.model.matrices import Matrix, find_matrices
from sieve.projections import get_projection
from sieve.projections.moments import PLAIN, Moments, Needs
from sieve.runtime.progress import track

HEADROOM = 64  # how much a later gradient may exceed the first batch's in float16


class CalibrationModule(L.LightningModule):
    """Runs token batches through the dense model under `trainer.predict`.

    needs: what the projection asks for. answers: of the loss, "sampled" from the model or "gold".
    weighting: of tokens in the moments of activations: "none", "answer", "gradient" or "position".
    checkpointing: compute every block again backwards, to hold one block's activations at a time.
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

    def predict_step(self, batch: Any, batch_idx: int = 0) -> int:
        """One batch: `input_ids`, and `attention_mask` where there is padding; its row count."""
        self._batch, inputs = batch_idx, as_inputs(batch)
        rows = len(inputs["input_ids"])
        if self.collector.needs_gradient:
            # Lightning predicts in inference mode, whose tensors know no gradient.
            with torch.inference_mode(False), torch.enable_grad():
                inputs = {name: tensor.clone() for name, tensor in inputs.items()}
                if not self._scaled:
                    self._find_scale(inputs, as_targets(batch))
                self._both_ways(inputs, as_targets(batch).clone(), rows)
        else:
            answers, keep = None, 1
            if self.collector.weighting == "answer" or self.collector.reads_head:
                answers = as_targets(batch) >= 0
                keep = trailing_positions(answers)
            self.collector.observe(inputs.get("attention_mask"), answers, rows)
            with torch.no_grad(), self.collector.attached():
                logits = forward(self.model, inputs, keep)
            self._check(logits, inputs)
        return rows

    def _both_ways(self, inputs: dict[str, Tensor], targets: Tensor, rows: int) -> None:
        """Forwards, and backwards from the loss at targets (B, T), under the hooks."""
        keep = trailing_positions(targets >= 0)
        self.collector.observe(inputs.get("attention_mask"), targets >= 0, rows)
        generator = generator_for(inputs["input_ids"], self.seed)
        blocks = self.collector.blocks if self.checkpointing else ()
        with self.collector.attached(), with_input_gradients(self.model, blocks):
            logits = forward(self.model, inputs, keep)
            self._check(logits.detach(), inputs)
            loss = answer_loss(logits, targets[:, -keep:], self.answers, generator)
            (loss * self.collector.scale).backward()

    def _check(self, logits: Tensor, inputs: dict[str, Tensor]) -> None:
        """ValueError that says which rows of a batch gave NaN, and in which matrix it began."""
        if not torch.isnan(logits).any():
            return
        names = [matrix.name for matrix in self.collector.matrices]
        fault = find_fault(self.model, names, inputs, logits)
        if fault is not None:
            raise ValueError(f"calibration batch {self._batch}: {fault}")

    def _find_scale(self, inputs: dict[str, Tensor], targets: Tensor) -> None:
        """Scale the loss so that float16 gradients neither vanish nor overflow."""
        self.collector.largest = 0.0
        self._both_ways(inputs, targets.clone(), 0)
        largest, self.collector.largest = self.collector.largest, None
        if 0 < largest < math.inf:
            limit = torch.finfo(torch.float16).max / HEADROOM
            self.collector.scale = 2.0 ** math.floor(math.log2(limit / largest))
        self._scaled = True

    def configure_model(self) -> None:
        """A model that is to be sharded is so before it comes here."""

    def on_predict_start(self) -> None:
        """Ranks may have different numbers of batches."""
        self.turns.begin()

    def on_predict_end(self) -> None:
        """Reduce over ranks while they are still joined."""
        self.turns.end()
        self.moments = self.collector.moments(release=True)


def calibrate(
    model: PreTrainedModel,
    batches: Iterable[Any],
    matrices: list[Matrix] | None = None,
    needs: Needs = PLAIN,
    projection: str | None = None,
    **options: Any,
) -> Moments:
    """Moments of `model` over batches of token ids, without a Trainer.

    batches: mappings (such as a tokenizer returns) or objects with `input_ids` (B, T) and, where
    there is padding, `attention_mask` (B, T); for gradients also `targets` (B, T), −100 where no
    answer token is predicted, else every next token is one. projection: the name of the one that
    is to be fitted, which says what it needs and how tokens count; without it `needs` does.
    options: as `CalibrationModule`. Raises ValueError when nothing was seen or an activation or
    gradient is not finite.
    """
    if projection is not None:
        needs = get_projection(projection).needs
        options = {"answers": "margin", "weighting": needs.weighting} | options
    with torch.inference_mode(False):  # Else the sums could not be added to outside of it.
        module = CalibrationModule(model, matrices, needs, **options).to(model.device)
    for index, batch in enumerate(track(batches, "Calibrating")):
        names = ("input_ids", "attention_mask", "position_ids", "targets")
        module.predict_step(
            {k: v.to(model.device) for k, v in present_tensors(batch, names).items()}, index
        )
    return module.collector.moments(release=True)
