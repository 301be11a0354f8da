"""The weight of each token in a refit by its gradient, of a whole or of a streamed model."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sieve.calibration.calibration import CalibrationModule
from sieve.calibration.collector import MomentCollector
from sieve.data.batches import count_tokens, on_device
from sieve.model.matrices import Matrix
from sieve.runtime.progress import track
from sieve.streaming.blocks import BlockModel
from sieve.streaming.hidden_states import HiddenStates
from sieve.streaming.streaming import StreamingModule


def token_weights(
    model: PreTrainedModel,
    matrices: list[Matrix],
    batches: Sequence[object],
    weighting: str = "gradient",
    **options: Any,
) -> dict[str, list[Tensor]]:
    """‖g‖² of the N tokens without padding, (N,) by matrix and batch, on the CPU.

    The tokens of a batch's prefix come first, once, and count for all rows.

    Args:
        model: the dense model.
        matrices: the output head is left out: it reads the answer positions only.
        batches: calibration batches.
        weighting: "gradient", or "position" for the mean of ‖g‖² over the rows at each column.
        options: `answers` and `seed` of `CalibrationModule`.
    """
    matrices = [matrix for matrix in matrices if matrix.layer is not None]
    module = CalibrationModule(model, matrices, weighting=weighting, **options)
    weights: dict[str, list[Tensor]] = {matrix.name: [] for matrix in matrices}
    for batch in track(batches, "Weighting tokens", unit="tokens", size=count_tokens):
        powers: dict[str, dict[int, Tensor]] = {name: {} for name in weights}
        module.collector.powers = powers
        module.predict_step(on_device(batch, model.device))
        for name, by_pass in powers.items():
            passes = [by_pass[number] for number in sorted(by_pass)]
            # An expert may see no token of a batch.
            weights[name].append(torch.cat(passes or [torch.zeros(0)]))
    return weights


def streamed_token_weights(
    blocks: BlockModel,
    batches: Sequence[object],
    hidden: HiddenStates,
    weighting: str = "gradient",
    **options: Any,
) -> dict[str, list[Tensor]]:
    """What `token_weights` returns, with one decoder block at a time in memory.

    Args:
        batches: calibration batches whose rows share no prefix.
        hidden: where hidden states and gradients wait.
        weighting: "gradient" or "position".
        options: `answers` and `seed` of `StreamingModule`.
    """
    module = _Weighting(blocks, batches, hidden, weighting, **options)
    for step in track(module.steps(), "Weighting tokens", unit="steps"):
        module.predict_step(step)
    return module.weights


class _Weighting(StreamingModule):
    """Collects the powers of gradients in place of moments."""

    def __init__(
        self,
        blocks: BlockModel,
        batches: Sequence[object],
        hidden: HiddenStates,
        weighting: str,
        **options: Any,
    ) -> None:
        super().__init__(blocks, batches, hidden, _no_moments, weighting=weighting, **options)
        self.weights: dict[str, list[Tensor]] = {}

    def _matrices_of(self, path: str | None) -> list[Matrix]:
        """The output head is left out: it reads the answer positions only."""
        return [] if path is None else super()._matrices_of(path)

    def _collector(self, path: str | None) -> MomentCollector | None:
        collector = super()._collector(path)
        if collector is not None:
            collector.powers = {matrix.name: {} for matrix in collector.matrices}
        return collector

    def _finish(self, collector: MomentCollector | None) -> None:
        """Keep the powers by batch; an expert may see no token of one."""
        powers = {} if collector is None or collector.powers is None else collector.powers
        for name, by_pass in powers.items():
            passes = range(1, len(self._batches) + 1)
            self.weights[name] = [by_pass.get(number, torch.zeros(0)) for number in passes]


def _no_moments(*_: object) -> None:
    raise AssertionError("powers were asked for, not moments")
