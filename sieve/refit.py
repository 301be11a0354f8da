"""Refit: solve the chosen ranks again on the inputs that the pruned model really sees.

Upstream of a matrix other matrices are pruned too, so it reads x̃ where the dense one read x. Layer
by layer: min E‖W x − B x̃‖² over rank r (weighted as the projection weights it), whose optimum is
the projection of T = W E[x x̃ᵀ] E[x̃ x̃ᵀ]⁻¹ at the moment E[x̃ x̃ᵀ]. Two streams of hidden states, the
dense and the pruned, go through the blocks once, so the cost is a few forward passes in all.
A refitted matrix is kept only where its error falls on calibration rows it was not fitted on, and
all of them only where the whole model comes nearer to the dense one's answers there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sieve.artifacts import fingerprint
from sieve.backbone import forward
from sieve.bank import Bank, stored
from sieve.calibration import CalibrationModule, as_inputs
from sieve.divergence import divergences
from sieve.factorized import Switch
from sieve.genome import Genome
from sieve.matrices import Matrix, blocks_of, dense_weight
from sieve.moments import Moment, MomentSource
from sieve.progress import track
from sieve.projections import Factors, get_projection
from sieve.projections.joint import stacked

DAMPING = 1e-3  # of the mean eigenvalue of E[x̃ x̃ᵀ]: T stays at W where x̃ says little
HELD_OUT = 4  # one of so many batches


@dataclass(frozen=True)
class Refitted:
    """A bank whose factors hold for one genome, that genome, and the matrices that changed.

    before, after: mean KL(dense ‖ pruned) per answer token of the held-out batches, nats.
    """

    bank: Bank
    genome: Genome
    kept: tuple[str, ...]
    before: float
    after: float


@dataclass
class Paired:
    """Sums over tokens of one matrix's dense input x and pruned input x̃, weighted by w.

    inner: Σ w x̃ x̃ᵀ; cross: Σ w x x̃ᵀ; own: Σ w x xᵀ, (d_in, d_in) each; means likewise. Only an
    error asks for `own`: without it, it has no elements. lost: Σ w e x̃ᵀ (d_out, d_in) of what the
    residual stream has lost before the matrix writes to it, e (d_out,); None where it is left out.
    """

    inner: Tensor
    cross: Tensor
    own: Tensor
    inner_mean: Tensor
    own_mean: Tensor
    mass: float = 0.0
    lost: Tensor | None = None
    lost_mean: Tensor | None = None

    @classmethod
    def zeros(cls, size: int, device: torch.device, own: bool = True, d_out: int = 0) -> "Paired":
        """Nothing summed yet; d_out: of the matrix, where `lost` is to be summed."""
        shapes = ((size, size), (size, size), (size * own, size * own), (size,), (size,))
        a, b, c, d, e = (torch.zeros(shape, device=device) for shape in shapes)
        if not d_out:
            return cls(a, b, c, d, e)
        lost, lost_mean = torch.zeros(d_out, size, device=device), torch.zeros(d_out, device=device)
        return cls(a, b, c, d, e, 0.0, lost, lost_mean)

    def add(
        self, x: Tensor, pruned: Tensor, weight: Tensor | None, lost: Tensor | None = None
    ) -> None:
        """Add tokens x and x̃ (N, d_in), weights (N,) and what the stream lost (N, d_out)."""
        scaled = pruned if weight is None else pruned * weight[:, None]
        own = x if weight is None else x * weight[:, None]
        self.inner.addmm_(scaled.T, pruned)
        self.cross.addmm_(x.T, scaled)
        if len(self.own):
            self.own.addmm_(own.T, x)
        self.inner_mean += scaled.sum(0)
        self.own_mean += own.sum(0)
        if self.lost is not None and self.lost_mean is not None and lost is not None:
            self.lost.addmm_(lost.T, scaled)
            self.lost_mean += (lost if weight is None else lost * weight[:, None]).sum(0)
        self.mass += float(len(x) if weight is None else weight.sum())

    def scaled(self) -> "Paired":
        """Averages in place of sums, in float64."""
        mass = max(self.mass, torch.finfo(torch.float32).tiny)
        parts = (self.inner, self.cross, self.own, self.inner_mean, self.own_mean)
        a, b, c, d, e = (part.double() / mass for part in parts)
        lost, mean = (
            None if part is None else part.double() / mass for part in (self.lost, self.lost_mean)
        )
        return Paired(a, b, c, d, e, self.mass, lost, mean)


def refit(
    model: PreTrainedModel,
    bank: Bank,
    genome: Genome,
    moments: MomentSource,
    batches: Sequence[Any],
    weights: dict[str, list[Tensor]] | None = None,
    residual: bool = False,
) -> Refitted:
    """Solve a genome's ranks again, sequentially; the model comes back dense.

    moments: those the bank was fitted on, for the gradients; batches: calibration batches;
    weights: per matrix and batch how much each token counts (N,), `token_weights`, or None;
    residual: matrices that write to the residual stream also make up for what it has lost so far.
    Raises ValueError with fewer than two batches: what is kept is decided on held-out ones.
    """
    held_out = held_out_batches(len(batches))
    genome.check_bank(bank.fingerprint, bank.names)
    with Switch(model, bank, as_stored=False).to(genome) as switch:
        sequence = _Sequence(switch, bank, genome, moments, weights, held_out, residual)
        factors, kept = sequence.run(batches)
    key = fingerprint("refit", bank.fingerprint, genome.levels, sorted(kept), residual)
    refitted = replace(bank, factors=factors, fingerprint=key), replace(genome, bank=key)
    held = [_moved(batch, model.device) for batch in split_batches(batches)[1]]
    before, after = divergences(model, [(bank, genome), refitted], held)
    if after < before:
        return Refitted(*refitted, tuple(kept), before, after)
    return Refitted(bank, genome, (), before, before)


def held_out_batches(count: int) -> list[bool]:
    """Which of `count` batches are not fitted on: one of four, at least one.

    Raises ValueError with fewer than two batches.
    """
    if count < 2:
        raise ValueError(
            f"got {count} calibration batch, expected at least 2, since some are held out; raise "
            "calibration.tokens, or set projection.refit=false and projection.tune_steps=0."
        )
    held_out = [index % HELD_OUT == HELD_OUT - 1 for index in range(count)]
    return held_out if any(held_out) else [False] * (count - 1) + [True]


def split_batches(batches: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Batches to fit on, and those held out."""
    held_out = held_out_batches(len(batches))
    pairs = list(zip(batches, held_out, strict=True))
    return [b for b, held in pairs if not held], [b for b, held in pairs if held]


