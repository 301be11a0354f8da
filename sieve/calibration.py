"""Calibration: streaming moments of every matrix's input or output over the task's prompts.

`MomentCollector` hooks the matrices and accumulates; `CalibrationModule` wires it to a Lightning
Trainer; `calibrate` is the same on plain objects. Padding never counts.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import Metric
from transformers import PreTrainedModel

from sieve.backbone import forward
from sieve.matrices import Matrix, find_matrices
from sieve.moments import Moment, Moments, Side, plan_streams
from sieve.progress import track


class MomentMetric(Metric):
    """Σ z zᵀ (n, n), Σ z (n,) and the count of vectors z, in float32; summed over ranks."""

    full_state_update = False
    second: Tensor
    total: Tensor
    count: Tensor

    def __init__(self, side: Side, size: int) -> None:
        super().__init__()
        self.side = side
        self.add_state("second", torch.zeros(size, size), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(size), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, z: Tensor) -> None:
        """Add vectors z (tokens, n)."""
        self.second.addmm_(z.T, z)
        self.total += z.sum(0)
        self.count += z.shape[0]

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """E[z zᵀ], E[z] and the count over everything seen on every rank."""
        count = self.count.clamp_min(1)
        return self.second / count, self.total / count, self.count

    def moment(self) -> Moment:
        """The same as a Moment; ValueError when nothing was seen."""
        with warnings.catch_warnings():  # A rank may have had no batch.
            warnings.filterwarnings("ignore", message=".*called before the ``update``")
            second, mean, count = self.compute()
        if not int(count):
            raise ValueError("calibration saw no token; give the task calibration rows.")
        size = self.total.numel()
        return Moment(self.side, second.reshape(size, size), mean.reshape(size), int(count))


class MomentCollector(nn.Module):
    """Hooks that feed one metric per distinct input (or output, where that is smaller)."""

    def __init__(self, model: PreTrainedModel, matrices: list[Matrix]) -> None:
        super().__init__()
        streams = plan_streams(matrices)
        self.names = list(streams)
        self.metrics = nn.ModuleList(MomentMetric(*stream) for stream in streams.values())
        self._hooked = {name: model.get_submodule(name) for name in self.names}
        self._keep: Tensor | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Keep the hooks in place for the duration of the block."""
        handles = []
        for name, metric in zip(self.names, self.metrics, strict=True):
            assert isinstance(metric, MomentMetric)
            module = self._hooked[name]
            if metric.side == "input":
                hook = self._input_hook(metric)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(self._output_hook(metric)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def observe(self, attention_mask: Tensor | None) -> None:
        """Say which positions (B, T) of the next forward pass count; None means all."""
        if attention_mask is None or bool(attention_mask.all()):
            self._keep = None
        else:
            self._keep = attention_mask.flatten().nonzero().squeeze(1)

    def moments(self) -> dict[str, Moment]:
        """Moments by stream, reduced over ranks; ValueError where one is not finite."""
        entries = {}
        for name, metric in zip(self.names, self.metrics, strict=True):
            assert isinstance(metric, MomentMetric)
            moment = entries[name] = metric.moment()
            if not torch.isfinite(moment.second).all():
                raise ValueError(
                    f"the activations at {name} are not finite; load the model in another dtype "
                    "(model.dtype=float32 or bfloat16)."
                )
        return entries

    def _select(self, z: Tensor) -> Tensor:
        flat = z.detach().reshape(-1, z.shape[-1])
        return (flat if self._keep is None else flat.index_select(0, self._keep)).float()

    def _input_hook(self, metric: MomentMetric) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            metric.update(self._select([*args, *kwargs.values()][0]))

        return hook

    def _output_hook(self, metric: MomentMetric) -> Any:
        def hook(module: nn.Module, _args: tuple[Tensor, ...], y: Tensor) -> None:
            bias = getattr(module, "bias", None)
            metric.update(self._select(y if bias is None else y - bias))

        return hook


class CalibrationModule(L.LightningModule):
    """Runs token batches through the dense model under `trainer.predict`."""

    def __init__(self, model: PreTrainedModel, matrices: list[Matrix] | None = None) -> None:
        super().__init__()
        self.model = model
        self.collector = MomentCollector(model, matrices or find_matrices(model))
        self.moments: Moments | None = None

    @torch.no_grad()
    def predict_step(self, batch: Any, batch_idx: int = 0) -> int:
        """One batch: `input_ids`, and `attention_mask` where there is padding; its row count."""
        inputs = as_inputs(batch)
        self.collector.observe(inputs.get("attention_mask"))
        with self.collector.attached():
            forward(self.model, inputs, keep=1)
        return len(inputs["input_ids"])

    def on_predict_end(self) -> None:
        """Reduce over ranks while they are still joined."""
        self.moments = Moments(self.collector.moments())


def calibrate(
    model: PreTrainedModel, batches: Iterable[Any], matrices: list[Matrix] | None = None
) -> Moments:
    """Moments of `model` over batches of token ids, without a Trainer.

    batches: mappings (such as a tokenizer returns) or objects with `input_ids` (B, T) and, where
    there is padding, `attention_mask` (B, T). Raises ValueError when nothing was seen or an
    activation is not finite.
    """
    module = CalibrationModule(model, matrices).to(model.device)
    for batch in track(batches, "Calibrating"):
        module.predict_step({k: v.to(model.device) for k, v in as_inputs(batch).items()})
    return Moments(module.collector.moments())


def as_inputs(batch: Any) -> dict[str, Tensor]:
    """The tensors a model reads, from a mapping or an object with those attributes."""
    names = ("input_ids", "attention_mask", "position_ids")
    get = batch.get if isinstance(batch, Mapping) else lambda name: getattr(batch, name, None)
    return {name: value for name in names if (value := get(name)) is not None}
