"""Hooks on a model's matrices that feed streaming second moments.

One metric per distinct input (or output, where that is smaller), and per matrix one of the loss's
gradient at its output where a projection asks for it. All are torchmetrics, summed over ranks.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sieve.calibration.sums import SumMetric
from sieve.factorized.modeling_layers import FactorizedLinear
from sieve.model.matrices import Matrix, blocks_of, dense_weight
from sieve.projections.moments import (
    BY_GRADIENT,
    PLAIN,
    Gradient,
    Moment,
    Moments,
    Needs,
    gradient_side,
    plan_streams,
)


class MomentCollector(nn.Module):
    """The metrics of a model's matrices, and the hooks that feed them.

    dense: the dense layers of a model that is pruned already: moments are then of what it sees, and
    of what the dense matrices make of it. weighting: how a token counts in the moments of
    activations: "none" alike, "answer" only where an answer token is predicted, "gradient" by ‖g‖²
    at the matrix's output, "position" by its mean over a batch's rows at one column.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        matrices: list[Matrix],
        needs: Needs = PLAIN,
        weighting: str = "none",
        dense: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.matrices, self.weighting = matrices, weighting
        self._by_gradient = weighting in BY_GRADIENT
        self.needs_gradient = needs.gradient or self._by_gradient
        self.streams = plan_streams(matrices, needs, shared=not self._by_gradient)
        self._stream_of = {m.name: self._find_stream(m) for m in matrices}
        self.metrics = nn.ModuleList(SumMetric(n, n) for _, n in self.streams.values())
        sources = {m.source: m.d_in for m in matrices} if needs.magnitude else {}
        self.sources = list(sources)
        self.magnitudes = nn.ModuleList(SumMetric(absolute=n) for n in sources.values())
        sides = [gradient_side(m) for m in matrices] if needs.gradient else []
        self.gradients = nn.ModuleList(SumMetric(n) for _, n in sides)
        self._modules_of = {m.name: model.get_submodule(m.name) for m in matrices}
        self._experts: dict[str, Any] = {
            m.name: model.get_submodule(m.expert) for m in matrices if m.expert
        }
        # Not their weights: those of a sharded model are whole within a pass alone.
        self._dense = dict(dense or self._modules_of)
        self._model = [model]  # In a list, lest it become a part of this module.
        self._mask: Tensor | None = None  # (B * T,) which positions count; None is all
        self._answers: Tensor | None = None  # (B, T) which positions predict an answer
        self._columns = 1  # T
        self.examples = 0
        self.scale = 1.0  # the loss is multiplied by it
        self.powers: dict[str, list[Tensor]] | None = None  # not None: only ‖g‖² is kept, by token
        self.largest: float | None = None  # not None: only the largest gradient is looked for

    @property
    def blocks(self) -> list[nn.Module]:
        """The decoder blocks that hold the matrices, in order."""
        return [self._model[0].get_submodule(path) for path in blocks_of(self.matrices)]

    @property
    def reads_head(self) -> bool:
        """Whether the output head is among the matrices: it only sees the positions kept."""
        return any(matrix.layer is None for matrix in self.matrices)

    def _find_stream(self, matrix: Matrix) -> str:
        return matrix.name if matrix.name in self.streams else matrix.source

    def observe(self, mask: Tensor | None, answers: Tensor | None, examples: int) -> None:
        """Say what counts in the next pass: positions (B, T), and those that predict an answer.

        mask: None means all positions; answers: (B, T) bool; examples: rows, 0 in a mere trial.
        """
        self._mask = None if mask is None or bool(mask.all()) else mask.flatten().bool()
        self._answers = answers
        shape = next((t.shape for t in (mask, answers) if t is not None), (1, 1))
        self._columns = shape[1]
        self.examples += examples

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Keep the hooks in place for the duration of the block."""
        handles = []
        try:
            for index, matrix in enumerate(self.matrices):
                module = self._modules_of[matrix.name]
                handles.append(module.register_forward_hook(self._hook(index), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, index: int) -> Any:
        """What a matrix's forward pass sets off: sums now, or when its gradient comes."""
        matrix = self.matrices[index]
        stream = self._stream_of[matrix.name]
        owns = stream == matrix.name  # A shared input is summed once, by its first reader.
        metric: Any = self.metrics[list(self.streams).index(stream)]
        side = self.streams[stream][0]

        def hook(module: Any, args: Any, kwargs: dict[str, Tensor], y: Tensor) -> None:
            if self.needs_gradient and not y.requires_grad:
                return  # The first of a checkpointed block's two passes.
            x = [*args, *kwargs.values()][0].detach()
            chosen = self._choose(matrix, x)
            if matrix.name in self.sources and self.largest is None:
                magnitude: Any = self.magnitudes[self.sources.index(matrix.name)]
                magnitude.update(chosen.of(x))
            z = x
            if side == "output" and isinstance(module, FactorizedLinear):
                # What the dense matrix would make of it.
                z = x @ dense_weight(self._dense[matrix.name]).T
            elif side == "output":
                z = _without_bias(y.detach(), module)
            if owns and not self._by_gradient and self.largest is None:
                # The head sees nothing but answers.
                weighs = self.weighting == "answer" and matrix.layer is not None
                marks = self._answers if weighs else None
                metric.update(chosen.of(z), None if marks is None else chosen.marked(marks))
            if self.needs_gradient:
                kept = z if self._by_gradient else None
                y.register_hook(lambda g: self._take_gradient(index, metric, kept, g, chosen))

        return hook

    def _choose(self, matrix: Matrix, z: Tensor) -> "_Chosen":
        """Which vectors of z count: not padding; of the head answers, of an expert its tokens."""
        if matrix.layer is None and self._answers is not None:
            rows = self._answers[:, -z.shape[1] :].flatten().nonzero().squeeze(1)
            return _Chosen(rows, rows, z.shape[1])
        mask, positions = self._mask, self._routed(matrix)
        if mask is not None and positions is not None:
            mask = mask[positions]
        if mask is None:
            return _Chosen(None, positions, self._columns)
        counted = mask.nonzero().squeeze(1)
        found = counted if positions is None else positions[counted]
        return _Chosen(counted, found, self._columns)

    def _routed(self, matrix: Matrix) -> Tensor | None:
        """Where the tokens stand that its expert was just given; None is everywhere."""
        return self._experts[matrix.name].tokens if matrix.expert else None

    def _take_gradient(
        self, index: int, metric: Any, z: Tensor | None, g: Tensor, chosen: "_Chosen"
    ) -> None:
        """Sum what a gradient g (B, T, d_out) tells."""
        g, matrix = g.detach(), self.matrices[index]
        if self.largest is not None:
            self.largest = max(self.largest, float(g.abs().max()))
            return
        g = chosen.of(g) / self.scale
        power = g.square().sum(1)  # (tokens,)
        if self.weighting == "position":
            power = _averaged(power, chosen.columns(len(power)))
        if self.powers is not None:
            self.powers[matrix.name].append(power.cpu())
            return
        if z is not None:
            metric.update(chosen.of(z), power)
        if len(self.gradients):
            own: Any = self.gradients[index]
            own.power += power.sum(dtype=torch.float64)
            if gradient_side(matrix)[0] == "input":
                g = g @ dense_weight(self._dense[matrix.name]).float()
            own.update(g)

    def moments(self, release: bool = False) -> Moments:
        """All moments, reduced over ranks; ValueError where nothing was seen or is not finite.

        release: let the sums go one by one, so that no more than one stands beside its average.
        """
        device: Any = self.metrics[0].device
        counter = SumMetric().to(device)
        counter.count += self.examples
        examples = max(1, int(counter.sums()["count"]))
        entries = {
            name: _moment(name, side, sums, may_be_empty=name in self._experts)
            for (name, (side, _)), sums in zip(
                self.streams.items(), _sums(self.metrics, release), strict=True
            )
        }
        magnitudes = {
            name: sums["absolute"] / sums["count"].clamp_min(1)
            for name, sums in zip(self.sources, _sums(self.magnitudes, release), strict=True)
        }
        gradients = {
            matrix.name: _gradient(matrix, sums, examples)
            for matrix, sums in zip(self.matrices, _sums(self.gradients, release), strict=False)
        }
        return Moments(entries, gradients=gradients, magnitudes=magnitudes)


