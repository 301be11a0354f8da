"""Refit: solve the chosen ranks again on the inputs that the pruned model sees.

Matrices before a pruned matrix are pruned too, so it reads x̃ where the dense one reads x. Block by
block, every matrix is solved again for min E‖W x − B x̃‖² over maps B of rank r (`paired.py`). The
hidden states of the dense and of the pruned model go through the blocks once, so a refit costs a
few forward passes. A refitted matrix is kept only if its error falls on held-out calibration
batches, and the refit as a whole only if the model's divergence from the dense one falls there.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sieve.bank.bank import Bank, BankFactors
from sieve.bank.files import header_of, read_bank, write_bank
from sieve.bank.genome import Genome
from sieve.bank.solver import stored
from sieve.bank.switch import Switch
from sieve.data.batches import held_out_batches, on_device, split_batches
from sieve.distributed.sharding import whole_layer, whole_weight
from sieve.evaluation.divergence import divergences
from sieve.model.matrices import Matrix, blocks_of
from sieve.projections import get_projection
from sieve.projections.joint import stacked
from sieve.projections.moments import Moment, MomentSource
from sieve.refit.blocks import Args, BatchCall, Kwargs, Passes, block_calls, stream_writers
from sieve.refit.paired import Paired, held_out_error, solve
from sieve.runtime.artifacts import fingerprint
from sieve.runtime.progress import track
from sieve.streaming.offloaded import in_memory


@dataclass(frozen=True)
class Refitted:
    """A bank refitted for a genome, the genome, and the names of the matrices that changed."""

    bank: Bank
    genome: Genome
    kept: tuple[str, ...]
    before: float  # mean KL(dense ‖ pruned) per answer token of the held-out batches, nats
    after: float


def refit(
    model: PreTrainedModel,
    bank: Bank,
    genome: Genome,
    moments: MomentSource,
    batches: Sequence[object],
    weights: dict[str, list[Tensor]] | None = None,
    residual: bool = False,
    folder: Path | None = None,
) -> Refitted:
    """Solve the matrices of a genome again, block by block; leaves the model dense.

    Args:
        model: the dense model.
        bank: its factors are the start; a matrix keeps them if refitting does worse.
        genome: its ranks do not change.
        moments: what the bank was fitted on; the refit uses their gradients.
        batches: calibration batches, of which one in four is held out.
        weights: from `token_weights`, the weight of each token (N,) by matrix and batch; None
            weights all alike.
        residual: let matrices that write to the residual stream also restore what it has lost.
        folder: where to write the new factors of each block, to be read from there while they are
            used. None keeps them in memory.

    Raises:
        ValueError: with fewer than two batches.
    """
    held_out = held_out_batches(len(batches))
    genome.check_bank(bank.fingerprint, bank.names)
    with Switch(model, bank, as_stored=False).to(genome) as switch:
        sequence = _Sequence(switch, genome, moments, weights, held_out, residual, folder)
        factors, kept = sequence.run(batches)
    del switch, sequence  # and their factors on the model's device
    key = fingerprint("refit", bank.fingerprint, genome.levels, sorted(kept), residual)
    refitted = replace(bank, factors=factors, fingerprint=key), replace(genome, bank=key)
    others = [on_device(batch, model.device) for batch in split_batches(batches)[1]]
    contexts = [
        partial(Switch(model, bank_of_genome, as_stored=False).to, pruned)
        for bank_of_genome, pruned in ((bank, genome), refitted)
    ]
    before, after = divergences(model, contexts, others)
    if after < before:
        return Refitted(*refitted, tuple(kept), before, after)
    return Refitted(bank, genome, (), before, before)


class _Sequence:
    """Refits one genome while dense and pruned hidden states go through the blocks."""

    def __init__(
        self,
        switch: Switch,
        genome: Genome,
        moments: MomentSource,
        weights: dict[str, list[Tensor]] | None,
        held_out: list[bool],
        residual: bool = False,
        folder: Path | None = None,
    ) -> None:
        self.switch, self.bank, self.model = switch, switch.bank, switch.model
        self.moments = moments
        unneeded = self.bank.unneeded(genome)
        writers = {m.feeds or m.name for m in self.bank.matrices if m.name in unneeded}
        # A removed writer and what feeds it read nothing. None leaves them as they are.
        self.ranks = self.bank.ranks(genome) | dict.fromkeys(unneeded | writers)
        # An MLP that has lost neurons stays as it is, too: its matrices have no rank.
        used = [group for group in self.bank.groups if group.neurons and self.ranks[group.name]]
        self.narrow = {name for group in used for name in group.members}
        self.embedding = [
            m.name
            for m in self.bank.matrices
            if m.kind == "embedding" and self.ranks[m.name] is not None
        ]
        self.weights, self.held_out = weights, held_out
        self.residual, self.folder = residual, folder
        self.lost: list[Tensor] = []  # (N, hidden) per batch: dense minus pruned residual stream
        self.masks: list[list[Tensor | None]] = []  # (B * T,) per batch and pass: no padding
        self.copies: list[Tensor | None] = []  # (N,) per batch: rows that a token stands for
        self.waiting = switch.device  # It keeps inputs and sums until they are used.
        self.project = get_projection(self.bank.projection)
        self.factors, self.kept = dict(self.bank.factors), list[str]()

    @torch.no_grad()
    def run(self, batches: Sequence[object]) -> tuple[dict[str, BankFactors], list[str]]:
        """The factors of all matrices, and the names of the matrices that changed."""
        blocks = blocks_of(self.bank.matrices)
        calls, dense = [], list[Passes]()
        with self.switch.lifted(self.embedding):
            for batch in batches:
                passes = block_calls(self.model, on_device(batch, self.model.device), list(blocks))
                calls.append(passes.calls)
                dense.append(passes.hidden)
                self.masks.append(passes.masks)
                self.copies.append(passes.copies)
        pruned = list(dense)
        if self.embedding:
            moved = [on_device(batch, self.model.device) for batch in batches]
            pruned = [block_calls(self.model, b, list(blocks)).hidden for b in moved]
        for index, (path, matrices) in enumerate(
            track(list(blocks.items()), "Refitting", unit="blocks")
        ):
            block = self.model.get_submodule(path)
            calls_of_block = [call[index] for call in calls]
            # Not experts: the pruned model may route other tokens to them.
            sources = dict.fromkeys(m.source for m in matrices if not m.expert)
            if self.residual:
                streams = enumerate(zip(dense, pruned, strict=True))
                self.lost = [
                    self._flat(d, i).float() - self._flat(p, i).float() for i, (d, p) in streams
                ]
            writers = []
            with self.switch.lifted([matrix.name for matrix in matrices]), in_memory(block):
                if self.residual:
                    whole = [m for m in matrices if m.name not in self.narrow]
                    writers = stream_writers(self.model, block, whole, calls_of_block[0], dense[0])
                inputs, dense = self._dense_inputs(block, list(sources), calls_of_block, dense)
            before = len(self.kept)
            with in_memory(block):
                for source in sources:
                    group, own = [m for m in matrices if m.source == source], inputs.pop(source)
                    self._refit_group(block, group, calls_of_block, own, pruned, writers)
                pruned = [c.run(block, h) for c, h in zip(calls_of_block, pruned, strict=True)]
            self._set_aside(path, self.kept[before:])
        return self.factors, self.kept

    def _set_aside(self, block: str, names: list[str]) -> None:
        """Write the new factors of a block to a file of the folder, if there is one, and map it."""
        if self.folder is None or not names:
            return
        bank, path = self.bank, self.folder / f"{block}.safetensors"
        genes = [gene for gene in bank.genes if gene.name in names]
        header = header_of(genes, bank.sizing, bank.projection, bank.dtype, bank.fingerprint)
        write_bank(path, {name: self.factors[name] for name in names}, header)
        for name, stored_factors in read_bank(path)[2].items():
            rank = self.ranks[name]
            assert rank is not None
            self.factors[name] = stored_factors
            self.switch.replace(name, stored_factors, rank)

    def _refit_group(
        self,
        block: nn.Module,
        readers: list[Matrix],
        calls: list[BatchCall],
        dense: list[Tensor],
        pruned: list[Passes],
        writers: list[str],
    ) -> None:
        """Refit the matrices that read one input.

        Args:
            block: the decoder block that they are in.
            readers: the matrices.
            calls: the arguments of the block, by batch.
            dense: the input that they read in the dense model (N, d_in), by batch.
            pruned: the hidden states that the pruned block reads, by batch.
            writers: the matrices of the block that write to the residual stream.
        """
        writing = [matrix.name for matrix in readers if matrix.name in writers]
        group = [m for m in readers if self.ranks[m.name] is not None or m.name in writers]
        group = self._joined(group, readers)
        if not group:
            return
        names = [m.name for m in group] if self.weights else [group[0].source]
        heights = {m.name: m.d_out for m in group if m.name in writers}
        reader = self.model.get_submodule(readers[0].name)
        inputs: list[Tensor] = []  # of the writing matrices in the pruned model

        def pruned_inputs() -> Iterator[Tensor]:
            for index, call in enumerate(calls):
                x = self._flat(call.input_of(reader, block, pruned[index]), index)
                if writing:
                    inputs.append(x.to(self.waiting))
                yield x

        with in_memory(block):  # The factors that are new since the block was read, too.
            sums = self._sums(names, heights, dense, pruned_inputs())
        for index, matrix in enumerate(group):
            name, more = names[index if self.weights else 0], matrix is not group[-1]
            again = more and not self.weights  # The next matrix has the same sums.
            pairs = [replace(pair) for pair in sums[name]] if again else sums.pop(name)
            if self.ranks[matrix.name] is not None:
                self._refit_matrix(matrix, pairs)
        if writing:
            with in_memory(block):
                self._restore(writing, dense, inputs)

    def _sums(
        self,
        names: list[str],
        heights: dict[str, int],
        dense: list[Tensor],
        pruned: Iterable[Tensor],
    ) -> dict[str, list[Paired]]:
        """The sums of the batches to fit, on the device, and of the others, where they wait.

        Args:
            names: of the matrices, or of their common input if tokens have no weights.
            heights: d_out of matrices that restore the residual stream.
            dense, pruned: the inputs (N, d_in) in the two models, by batch.
        """
        zeros = partial(Paired.zeros, dense[0].shape[1], device := self.model.device)
        sums = {n: [zeros(heights.get(n, 0)), zeros(heights.get(n, 0))] for n in names}
        for index, (own, x) in enumerate(zip(dense, pruned, strict=True)):
            own = own.to(device)
            for name, pairs in sums.items():
                lost = self.lost[index] if name in heights else None
                pairs[self.held_out[index]].add(own, x, self._weight(name, index), lost)
        return {name: [fit, other.to(self.waiting)] for name, (fit, other) in sums.items()}

    def _restore(self, writers: list[str], dense: list[Tensor], pruned: list[Tensor]) -> None:
        """Change what the residual stream has lost by what refitted writers add to it.

        dense, pruned: their inputs (N, d_in) in the two models, by batch.
        """
        device, dtype = self.model.device, self.model.dtype
        for name in writers:
            before = whole_layer(self.switch.dense[name])
            after = whole_layer(self.model.get_submodule(name))
            for index, (x, own) in enumerate(zip(dense, pruned, strict=True)):
                lost = before(x.to(device, dtype)) - after(own.to(device, dtype))
                self.lost[index] = self.lost[index] + lost.float()

    def _joined(self, group: list[Matrix], readers: list[Matrix]) -> list[Matrix]:
        """Stacked matrices in place of the readers that share factors, and the rest of `group`."""
        joint = [g for g in self.bank.groups if not g.neurons]
        groups = [g for g in joint if g.source == readers[0].source]
        stacks = [g for g in groups if self.ranks[g.name] is not None]
        covered = {name for stack in stacks for name in stack.members}
        return [*stacks, *(matrix for matrix in group if matrix.name not in covered)]

    def _weight(self, name: str, index: int) -> Tensor | None:
        """The weight of each token of a batch for a matrix, or summed for stacked matrices."""
        if self.weights is None:
            return self.copies[index]
        members = next((g.members for g in self.bank.groups if g.name == name), (name,))
        parts = [self.weights[member][index] for member in members]
        return torch.stack(parts).sum(0).to(self.model.device)

    def _dense_matrix(self, matrix: Matrix) -> tuple[Tensor, Moment]:
        """The dense weight in float64 and the moment of a matrix, or of stacked matrices."""
        if not matrix.members:
            return whole_weight(self.switch.dense[matrix.name]).double(), self.moments.of(matrix)
        members = [m for m in self.bank.matrices if m.name in matrix.members]
        weights = [whole_weight(self.switch.dense[m.name]) for m in members]
        return stacked(weights, [self.moments.of(m) for m in members])

    def _refit_matrix(self, matrix: Matrix, pairs: list[Paired]) -> None:
        """Solve one matrix again, and keep the solution if its held-out error is lower.

        pairs: the sums of the batches to fit and of the others, which are removed from the list as
            they are used: averages of one half of the batches are in memory at a time.
        """
        rank, device = self.ranks[matrix.name], self.model.device
        assert rank is not None
        weight, moment = self._dense_matrix(matrix)
        weight, moment = weight.to(device), moment.to(device)
        fitted = pairs.pop(0).scaled()
        solved = solve(weight, moment, fitted, self.project, self.bank.sizing.fits_bias)
        new = stored(solved.cut(rank), self.bank.dtype, matrix.name)
        del solved, fitted
        old, rest = self.factors[matrix.name], pairs.pop().to(device).scaled()
        before, after = (held_out_error(weight, moment, rest, f, rank) for f in (old, new))
        if after < before:
            self.factors[matrix.name] = new
            self.kept.append(matrix.name)
            self.switch.replace(matrix.name, new, rank)

    def _dense_inputs(
        self, block: nn.Module, sources: list[str], calls: list[BatchCall], hidden: list[Passes]
    ) -> tuple[dict[str, list[Tensor]], list[Passes]]:
        """The inputs (N, d_in) of matrices in the dense block, by batch, and the block's outputs.

        sources: one matrix for each input, which is on the device on which it waits.
        """
        inputs: dict[str, list[Tensor]] = {source: [] for source in sources}
        outputs: list[Passes] = []
        seen: dict[str, Passes] = {}

        def hook(source: str, _module: nn.Module, args: Args, kwargs: Kwargs) -> None:
            seen[source].append([*args, *kwargs.values()][0])

        with ExitStack() as stack:
            for source in sources:
                module, own = self.model.get_submodule(source), partial(hook, source)
                stack.enter_context(module.register_forward_pre_hook(own, with_kwargs=True))
            for index, (call, h) in enumerate(zip(calls, hidden, strict=True)):
                seen.update({source: [] for source in sources})
                outputs.append(call.run(block, h))
                for source in sources:
                    inputs[source].append(self._flat(seen[source], index).to(self.waiting))
        return inputs, outputs

    def _flat(self, passes: Passes, index: int) -> Tensor:
        """The vectors of a batch without padding (N, d)."""
        flat = []
        for x, mask in zip(passes, self.masks[index], strict=True):
            vectors = x.reshape(-1, x.shape[-1])
            flat.append(vectors if mask is None else vectors[mask.to(vectors.device)])
        return torch.cat(flat)
