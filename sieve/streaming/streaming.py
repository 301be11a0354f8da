"""Streaming calibration: moments of a model with one decoder block at a time in memory.

All batches go through one block before the next block is read; hidden states wait on disk or in
memory. If a projection needs gradients, a reverse sweep follows: each block is computed again from
its inputs and run backwards from the gradient at its outputs. The moments equal the moments of
`sieve.calibrate`. Memory holds one block, its moments and one batch.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import lightning as L
import torch

from sieve.calibration.answer_loss import answer_loss
from sieve.calibration.collector import MomentCollector
from sieve.calibration.faults import fault_after
from sieve.data.batches import as_inputs, as_targets, trailing_positions
from sieve.model.matrices import Matrix, block_of, blocks_of
from sieve.projections.moments import (
    BY_GRADIENT,
    PLAIN,
    Moments,
    Needs,
    moment_bytes,
)
from sieve.runtime.memory import lean
from sieve.streaming.blocks import BlockModel
from sieve.streaming.hidden_states import HiddenStates

Step = tuple[str, int]
log = logging.getLogger(__name__)


class StreamingModule(L.LightningModule):
    """Calibrates a model block by block under `trainer.predict`; each step is one block.

    Raises ValueError for gradients in float16, and like `CalibrationModule`.

    Args:
        batches: the batches of this rank.
        save: called with the moments of a finished block (or the head), summed over ranks, and
            with its matrices.
        needs, answers, weighting, seed: as in `CalibrationModule`.
    """

    def __init__(
        self,
        blocks: BlockModel,
        batches: Sequence[object],
        hidden: HiddenStates,
        save: Callable[[Moments, list[Matrix]], None],
        needs: Needs = PLAIN,
        answers: str = "sampled",
        weighting: str = "none",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._blocks, self._batches, self._hidden, self._save = [blocks], batches, hidden, save
        self.needs, self.answers, self.weighting, self.seed = needs, answers, weighting, seed
        self.backwards = needs.gradient or weighting in BY_GRADIENT
        if self.backwards and blocks.dtype == torch.float16:
            raise ValueError(
                "calibration.strategy=stream cannot compute gradients in float16. Set "
                "model.dtype=bfloat16 or float32, or calibration.strategy=whole."
            )

    def configure_model(self) -> None:
        """Do nothing: a streamed model is not sharded."""

    @property
    def blocks(self) -> BlockModel:
        """The model, in a list so that it is no submodule."""
        return self._blocks[0]

    def steps(self) -> list[Step]:
        """All steps in order: embed, each block forward, the head, each block backward."""
        numbers = range(len(self.blocks.paths))
        steps: list[Step] = [("embed", 0), *(("forward_block", number) for number in numbers)]
        if self.backwards or self._matrices_of(None):
            steps.append(("head", len(numbers)))
        if self.backwards:
            steps += [("backward_block", number) for number in reversed(numbers)]
        return steps

    def predict_step(self, step: Step, batch_idx: int = 0) -> Step:
        """Run one step; returns it, since Lightning warns of None."""
        kind, number = step
        # Tensors that are made in inference mode cannot take part in a backward pass.
        with torch.inference_mode(False), lean():
            getattr(self, f"_{kind}")(int(number))
        return step

    def _embed(self, _number: int) -> None:
        self.blocks.embed(list(self._batches), lambda index, h: self._hidden.put(0, index, h))

    def _forward_block(self, number: int) -> None:
        """Compute a block's outputs; collect its moments if no gradients are needed."""
        paths = self.blocks.paths
        next_path = paths[number + 1] if number + 1 < len(paths) else None
        with self.blocks.loaded(paths[number], next_path), torch.no_grad():
            collector = None if self.backwards else self._collector(paths[number])
            for index, batch in enumerate(self._batches):
                hidden = self._hidden.get(number, index, self.blocks.device)
                with self._collecting(collector, batch):
                    outputs = self.blocks.run(number, hidden, batch)
                if fault := fault_after(paths[number], as_inputs(batch), outputs):
                    raise ValueError(f"calibration batch {index}: {fault}")
                self._hidden.put(number + 1, index, outputs)
        self._finish(collector)
        if not self.backwards:
            self._hidden.drop(number)

    def _head(self, number: int) -> None:
        """Collect the head's moments and the loss's gradient at the hidden states before it."""
        with self.blocks.head() as logits_of:
            collector = self._collector(None)
            for index, batch in enumerate(self._batches):
                hidden = self._hidden.get(number, index, self.blocks.device)
                targets = as_targets(batch).to(self.blocks.device)
                keep = trailing_positions(targets >= 0)
                with self._collecting(collector, batch), torch.set_grad_enabled(self.backwards):
                    hidden.requires_grad_(self.backwards)
                    logits = logits_of(hidden, batch, keep)
                    if self.backwards:
                        ids, wanted = as_inputs(batch)["input_ids"], targets[:, -keep:]
                        loss = answer_loss(logits, wanted, self.answers, ids, self.seed)
                        self._hidden.put(-1, index, *torch.autograd.grad(loss, hidden))
        self._finish(collector)
        self._hidden.drop(number)

    def _backward_block(self, number: int) -> None:
        """Collect a block's moments and gradients; compute the gradient at its inputs."""
        paths = self.blocks.paths
        next_path = paths[number - 1] if number else None
        with self.blocks.loaded(paths[number], next_path):
            collector = self._collector(paths[number])
            for index, batch in enumerate(self._batches):
                hidden = self._hidden.get(number, index, self.blocks.device).requires_grad_()
                with self._collecting(collector, batch), torch.enable_grad():
                    outputs = self.blocks.run(number, hidden, batch)
                    gradient = self._hidden.get(-1, index, self.blocks.device)
                    self._hidden.put(-1, index, *torch.autograd.grad(outputs, hidden, gradient))
        self._finish(collector)
        self._hidden.drop(number)

    def _finish(self, collector: MomentCollector | None) -> None:
        if collector is not None:
            self._save(collector.moments(release=True), collector.matrices)

    def _matrices_of(self, path: str | None) -> list[Matrix]:
        """The matrices of a block; of the head if `path` is None."""
        if path is None:
            return [m for m in self.blocks.matrices if m.layer is None]
        return [m for m in self.blocks.matrices if m.layer is not None and block_of(m.name) == path]

    def _collector(self, path: str | None) -> MomentCollector | None:
        matrices = self._matrices_of(path)
        if not matrices:
            return None
        model = self.blocks.model
        return MomentCollector(model, matrices, self.needs, self.weighting).to(self.blocks.device)

    def _collecting(
        self, collector: MomentCollector | None, batch: object
    ) -> AbstractContextManager[None]:
        """Let the collector, if there is one, see the pass of a batch within the `with` block."""
        if collector is None:
            return nullcontext()
        device, answers = self.blocks.device, None
        inputs = {name: tensor.to(device) for name, tensor in as_inputs(batch).items()}
        if self.backwards or self.weighting == "answer" or collector.reads_head:
            answers = as_targets(batch).to(device) >= 0
        collector.begin(inputs.get("attention_mask"), answers)
        return collector.watching(len(inputs["input_ids"]))