def token_weights(
    model: PreTrainedModel, matrices: list[Matrix], batches: Sequence[Any], **options: Any
) -> dict[str, list[Tensor]]:
    """‖g‖² of every token that counts, per matrix and batch: (N,) each, on the CPU.

    The output head, which sees answers alone, is left out.

    options: `answers` and `seed` of `CalibrationModule`.
    """
    matrices = [matrix for matrix in matrices if matrix.layer is not None]
    module = CalibrationModule(model, matrices, weighting="gradient", **options)
    module.collector.powers = {matrix.name: [] for matrix in matrices}
    for batch in track(batches, "Weighting tokens"):
        module.predict_step(_moved(batch, model.device))
    return module.collector.powers


class _Stop(Exception):
    """Ends a block's forward pass once what was looked for has been seen."""


class _Sequence:
    """Two streams of hidden states on their way through the blocks."""

    def __init__(
        self,
        switch: Switch,
        bank: Bank,
        genome: Genome,
        moments: MomentSource,
        weights: dict[str, list[Tensor]] | None,
        held_out: list[bool],
        residual: bool = False,
    ) -> None:
        self.switch, self.bank, self.moments = switch, bank, moments
        self.model = switch.model
        self.ranks = bank.ranks(genome)
        self.weights, self.held_out, self.residual = weights, held_out, residual
        self.lost: list[Tensor] = []  # (N, hidden) per batch: dense minus pruned residual stream
        self.project = get_projection(bank.projection)
        self.factors, self.kept = dict(bank.factors), list[str]()

    @torch.no_grad()
    def run(self, batches: Sequence[Any]) -> tuple[dict[str, Any], list[str]]:
        """Factors of all matrices, and the names of those that changed."""
        blocks = blocks_of(self.bank.matrices)
        calls = [self._calls(batch, list(blocks)) for batch in batches]
        dense = [call[0].hidden for call in calls]
        pruned = list(dense)
        masks = [as_inputs(batch).get("attention_mask") for batch in batches]
        self.masks = [None if m is None else m.flatten().bool() for m in masks]
        for index, (path, matrices) in enumerate(track(list(blocks.items()), "Refitting")):
            block = self.model.get_submodule(path)
            steps = [call[index] for call in calls]
            sources = dict.fromkeys(matrix.source for matrix in matrices)
            writers = self._writers(block, matrices, steps[0], dense[0]) if self.residual else []
            self.lost = [
                self._flat(d - p, i) for i, (d, p) in enumerate(zip(dense, pruned, strict=True))
            ]  # fmt: skip
            with self._dense(matrices):
                seen, dense = self._dense_inputs(block, list(sources), steps, dense)
            for source in sources:
                group = [m for m in matrices if m.source == source]
                self._refit_group(block, group, steps, seen.pop(source), pruned, writers)
            pruned = [step.run(block, h) for step, h in zip(steps, pruned, strict=True)]
        return self.factors, self.kept

    def _refit_group(
        self,
        block: nn.Module,
        group: list[Matrix],
        steps: list["_Call"],
        dense: list[Tensor],
        pruned: list[Tensor],
        writers: list[str],
    ) -> None:
        """Refit the matrices that read one input; dense: what they read in the dense model."""
        writes = [matrix.name for matrix in group if matrix.name in writers]
        reader = group[0].name
        group = self._joined(
            [m for m in group if self.ranks[m.name] is not None or m.name in writers], group
        )
        if not group:
            return
        device, size = self.model.device, group[0].d_in
        names = [m.name for m in group] if self.weights else [group[0].source]
        heights = {m.name: m.d_out if m.name in writers else 0 for m in group}
        sums = {
            n: tuple(Paired.zeros(size, device, own, heights.get(n, 0)) for own in (False, True))
            for n in names
        }
        read: list[Tensor] = []
        for index, step in enumerate(steps):
            x = dense[index]
            seen = self._input(reader, step, block, pruned[index], index)
            for name, (fitted, held) in sums.items():
                weight = self._weight(name, index)
                pair = held if self.held_out[index] else fitted
                pair.add(x, seen, weight, self.lost[index] if heights.get(name) else None)
            if writes:
                read.append(seen)
        for matrix in group:
            if self.ranks[matrix.name] is not None:
                fitted, held = sums[matrix.name if self.weights else names[0]]
                self._refit_matrix(matrix, fitted.scaled(), held.scaled())
        for name in writes:
            before, after = self.switch.dense[name], self.model.get_submodule(name)
            for index, pruned_input in enumerate(read):
                x = dense[index].to(self.model.dtype)
                lost = before(x) - after(pruned_input.to(self.model.dtype))
                self.lost[index] = self.lost[index] + lost.float()

    def _joined(self, group: list[Matrix], readers: list[Matrix]) -> list[Matrix]:
        """The siblings as the one matrix they are where they share factors, else `group`."""
        source = readers[0].source
        found = [g for g in self.bank.groups if g.source == source]
        return found if found and self.ranks[found[0].name] is not None else group

    def _weight(self, name: str, index: int) -> Tensor | None:
        """How much each token of a batch counts for a matrix, or for a group in all."""
        if self.weights is None:
            return None
        members = next((g.members for g in self.bank.groups if g.name == name), (name,))
        parts = [self.weights[member][index] for member in members]
        return torch.stack(parts).sum(0).to(self.model.device)

    def _given(self, matrix: Matrix) -> tuple[Tensor, Moment]:
        """Weight in float64 and moment of a matrix, or of a group as one."""
        if not matrix.members:
            return dense_weight(self.switch.dense[matrix.name]).double(), self.moments.of(matrix)
        members = [m for m in self.bank.matrices if m.name in matrix.members]
        weights = [dense_weight(self.switch.dense[m.name]) for m in members]
        return stacked(weights, [self.moments.of(m) for m in members])

    def _refit_matrix(self, matrix: Matrix, fitted: Paired, held: Paired) -> None:
        """Solve one matrix again, and keep it where its held-out error falls."""
        rank = self.ranks[matrix.name]
        assert rank is not None
        weight, moment = self._given(matrix)
        solved = solve(weight, moment, fitted, self.project, self.bank.sizing.fits_bias)
        new = stored(solved.cut(rank), self.bank.dtype, matrix.name)
        old = self.factors[matrix.name]
        before, after = (held_error(weight, moment, held, f, rank) for f in (old, new))
        if after < before:
            self.factors[matrix.name] = new
            self.kept.append(matrix.name)
            self.switch.replace(matrix.name, new, rank)

    def _writers(
        self, block: nn.Module, matrices: list[Matrix], step: "_Call", hidden: Tensor
    ) -> list[str]:
        """Those whose output is added to the residual stream as it is, in order.

        Found by trial: one matrix's output is replaced by noise and the others' by nothing.
        """
        names = [m.name for m in matrices if m.d_out == hidden.shape[-1]]
        noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
        noise = noise.to(hidden)
        writers = []
        with self._dense(matrices):
            for name in names:
                handles = [
                    self.model.get_submodule(other).register_forward_hook(
                        lambda _m, _a, y, own=(other == name): noise if own else y * 0
                    )
                    for other in names
                ]
                try:
                    wrote = step.run(block, hidden) - hidden
                finally:
                    for handle in handles:
                        handle.remove()
                if torch.allclose(wrote.float(), noise.float(), rtol=0.05, atol=0.05):
                    writers.append(name)
        return writers

    def _dense(self, matrices: list[Matrix]) -> Any:
        """The block's dense matrices for the duration of a with statement."""
        return self.switch.lifted([matrix.name for matrix in matrices])

    def _dense_inputs(
        self, block: nn.Module, sources: list[str], steps: list["_Call"], hidden: list[Tensor]
    ) -> tuple[dict[str, list[Tensor]], list[Tensor]]:
        """What each source reads in the dense block, per batch (N, d_in), and its outputs."""
        seen: dict[str, list[Tensor]] = {source: [] for source in sources}
        handles, outputs = [], list[Tensor]()
        for source in sources:

            def hook(_module: nn.Module, args: Any, kwargs: Any, source: str = source) -> None:
                seen[source].append(self._flat([*args, *kwargs.values()][0], len(outputs)))

            module = self.model.get_submodule(source)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        try:
            for step, h in zip(steps, hidden, strict=True):
                outputs.append(step.run(block, h))
        finally:
            for handle in handles:
                handle.remove()
        return seen, outputs

    def _flat(self, x: Tensor, index: int) -> Tensor:
        """The vectors of a batch that are no padding (N, d_in), in float32."""
        flat, mask = x.reshape(-1, x.shape[-1]).float(), self.masks[index]
        return flat if mask is None else flat[mask.to(flat.device)]

    def _input(
        self, name: str, step: "_Call", block: nn.Module, hidden: Tensor, index: int
    ) -> Tensor:
        """What a matrix reads (N, d_in) when the block reads `hidden`; padding left out."""
        found: list[Tensor] = []

        def hook(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            found.append([*args, *kwargs.values()][0])
            raise _Stop

        handle = self.model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
        try:
            step.run(block, hidden)
        except _Stop:
            pass
        finally:
            handle.remove()
        return self._flat(found[0], index)

    def _calls(self, batch: Any, paths: list[str]) -> list["_Call"]:
        """How the model calls each block on a batch; only the first one's hidden state is held."""
        calls: list[_Call] = []

        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            first = hidden if not calls else torch.empty(0)
            rest = {k: v for k, v in kwargs.items() if k != "hidden_states"}
            calls.append(_Call(first, args[1:], rest))

        handles = [
            self.model.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True)
            for path in paths
        ]
        try:
            forward(self.model, as_inputs(_moved(batch, self.model.device)), keep=1)
        finally:
            for handle in handles:
                handle.remove()
        return calls


