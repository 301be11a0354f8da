"""Hooks on a model's matrices that sum second moments during forward and backward passes.

Each distinct input has a metric, or each output if it is narrower. If the projection needs
gradients, each matrix has another metric for the gradient of the loss at its output.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
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
    Side,
    gradient_side,
    plan_streams,
)


class MomentCollector(nn.Module):
    """The metrics of a model's matrices, and the hooks that feed them.

    Args:
        model: the model.
        matrices: whose moments are collected.
        needs: the statistics to collect.
        weighting: the weight of a token in the moments of activations: "none" weights all alike,
            "answer" only the positions that predict an answer token, "gradient" by ‖g‖² of the
            gradient g at the matrix's output, "position" by the mean of ‖g‖² over the batch's rows
            at each column.
        dense: the dense layers of a model that is already pruned; moments are then of the pruned
            inputs, and of the dense matrices' outputs for them.
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
        # Modules, not weights: a sharded model has whole weights only during a pass.
        self._dense = dict(dense or self._modules_of)
        self._model = [model]  # In a list, so that it does not become a submodule.
        self._passes = 0
        self._mask: Tensor | None = None  # (B * T,) positions without padding; None is all
        self._answers: Tensor | None = None  # (B, T) positions that predict an answer token
        self._columns, self._copies = 1, 1  # T, and the rows that each position stands for
        self.examples = 0
        self.scale = 1.0  # the loss is multiplied by it
        # By matrix and pass: ‖g‖² (tokens,). If not None, nothing else is collected.
        self.powers: dict[str, dict[int, Tensor]] | None = None
        self.largest: float | None = None  # not None: find only the largest gradient

    @property
    def blocks(self) -> list[nn.Module]:
        """The decoder blocks that hold the matrices, in order."""
        return [self._model[0].get_submodule(path) for path in blocks_of(self.matrices)]

    @property
    def reads_head(self) -> bool:
        """Whether the output head, which reads only the last positions, is among the matrices."""
        return any(matrix.kind == "head" for matrix in self.matrices)

    @contextmanager
    def watching(self, examples: int) -> Iterator[None]:
        """Collect from the passes inside the block; `begin` announces each of them.

        examples: rows to count; 0 for a trial.
        """
        self.examples += examples
        with ExitStack() as stack:
            for index, matrix in enumerate(self.matrices):
                module = self._modules_of[matrix.name]
                before = module.register_forward_pre_hook(self._pre_hook(index), with_kwargs=True)
                after = module.register_forward_hook(self._hook(index), with_kwargs=True)
                stack.enter_context(before)
                stack.enter_context(after)
            yield

    def begin(self, mask: Tensor | None, answers: Tensor | None = None, copies: int = 1) -> None:
        """Say what the next pass reads.

        Args:
            mask: (B, T) positions without padding; None is all.
            answers: (B, T) bool, the positions that predict an answer token.
            copies: rows that each position stands for; the moments of activations count all.
        """
        self._passes += 1
        self._mask = None if mask is None or bool(mask.all()) else mask.flatten().bool()
        self._answers, self._copies = answers, copies
        shape = next((t.shape for t in (mask, answers) if t is not None), (1, 1))
        self._columns = shape[1]

    def _pre_hook(self, index: int) -> Callable[..., object]:
        """Give a matrix its own view of a shared input, whose gradient is then Wᵀg."""
        matrix = self.matrices[index]
        wanted = bool(len(self.gradients)) and gradient_side(matrix)[0] == "input"

        def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> object:
            if not wanted or isinstance(module, FactorizedLinear):
                return None
            first, *others = [*args, *kwargs.values()]
            if not first.requires_grad:
                return None
            x, chosen = first.view_as(first), self._choose(matrix, first)
            x.register_hook(lambda g: self._take_input_gradient(index, g, chosen))
            values = [x, *others]
            return tuple(values[: len(args)]), dict(zip(kwargs, values[len(args) :], strict=True))

        return hook

    def _hook(self, index: int) -> Callable[..., None]:
        """The forward hook of a matrix: it sums now, or when the gradient of its output arrives."""
        matrix = self.matrices[index]
        stream = matrix.name if matrix.name in self.streams else matrix.source
        owns = stream == matrix.name  # The matrix named as the source sums a shared input.
        metric = _metric(self.metrics, list(self.streams).index(stream))
        side = self.streams[stream][0]

        def hook(
            module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], y: Tensor
        ) -> None:
            if self.needs_gradient and not y.requires_grad:
                return  # A checkpointed block runs first without gradients, then again.
            x = [*args, *kwargs.values()][0].detach()
            chosen = self._choose(matrix, x)
            if matrix.name in self.sources and self.largest is None:
                magnitude = _metric(self.magnitudes, self.sources.index(matrix.name))
                magnitude.update(chosen.of(x), chosen.copies)
            z = x
            if side == "output" and isinstance(module, FactorizedLinear):
                # The output of the dense matrix for the pruned input.
                z = x @ dense_weight(self._dense[matrix.name]).T
            elif side == "output":
                bias = getattr(module, "bias", None)
                z = y.detach() if bias is None else y.detach() - bias
            if owns and not self._by_gradient and self.largest is None:
                metric.update(chosen.of(z), self._weight(matrix, chosen))
            if self.powers is not None and self.largest is None:
                # Some prefix tokens get no gradient.
                self.powers[matrix.name][chosen.number] = torch.zeros(len(chosen.of(y)))
            if self.needs_gradient:
                weighted = z if self._by_gradient else None
                y.register_hook(lambda g: self._take_gradient(index, metric, weighted, g, chosen))

        return hook

    def _weight(self, matrix: Matrix, chosen: "_Chosen") -> Tensor | int | None:
        """The weight of each chosen vector if no gradient decides it; None means 1."""
        if self.weighting != "answer" or matrix.kind == "head" or self._answers is None:
            return None if chosen.copies == 1 else chosen.copies
        marks = self._answers.flatten()
        return (marks if chosen.positions is None else marks[chosen.positions]).float()

    def _choose(self, matrix: Matrix, z: Tensor) -> "_Chosen":
        """The vectors of z to sum: not padding; the head's at answers, an expert's tokens."""
        chosen = partial(_Chosen, number=self._passes, copies=self._copies)
        if matrix.kind == "head" and self._answers is not None:
            rows = self._answers[:, -z.shape[1] :].flatten().nonzero().squeeze(1)
            return chosen(rows, rows, z.shape[1])
        # An expert reads only some of the tokens.
        positions = self._experts[matrix.name].tokens if matrix.expert else None
        mask = self._mask
        if mask is not None and positions is not None:
            mask = mask[positions]
        if mask is None:
            return chosen(None, positions, self._columns)
        counted = mask.nonzero().squeeze(1)
        positions = counted if positions is None else positions[counted]
        return chosen(counted, positions, self._columns)

    def _take_gradient(
        self, index: int, metric: SumMetric, z: Tensor | None, g: Tensor, chosen: "_Chosen"
    ) -> None:
        """Sum the moments of a gradient g (B, T, d_out) of a matrix's output."""
        g, matrix = g.detach(), self.matrices[index]
        if self.largest is not None:
            self.largest = max(self.largest, float(g.abs().max()))
            return
        g = self._unscaled(chosen.of(g))
        power = g.float().square().sum(1)  # (tokens,)
        if self.weighting == "position":
            power = _averaged(power, chosen.columns(len(power)))
        if self.powers is not None:
            self.powers[matrix.name][chosen.number] = power.cpu()
            return
        if z is not None:
            metric.update(chosen.of(z), power)
        if len(self.gradients):
            own = _metric(self.gradients, index)
            own.power += power.sum(dtype=torch.float64)
            if gradient_side(matrix)[0] == "output":
                own.update(g)
            elif isinstance(self._modules_of[matrix.name], FactorizedLinear):
                own.update(g.float() @ dense_weight(self._dense[matrix.name]).float())

    def _take_input_gradient(self, index: int, g: Tensor, chosen: "_Chosen") -> None:
        """Sum the moments of a gradient Wᵀg (B, T, d_in) of a matrix's input."""
        if self.largest is None and self.powers is None:
            own = _metric(self.gradients, index)
            own.update(self._unscaled(chosen.of(g.detach())))

    def _unscaled(self, g: Tensor) -> Tensor:
        return g if self.scale == 1 else g.float() / self.scale

    def moments(self, release: bool = False) -> Moments:
        """All moments, reduced over ranks; ValueError if there are none, or not all are finite.

        release: free each sum once its average exists, to save memory.
        """
        counter = SumMetric().to(_metric(self.metrics, 0).device)
        counter.count += self.examples
        examples = max(1, int(counter.sums()["count"]))
        entries = {
            name: _moment(name, side, sums, may_be_empty=name in self._experts)
            for (name, (side, _)), sums in zip(
                self.streams.items(), _sums(self.metrics, release), strict=True
            )
        }
        magnitudes = {
            name: (sums["absolute"] / sums["mass"].clamp_min(1)).float()
            for name, sums in zip(self.sources, _sums(self.magnitudes, release), strict=True)
        }
        gradients = {
            matrix.name: _gradient(matrix, sums, examples)
            for matrix, sums in zip(self.matrices, _sums(self.gradients, release), strict=False)
        }
        return Moments(entries, gradients=gradients, magnitudes=magnitudes)