def log_needs(
    blocks: BlockModel, batches: Sequence[object], needs: Needs, weighting: str, hidden: str
) -> None:
    """Log the memory and disk that streaming needs, without the program and activations.

    The weights are a block, the next block, and the larger of embedding and head. Only one block's
    moments are in memory. Hidden states are kept for all tokens.
    """
    by_gradient = weighting in BY_GRADIENT
    layers = [blocks.model.get_submodule(path) for path in blocks.paths]
    largest_block = max(sum(p.numel() for p in layer.parameters()) for layer in layers)
    tables = [blocks.model.get_input_embeddings(), blocks.model.get_output_embeddings()]
    largest_table = max((t.weight.numel() for t in tables if t is not None), default=0)
    matrices_by_block = blocks_of(blocks.matrices).values()
    moments = max(sum(moment_bytes(group, needs, by_gradient)) for group in matrices_by_block)
    tokens = sum(as_inputs(batch)["input_ids"].numel() for batch in batches)
    waiting = len(layers) + 2 if needs.gradient or by_gradient else 2
    states = waiting * tokens * blocks.model.config.get_text_config().hidden_size
    weights = 2 * largest_block + largest_table
    log.info(
        "one block at a time: %.2f GiB of weights and %.2f GiB of moments in memory, %.2f GiB of "
        "hidden states %s",
        weights * blocks.dtype.itemsize / 2**30,
        moments / 2**30,
        states * blocks.dtype.itemsize / 2**30,
        "on disk" if hidden == "disk" else "in memory",
    )