@dataclass(frozen=True)
class _Chosen:
    """Which of a matrix's vectors count, and where in the batch of `width` columns they stand.

    rows, positions: indexes (n,) among its own vectors, and among all of the batch; None is all.
    """

    rows: Tensor | None
    positions: Tensor | None
    width: int

    def of(self, z: Tensor) -> Tensor:
        """The vectors that count (n, d), in float32."""
        flat = z.reshape(-1, z.shape[-1])
        return (flat if self.rows is None else flat.index_select(0, self.rows)).float()

    def columns(self, count: int) -> Tensor:
        """The column (n,) in which each stands."""
        if self.positions is None:
            return torch.arange(count) % self.width
        return self.positions % self.width

    def marked(self, positions: Tensor) -> Tensor:
        """What is said of them by one number for every position (B, T), as floats (n,)."""
        flat = positions.flatten()
        return (flat if self.positions is None else flat[self.positions]).float()


def _averaged(power: Tensor, columns: Tensor) -> Tensor:
    """The mean power (n,) of those that share a column (n,)."""
    columns = columns.to(power.device)
    if not len(power):
        return power
    total = power.new_zeros(int(columns.max()) + 1).index_add(0, columns, power)
    return (total / columns.bincount())[columns]


def _without_bias(y: Tensor, module: nn.Module) -> Tensor:
    bias = getattr(module, "bias", None)
    return y if bias is None else y - bias


def _sums(metrics: nn.ModuleList, release: bool) -> Iterator[dict[str, Tensor]]:
    for metric in metrics:
        if isinstance(metric, SumMetric):
            found = metric.sums()
            if release:
                metric.release()
            yield found


def _moment(name: str, side: Any, sums: dict[str, Tensor], may_be_empty: bool) -> Moment:
    if not int(sums["count"]) and not may_be_empty:
        raise ValueError("calibration saw no token; give the task calibration rows.")
    mass = sums["mass"].clamp_min(torch.finfo(torch.float32).tiny).float()
    moment = Moment(side, sums["second"] / mass, sums["total"] / mass, int(sums["count"]))
    if not torch.isfinite(moment.second).all():
        raise ValueError(
            f"the activations at {name} are not finite; load the model in another dtype "
            "(model.dtype=float32 or bfloat16)."
        )
    return moment


def _gradient(matrix: Matrix, sums: dict[str, Tensor], examples: int) -> Gradient:
    second, power = sums["second"] / examples, float(sums["power"]) / examples
    if not torch.isfinite(second).all():
        raise ValueError(
            f"the gradients at {matrix.name} are not finite; load the model in another dtype "
            "(model.dtype=float32 or bfloat16)."
        )
    return Gradient(gradient_side(matrix)[0], second, power, examples)