@dataclass
class _Call:
    """The arguments of a block beside its hidden state."""

    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, block: Callable[..., Any], hidden: Tensor) -> Tensor:
        """The block's next hidden state."""
        out = block(hidden, *self.args, **self.kwargs)
        return out[0] if isinstance(out, tuple) else out


def solve(
    weight: Tensor,
    moment: Moment,
    pair: Paired,
    project: Callable[[Tensor, Moment], Factors],
    centred: bool = False,
) -> Factors:
    """Factors, nested, of the best map from x̃ to W x under a projection's own weighting.

    weight: W (d_out, d_in) in float64; moment: of the dense model, for its gradient; pair: averages
    over the tokens to fit; centred: whether the projection fits a bias.
    T = W K with K = I + (E[x x̃ᵀ] − E[x̃ x̃ᵀ]) E[x̃ x̃ᵀ]⁻¹, damped; with e lost by the residual stream
    T + E[e x̃ᵀ] E[x̃ x̃ᵀ]⁻¹, but for matrices whose gradients are of the input side.
    """
    inner, cross = pair.inner, pair.cross
    if centred:
        inner = inner - torch.outer(pair.inner_mean, pair.inner_mean)
        cross = cross - torch.outer(pair.own_mean, pair.inner_mean)
    eye = torch.eye(len(inner), dtype=inner.dtype, device=inner.device)
    scale = inner.diagonal().mean().clamp_min(torch.finfo(inner.dtype).tiny)
    mix = eye + torch.linalg.solve(inner + DAMPING * scale * eye, (cross - inner).T).T
    gradient, target, mean = moment.gradient, weight @ mix, weight @ pair.own_mean
    if gradient is not None and gradient.side == "input":
        gradient = replace(gradient, second=mix.T @ gradient.second.double() @ mix)
    elif pair.lost is not None and pair.lost_mean is not None:
        lost = pair.lost
        if centred:
            lost = lost - torch.outer(pair.lost_mean, pair.inner_mean)
        target = target + torch.linalg.solve(inner + DAMPING * scale * eye, lost.T).T
        mean = mean + pair.lost_mean
    seen = replace(moment, side="input", second=pair.inner, mean=pair.inner_mean, gradient=gradient)
    return replace(project(target, seen), mean=mean)