@dataclass(frozen=True)
class _Chosen:
    """The n vectors of a matrix to sum, and their positions in the batch."""

    rows: Tensor | None  # (n,) indexes into the matrix's own vectors; None is all
    positions: Tensor | None  # (n,) indexes into the batch's positions (B * T,); None is all
    width: int  # columns T of the batch
    number: int  # of the pass
    copies: int  # rows that each vector stands for

    def of(self, z: Tensor) -> Tensor:
        """The chosen vectors (n, d) of z."""
        flat = z.reshape(-1, z.shape[-1])
        return flat if self.rows is None else flat.index_select(0, self.rows)

    def columns(self, count: int) -> Tensor:
        """The column (n,) of each vector in the batch."""
        if self.positions is None:
            return torch.arange(count) % self.width
        return self.positions % self.width


def _averaged(power: Tensor, columns: Tensor) -> Tensor:
    """The mean power (n,) over all vectors in the same column (n,)."""
    columns = columns.to(power.device)
    if not len(power):
        return power
    total = power.new_zeros(int(columns.max()) + 1).index_add(0, columns, power)
    return (total / columns.bincount())[columns]


def _metric(metrics: nn.ModuleList, index: int) -> SumMetric:
    metric = metrics[index]
    assert isinstance(metric, SumMetric)
    return metric


def _sums(metrics: nn.ModuleList, release: bool) -> Iterator[dict[str, Tensor]]:
    for metric in metrics:
        if isinstance(metric, SumMetric):
            sums = metric.sums()
            if release:
                metric.release()
            yield sums


def _moment(name: str, side: Side, sums: dict[str, Tensor], may_be_empty: bool) -> Moment:
    if not int(sums["count"]) and not may_be_empty:
        raise ValueError("calibration saw no tokens; give the task calibration rows.")
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
