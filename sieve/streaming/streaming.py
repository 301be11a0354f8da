"""Streaming calibration: moments of a model of which one decoder block is in memory at a time.

Forwards, every batch goes through one block before the next block's weights are read; hidden states
wait on disk or in memory. Where a projection asks for gradients a second, reverse sweep follows: a
block is computed again from its inputs and run backwards from the gradient at its outputs. The
moments are those of `sieve.calibrate`; what is held is one block, its moments and one batch.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

from sieve.calibration.answer_loss import answer_loss, generator_for
from sieve.calibration.collector import MomentCollector
from sieve.calibration.faults import fault_after
from sieve.data.batches import as_inputs, as_targets, trailing_positions
from sieve.model.matrices import Matrix, block_of, blocks_of
from sieve.projections import get_projection
from sieve.projections.moments import (
    BY_GRADIENT,
    PLAIN,
    Moments,
    Needs,
    StoredMoments,
    moment_bytes,
)
from sieve.runtime.memory import lean
from sieve.runtime.progress import track
from sieve.streaming.blocks import BlockModel
from sieve.streaming.hidden_states import HiddenStates, hidden_states

Step = tuple[str, int]
log = logging.getLogger(__name__)


class StreamingModule(L.LightningModule):
    """Walks batches through a model block by block under `trainer.predict`; a step is a block.

    save: is given the moments of each finished block, or the head, summed over ranks, and its
    matrices. batches: of this rank. Other options as `CalibrationModule`.
    Raises ValueError for float16 with gradients, and as `CalibrationModule`.
    """

    def __init__(
        self,
        blocks: BlockModel,
        batches: Sequence[Any],
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
                "gradients of a float16 model are not streamed; set model.dtype=bfloat16 or "
                "float32, or calibration.strategy=whole."
            )

    def configure_model(self) -> None:
        """Nothing is to be sharded."""

    @property
    def blocks(self) -> BlockModel:
        """The model."""
        return self._blocks[0]

    def steps(self) -> list[Step]:
        """What is done in turn: "embed", blocks "forth", the "top", blocks "back"."""
        places = range(len(self.blocks.paths))
        steps: list[Step] = [("embed", 0), *(("forth", place) for place in places)]
        if self.backwards or self._of(None):
            steps.append(("top", len(places)))
        if self.backwards:
            steps += [("back", place) for place in reversed(places)]
        return steps

    def predict_step(self, step: Any, batch_idx: int = 0) -> None:
        """One step."""
        kind, place = step
        with torch.inference_mode(False), lean():  # Whose tensors know no gradient.
            getattr(self, f"_{kind}")(int(place))

    def _embed(self, _place: int) -> None:
        self.blocks.embed(list(self._batches), lambda index, h: self._hidden.put(0, index, h))

    def _forth(self, place: int) -> None:
        """Hidden states after a block; its moments, where no gradient is asked for."""
        paths = self.blocks.paths
        then = paths[place + 1] if place + 1 < len(paths) else None
        with self.blocks.loaded(paths[place], then), torch.no_grad():
            collector = None if self.backwards else self._collector(paths[place])
            for index, batch in enumerate(self._batches):
                hidden = self._hidden.get(place, index, self.blocks.device)
                if collector is None:
                    made = self.blocks.block(place, hidden, batch)
                else:
                    self._observe(collector, batch)
                    with collector.attached():
                        made = self.blocks.block(place, hidden, batch)
                self._check(index, paths[place], batch, made)
                self._hidden.put(place + 1, index, made)
        if collector is not None:
            self._save(collector.moments(release=True), collector.matrices)
        if not self.backwards:
            self._hidden.drop(place)

    @staticmethod
    def _check(index: int, path: str, batch: Any, hidden: torch.Tensor) -> None:
        fault = fault_after(path, as_inputs(batch), hidden)
        if fault is not None:
            raise ValueError(f"calibration batch {index}: {fault}")

    def _top(self, place: int) -> None:
        """The head's moments, and the loss's gradients at the hidden states before it."""
        with self.blocks.top() as logits_of:
            collector = self._collector(None)
            for index, batch in enumerate(self._batches):
                hidden = self._hidden.get(place, index, self.blocks.device)
                targets = as_targets(batch).to(self.blocks.device)
                keep = trailing_positions(targets >= 0)
                if collector is not None:
                    self._observe(collector, batch)
                attached = collector.attached() if collector else torch.enable_grad()
                with attached, torch.set_grad_enabled(self.backwards):
                    hidden.requires_grad_(self.backwards)
                    logits = logits_of(hidden, batch, keep)
                    if self.backwards:
                        generator = generator_for(as_inputs(batch)["input_ids"], self.seed)
                        loss = answer_loss(logits, targets[:, -keep:], self.answers, generator)
                        self._hidden.put(-1, index, *torch.autograd.grad(loss, hidden))
        if collector is not None:
            self._save(collector.moments(release=True), collector.matrices)
        self._hidden.drop(place)

    def _back(self, place: int) -> None:
        """A block's moments and gradients, and the gradients at its inputs."""
        paths = self.blocks.paths
        then = paths[place - 1] if place else None
        with self.blocks.loaded(paths[place], then):
            collector = self._collector(paths[place])
            for index, batch in enumerate(self._batches):
                hidden = self._hidden.get(place, index, self.blocks.device).requires_grad_()
                if collector is not None:
                    self._observe(collector, batch)
                attached = collector.attached() if collector else torch.enable_grad()
                with attached, torch.enable_grad():
                    made = self.blocks.block(place, hidden, batch)
                    after = self._hidden.get(-1, index, self.blocks.device)
                    self._hidden.put(-1, index, *torch.autograd.grad(made, hidden, after))
        if collector is not None:
            self._save(collector.moments(release=True), collector.matrices)
        self._hidden.drop(place)

    def _of(self, path: str | None) -> list[Matrix]:
        """The matrices of a block, or of none: the head."""
        own = [m for m in self.blocks.matrices if m.layer is not None or path is None]
        if path is None:
            return [m for m in own if m.layer is None]
        return [m for m in own if block_of(m.name) == path]

    def _collector(self, path: str | None) -> MomentCollector | None:
        matrices = self._of(path)
        if not matrices:
            return None
        model = self.blocks.model
        return MomentCollector(model, matrices, self.needs, self.weighting).to(self.blocks.device)

    def _observe(self, collector: MomentCollector, batch: Any) -> None:
        inputs = as_inputs(batch)
        mask, answers = inputs.get("attention_mask"), None
        if self.backwards or self.weighting == "answer" or collector.reads_head:
            answers = as_targets(batch).to(self.blocks.device) >= 0
        mask = None if mask is None else mask.to(self.blocks.device)
        collector.observe(mask, answers, len(inputs["input_ids"]))


