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

from sieve.bank.bank import Bank, stored
from sieve.bank.genome import Genome
from sieve.bank.switch import Switch
from sieve.calibration.calibration import CalibrationModule
from sieve.data.batches import as_inputs, held_out_batches, split_batches
from sieve.distributed.sharding import whole_layer, whole_weight
from sieve.evaluation.divergence import divergences
from sieve.model.backbone import forward
from sieve.model.matrices import Matrix, blocks_of
from sieve.projections import get_projection
from sieve.projections.joint import stacked
from sieve.projections.moments import Moment, MomentSource
from sieve.refit.paired import Paired, held_error, solve
from sieve.runtime.artifacts import fingerprint
from sieve.runtime.progress import track


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


def token_weights(
    model: PreTrainedModel,
    matrices: list[Matrix],
    batches: Sequence[Any],
    weighting: str = "gradient",
    **options: Any,
) -> dict[str, list[Tensor]]:
    """‖g‖² of every token that counts, per matrix and batch: (N,) each, on the CPU.

    weighting: "gradient", or "position" for its mean over a batch's rows at one column.
    The output head, which sees answers alone, is left out.
    options: `answers` and `seed` of `CalibrationModule`.
    """
    matrices = [matrix for matrix in matrices if matrix.layer is not None]
    module = CalibrationModule(model, matrices, weighting=weighting, **options)
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
            # Not experts: in the pruned model other tokens may reach them, which pair with none.
            sources = dict.fromkeys(m.source for m in matrices if not m.expert)
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
            before = whole_layer(self.switch.dense[name])
            after = whole_layer(self.model.get_submodule(name))
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
            return whole_weight(self.switch.dense[matrix.name]).double(), self.moments.of(matrix)
        members = [m for m in self.bank.matrices if m.name in matrix.members]
        weights = [whole_weight(self.switch.dense[m.name]) for m in members]
        return stacked(weights, [self.moments.of(m) for m in members])

    def _refit_matrix(self, matrix: Matrix, fitted: Paired, held: Paired) -> None:
        """Solve one matrix again, and keep it where its held-out error falls."""
        rank = self.ranks[matrix.name]
        assert rank is not None
        weight, moment = self._given(matrix)
        weight, moment = weight.to(fitted.inner.device), moment.to(fitted.inner.device)
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
        wide = [m for m in matrices if m.d_out == hidden.shape[-1]]
        names = [m.name for m in wide if not m.expert]
        noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
        noise = noise.to(hidden)
        writers = []
        with self._dense(matrices):
            for name in names:
                handles = [
                    self.model.get_submodule(other.name).register_forward_hook(
                        lambda _m, _a, y, own=(other.name == name): noise if own else y * 0
                    )
                    for other in wide
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


def _moved(batch: Any, device: torch.device) -> Any:
    return batch.to(device) if hasattr(batch, "to") else {k: t.to(device) for k, t in batch.items()}
