"""The dense model's answers, which the pruned model is trained on, computed once per batch.

A training reads each batch many times, and the dense model costs more than the pruned one. What its
output head reads at the answer tokens is kept, which is much smaller than the log-probabilities of
a whole vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from transformers import PreTrainedModel

from sieve.data.batches import as_targets, trailing_positions
from sieve.distributed.sharding import is_sharded
from sieve.evaluation.divergence import answer_logprobs

AGREEMENT = 0.01  # nats; the mean difference by rounding between two computations is smaller


@dataclass(frozen=True)
class TrainingBatch:
    """One batch as the pruned model reads it, and the same rows as the dense model reads them."""

    rows: object  # a TokenBatch, or a mapping with the same keys
    index: int  # of the batch in the training
    dense: object | None = None  # the same rows and answers with another prompt; None: `rows`
    labelled: bool = True  # whether the answers are right, and not the dense model's own

    def to(self, device: torch.device) -> "TrainingBatch":
        """The same batch with its tensors on a device."""
        rows, dense = (move_data_to_device(part, device) for part in (self.rows, self.dense))
        return replace(self, rows=rows, dense=dense)


class Teacher:
    """Log-probabilities of the dense model at the answer tokens of numbered batches.

    Args:
        model: must be dense at every call.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.head: nn.Module | None = getattr(model, "get_output_embeddings", lambda: None)()
        if is_sharded(model):
            self.head = None  # Its weight is in parts, so the whole model must run.
        self._inputs: dict[int, Tensor] = {}  # of the head, (tokens, d) by batch, on the CPU

    @torch.no_grad()
    def logprobs(self, batch: TrainingBatch) -> Tensor:
        """Log-probabilities (tokens, V), float32, at the answer tokens of a batch."""
        rows = batch.rows if batch.dense is None else batch.dense
        if self.head is None:
            return answer_logprobs(self.model, rows)
        if (inputs := self._inputs.get(batch.index)) is not None:
            return self._from(inputs.to(self.model.device))
        with _inputs_of(self.head) as read:
            computed = answer_logprobs(self.model, rows)
        inputs = _at_answers(read[-1], as_targets(rows))
        if self._inputs or _agree(self._from(inputs), computed):
            self._inputs[batch.index] = inputs.cpu()
        else:  # The model changes what its head computes.
            self.head = None
        return computed

    def _from(self, inputs: Tensor) -> Tensor:
        assert self.head is not None
        return torch.log_softmax(self.head(inputs).float(), -1)


def _agree(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and bool((first - second).abs().mean() < AGREEMENT)


def _at_answers(inputs: Tensor, targets: Tensor) -> Tensor:
    """What the head read (B, keep, d), at the answer tokens alone."""
    answers = targets >= 0
    keep = trailing_positions(answers)
    if inputs.shape[:2] != (len(answers), keep):
        return inputs.reshape(-1, inputs.shape[-1])[:0]
    return inputs[answers[:, -keep:]]


@contextmanager
def _inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """A list that gets the input of every call of a layer inside the block."""
    inputs: list[Tensor] = []
    with layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach())):
        yield inputs