def held_error(weight: Tensor, moment: Moment, pair: Paired, factors: Factors, rank: int) -> float:
    """E‖W x − B x̃ − b‖² in the metric of the moment's gradient, if it has one.

    From averages alone. With gradients of the input side, WᵀHW, errors are W s and s is taken;
    else what the residual stream has lost is a part of the target, up to a constant of the error.
    """
    b = factors.u[:, :rank].double() @ factors.v[:rank].double()
    bias = factors.bias(rank)
    offset = torch.zeros(len(weight), dtype=b.dtype) if bias is None else bias.double()
    target, metric = weight, None
    if moment.gradient is not None:
        metric = moment.gradient.second.double()
        if moment.gradient.side == "input":
            solved = torch.linalg.lstsq(weight, torch.cat([b, offset[:, None]], 1)).solution
            b, offset = solved[:, :-1], solved[:, -1]
            target = torch.eye(weight.shape[1], dtype=b.dtype)
    error = target @ pair.own @ target.T + b @ pair.inner @ b.T
    across = target @ pair.cross @ b.T
    mean = target @ pair.own_mean - b @ pair.inner_mean
    error = error - across - across.T + torch.outer(offset, offset)
    error = error - torch.outer(offset, mean) - torch.outer(mean, offset)
    if pair.lost is not None and pair.lost_mean is not None and len(target) == len(pair.lost):
        lost = pair.lost @ b.T + torch.outer(pair.lost_mean, offset)
        error = error - lost - lost.T
    return float(error.trace() if metric is None else (error * metric).sum())


def _moved(batch: Any, device: torch.device) -> Any:
    if hasattr(batch, "to"):
        return batch.to(device)
    return {name: tensor.to(device) for name, tensor in batch.items()}
