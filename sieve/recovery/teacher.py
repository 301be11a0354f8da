"""The dense model's answers, which the pruned model is trained on, computed once per batch.

A training reads each batch many times, and the dense model costs more than the pruned one. What its
output head reads at the answer tokens is kept, which is much smaller than the log-probabilities of
a whole vocabulary, and the hidden states of some blocks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from transformers import PreTrainedModel

from sieve.data.batches import as_targets, trailing_positions
from sieve.distributed.sharding import is_sharded
from sieve.evaluation.divergence import answer_logprobs
from sieve.recovery.hidden import outputs_of, states

STATE_BYTES = 2 * 2**30  # of hidden states that are kept in memory
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


@dataclass(frozen=True)
class Answers:
    """What the dense model computes for one batch."""

    logprobs: Tensor  # (tokens, V), float32, at the answer tokens
    states: list[Tensor]  # hidden states (tokens, d), bfloat16, by compared block; may be empty


class Teacher:
    """The dense model's answers to numbered batches, and its hidden states.

    Args:
        model: must be dense at every call.
        blocks: whose outputs are the hidden states; `hidden.compared_blocks` chooses them.
        most_bytes: of hidden states that are kept; the model computes others anew each time.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        blocks: Sequence[nn.Module] = (),
        most_bytes: int = STATE_BYTES,
    ) -> None:
        self.model, self.blocks, self.room = model, blocks, most_bytes
        self.head: nn.Module | None = getattr(model, "get_output_embeddings", lambda: None)()
        if is_sharded(model):
            self.head = None  # Its weight is in parts, so the whole model must run.
        self._inputs: dict[int, Tensor] = {}  # of the head, (tokens, d) by batch, on the CPU
        self._states: dict[int, list[Tensor]] = {}  # by batch, on the CPU

    @torch.no_grad()
    def answer(self, batch: TrainingBatch) -> Answers:
        """The dense model's answers to a batch, from memory if it was answered before."""
        inputs, states = self._inputs.get(batch.index), self._states.get(batch.index)
        if self.head is None or inputs is None or (self.blocks and states is None):
            return self._compute(batch)
        device = self.model.device
        return Answers(self._from(inputs.to(device)), [s.to(device) for s in states or []])

    def _compute(self, batch: TrainingBatch) -> Answers:
        rows = batch.rows if batch.dense is None else batch.dense
        read = list[Tensor]()
        with outputs_of(self.blocks) as outputs, _inputs_of(self.head, read):
            logprobs = answer_logprobs(self.model, rows)
        hidden = states(rows, outputs, batch.dense is not None)
        answers = Answers(logprobs, [state.bfloat16() for state in hidden])
        if self.head is None:
            return answers
        inputs = _at_answers(read[-1], as_targets(rows))
        if self._inputs or _agree(self._from(inputs), logprobs):
            self._inputs[batch.index] = inputs.cpu()
            self._keep(batch.index, answers.states)
        else:  # The model changes what its head computes.
            self.head = None
        return answers

    def _keep(self, index: int, computed: Sequence[Tensor]) -> None:
        """Keep hidden states while there is room."""
        size = sum(state.nbytes for state in computed)
        if index not in self._states and size <= self.room:
            self._states[index] = [state.cpu() for state in computed]
            self.room -= size

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
def _inputs_of(layer: nn.Module | None, read: list[Tensor]) -> Iterator[None]:
    """Append the input of every call of a layer, if there is one, to a list inside the block."""
    if layer is None:
        yield
        return
    with layer.register_forward_pre_hook(lambda _, args: read.append(args[0].detach())):
        yield