def stream(
    blocks: BlockModel,
    batches: Sequence[Any],
    folder: Path,
    projection: str = "output",
    in_memory: bool = False,
    **options: Any,
) -> StoredMoments:
    """Moments of a model that does not fit, without a Trainer; a file per block in `folder`.

    in_memory: keep hidden states there and not in `folder`. options: as `StreamingModule`; what a
    projection needs is known. Errors as `sieve.calibrate`.
    """
    needs = get_projection(projection).needs
    options = {"answers": "margin", "weighting": needs.weighting} | options
    paths: list[Path] = []

    def save(moments: Moments, matrices: list[Matrix]) -> None:
        paths.append(folder / f"moments.{block_of(matrices[0].name)}.safetensors")
        moments.save(paths[-1])

    with hidden_states(None if in_memory else folder) as hidden:
        module = StreamingModule(blocks, batches, hidden, save, needs, **options)
        for step in track(module.steps(), "Calibrating"):
            module.predict_step(step)
    return StoredMoments(paths)


def memory_parts(
    blocks: BlockModel, batches: Sequence[Any], needs: Needs, by_gradient: bool
) -> dict[str, int]:
    """Bytes that streaming holds at its peak, beside the program itself and a batch's activations.

    weights: a block, the next one that is being read, and the larger of embedding and head;
    moments: of one block; hidden: of all tokens, in files or in memory.
    """
    shapes = dict(blocks.model.named_parameters(remove_duplicate=False))
    sizes = [sum(p.numel() for n, p in shapes.items() if n.startswith(f"{path}."))
             for path in blocks.paths]  # fmt: skip
    tables = [blocks.model.get_input_embeddings(), blocks.model.get_output_embeddings()]
    largest = max((t.weight.numel() for t in tables if t is not None), default=0)
    by_block = list(blocks_of(blocks.matrices).values())
    sums = max(moment_bytes(group, needs, by_gradient).total for group in by_block)
    tokens = sum(as_inputs(batch)["input_ids"].numel() for batch in batches)
    config = blocks.model.config.get_text_config()
    layers = len(blocks.paths) + 2 if needs.gradient or by_gradient else 2
    return {
        "weights": (2 * max(sizes) + largest) * blocks.dtype.itemsize,
        "moments": sums,
        "hidden": layers * tokens * config.hidden_size * blocks.dtype.itemsize,
    }


def log_needs(
    blocks: BlockModel, batches: Sequence[Any], needs: Needs, weighting: str, hidden: str
) -> None:
    """Say beforehand what streaming will hold."""
    parts = memory_parts(blocks, batches, needs, weighting in BY_GRADIENT)
    gib = {name: size / 2**30 for name, size in parts.items()}
    log.info(
        "one block at a time: %.2f GiB of weights and %.2f GiB of moments in memory, %.2f GiB of "
        "hidden states %s",
        gib["weights"], gib["moments"], gib["hidden"],
        "on the disk" if hidden == "disk" else "in memory",
    )  # fmt: skip
