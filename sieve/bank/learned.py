"""`learned`: the paper's projection, learned by gradient (Sec. 3, arXiv:2505.18350).

Each matrix y = W x is learned by itself to minimize E‖y − ŷ‖² over the task's tokens. Up-type
matrices: ŷ = (W A)(Aᵀ x). Down-type: ŷ = Aᵀ((A W) x). Untied: ŷ = U (V x). `LearningModule` runs
under `trainer.fit`, `learn` without a Trainer; the default settings come from a public
re-implementation. `projections/output.py` is the optimum in closed form, to compare with.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain, repeat
from typing import Any

import lightning as L
import torch
from torch import Tensor, distributed, nn
from transformers import PreTrainedModel

from sieve.bank.bank import Bank
from sieve.bank.genome import Sizing
from sieve.bank.solver import stored
from sieve.calibration.calibration import calibrate
from sieve.config import INITS
from sieve.data.batches import as_inputs, every_batch
from sieve.model.backbone import forward, place
from sieve.model.matrices import Matrix, dense_weight, find_matrices
from sieve.projections import Factors
from sieve.projections.factors import eigh
from sieve.projections.moments import Moment, MomentSource, Needs
from sieve.projections.output import output
from sieve.runtime.artifacts import fingerprint
from sieve.runtime.progress import track

EPOCHS, LEARNING_RATE = 2, 1e-3
SMALL = 0.01  # standard deviation of a random start


def _pair(form: str, free: Sequence[Tensor], weight: Tensor) -> tuple[Tensor, Tensor]:
    """U (d_out, r) and V (r, d_in) from the free tensors: A (d_in, r), A (r, d_out), or U and V.

    form: "input" or "output", the side of the matrix that A is on, or "untied".
    """
    if form == "untied":
        return free[0], free[1]
    a = free[0]
    return (weight @ a, a.T) if form == "input" else (a.T, a @ weight)


def _start(
    weight: Tensor, rank: int, form: str, init: str, moment: Any, generator: torch.Generator
) -> list[Tensor]:
    """The free tensors for W (d_out, d_in) before the first step, on the moment's device."""
    if init == "random":
        u, v = (SMALL * torch.randn(n, rank, generator=generator) for n in weight.shape)
        axes = v
    elif init == "optimal" or form == "output":  # E[y yᵀ]'s eigenvectors are the optimum there.
        best = output(weight, moment).cut(rank)
        u, v, axes = best.u, best.v.T, torch.linalg.qr(best.v.T).Q
    else:
        axes = eigh(moment.input_second())[1][:, :rank]
        u, v = weight.double() @ axes, axes
    return {"input": [axes], "output": [u.T]}.get(form, [u, v.T])


class _Learner:
    """The free tensors of one matrix W (d_out, d_in), and sums over the tokens of an epoch."""

    def __init__(self, module: nn.Module, form: str, start: Sequence[Tensor]) -> None:
        self.module, self.form, self.weight = module, form, dense_weight(module).detach()
        device, rank = self.weight.device, min(start[0].shape)
        self.free = [t.to(device, torch.float32, copy=True).contiguous() for t in start]
        for tensor in self.free:
            tensor.requires_grad_()
        self.power: Tensor | None = None  # mean ‖y‖² over the first batch
        # Σ z zᵀ of z = V x, Σ y, Σ ‖y − ŷ‖², tokens.
        shapes: tuple[tuple[int, ...], ...] = ((rank, rank), (len(self.weight),), (), ())
        self.seen = [torch.zeros(shape, device=device) for shape in shapes]

    def see(
        self, mask: Tensor, errors: list[Tensor], module: Any, args: Any, kwargs: Any, y: Any
    ) -> None:
        """Forward hook: add the gradient of E‖y − ŷ‖² / E‖y‖², and append the value to `errors`.

        The divisor, a constant of the matrix, makes the errors of all matrices comparable; Adam's
        steps hardly depend on it. mask: (tokens,) bool, False for padding.
        """
        x, y = (z.flatten(0, -2)[mask].float() for z in ([*args, *kwargs.values()][0], y))
        if (bias := getattr(module, "bias", None)) is not None:
            y = y - bias.detach().float()
        if self.power is None:
            self.power = y.square().sum(1).mean().clamp_min(torch.finfo(y.dtype).tiny)
        with torch.enable_grad():
            u, v = _pair(self.form, self.free, self.weight.float())
            z = x @ v.T
            error = (y - z @ u.T).square().sum(1).mean() / self.power
        error.backward()
        z, error, tokens = z.detach(), error.detach(), len(y)
        added = (z.T @ z, y.sum(0), error * self.power * tokens, tokens)
        for total, more in zip(self.seen, added, strict=True):
            total += more
        errors.append(error)

    def factors(self, moment: Moment | None) -> Factors:
        """The learned factors, rotated so that energies fall; float64, on the CPU.

        Energies (min(d_out, d_in),): E(uᵢᵀ ŷ)² for the r learned directions, then E‖y − ŷ‖² spread
        evenly over the others. They come from the moment if it determines them, otherwise from the
        sums of the last epoch.
        """
        device = self.weight.device if self.weight.is_cuda else torch.device("cpu")
        w, *free = (t.detach().to(device).double() for t in (self.weight, *self.free))
        u, v = _pair(self.form, free, w)
        if moment and (moment.side == "input" or self.form == "output"):
            moment = moment.to(device)
            second, whole, inner = moment.second.double(), w, v
            if moment.side == "output":  # Maps of y in place of x: V = M W.
                inner = v @ w.T @ torch.linalg.pinv(w @ w.T, hermitian=True)
                whole = torch.eye(len(w)).to(w)
            latent, mean = inner @ second @ inner.T, moment.output_mean(w)
            error = whole - u @ inner
            left = ((error @ second) * error).sum()
        else:  # Moments of y determine the energy of V x only where V x is a function of y.
            *sums, tokens = (t.to(device).double() for t in self.seen)
            latent, mean, left = (t / tokens.clamp_min(1) for t in sums)
        q, r = torch.linalg.qr(u)  # Keeps the span of U, also where the energy is 0.
        energy, turn = eigh(r @ latent @ r.T)
        rest = min(w.shape) - len(energy)
        energy = torch.cat([energy, (left.clamp_min(0) / max(rest, 1)).expand(rest)])
        return Factors(*(t.cpu() for t in (q @ turn, turn.T @ r @ v, energy, mean)))


class LearningModule(L.LightningModule):
    """Learns factors of frozen matrices under `trainer.fit`; the result is in `factors`.

    In a process group, rank i learns matrices i, i + world size, ... from all batches
    (`every_batch`) and sends their factors to the others at the end.

    Args:
        model: the dense model.
        ranks: of the matrices to learn, by name.
        moments: with weighting "none" and Needs(input=True). Every start but "random" needs them.
        tied: False learns U and V in place of A.
        init: the start: "random" (small, Gaussian), "pca" (of the side that A is on; untied: of the
            input) or "optimal" (the closed form; tied on the input side: the row space of its V).
        learning_rate: of Adam.
        seed: of a random start.

    Raises:
        ValueError: for a rank out of range, or matrices of experts.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ranks: Mapping[str, int],
        moments: MomentSource | None = None,
        tied: bool = True,
        init: str = "pca",
        learning_rate: float = LEARNING_RATE,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.matrices = [matrix for matrix in find_matrices(model) if matrix.name in ranks]
        top = {m.name: min(m.d_out, m.d_in) for m in self.matrices}
        bad = [
            f"{n}: {r} of {top.get(n, 0)}" for n, r in ranks.items() if not 0 < r <= top.get(n, 0)
        ]
        if bad or not ranks:
            raise ValueError(f"got ranks {bad}, expected prunable matrices, 1 to full rank.")
        experts = [m.name for m in self.matrices if m.expert]
        if experts:
            raise ValueError(
                f"{experts[0]} belongs to an expert, which reads only some of the tokens, but "
                "projection=learned needs them all; choose another projection."
            )
        self.ranks, self.moments, self.tied, self.init = dict(ranks), moments, tied, init
        self.learning_rate, self.seed = learning_rate, seed
        self.factors: dict[str, Factors] | None = None
        # DDP needs a parameter; this one has no gradient. The model and the free tensors, which
        # differ between ranks, are not submodules, so DDP does not see them.
        self.anchor = nn.Parameter(torch.zeros(()))
        self._model, self._learners = [model], dict[int, _Learner]()

    def setup(self, stage: str) -> None:
        place(self._model[0], self.trainer.strategy.root_device)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One Adam for all matrices of this rank."""
        rank, world_size = rank_and_world_size()
        mine = range(rank, len(self.matrices), world_size)
        self._learners = {index: self._learner(index, self.init) for index in mine}
        free = [tensor for learner in self._learners.values() for tensor in learner.free]
        return torch.optim.Adam([self.anchor, *free], self.learning_rate)

    def on_train_epoch_start(self) -> None:
        for tensor in chain.from_iterable(learner.seen for learner in self._learners.values()):
            tensor.zero_()

    def training_step(self, batch: object, batch_idx: int = 0) -> Tensor:
        """One step for this rank's matrices; returns the sum of their relative output errors."""
        checksum: Any = as_inputs(batch)["input_ids"].sum()
        gathered: Any = self.all_gather(checksum)
        if batch_idx == 0 and bool((gathered != checksum).any()):
            raise RuntimeError(
                "got different batches on different ranks, expected all batches on each: pass "
                "`every_batch` to a trainer with use_distributed_sampler=False."
            )
        loss = self.learn_batch(batch, self.optimizers())
        self.log("learn/error", loss / max(1, len(self._learners)), prog_bar=True)
        return loss

    def on_train_end(self) -> None:
        self.factors = self.gather()

    def learn_batch(self, batch: object, optimizer: Any) -> Tensor:
        """`training_step` without a Trainer.

        Each matrix's loss runs backwards in its forward hook, so that the activations of only one
        matrix are in memory.
        """
        model = self._model[0].eval()
        inputs = {name: tensor.to(model.device) for name, tensor in as_inputs(batch).items()}
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
        errors = [torch.zeros((), device=model.device)]
        optimizer.zero_grad()
        with torch.no_grad(), ExitStack() as stack:
            for learner in self._learners.values():
                see = partial(learner.see, mask.flatten().bool(), errors)
                stack.enter_context(learner.module.register_forward_hook(see, with_kwargs=True))
            forward(model, inputs, keep=1)
        optimizer.step()
        return torch.stack(errors).sum()

    def gather(self) -> dict[str, Factors]:
        """Factors of all matrices on every rank; ValueError where learning diverged."""
        factors, (rank, world_size) = {}, rank_and_world_size()
        for index, matrix in enumerate(self.matrices):
            owner = index % world_size
            learner = self._learners[index] if owner == rank else self._learner(index, "random")
            state = [tensor.detach() for tensor in (*learner.free, *learner.seen)]
            for tensor in state if world_size > 1 else ():
                distributed.broadcast(tensor, src=owner)
            finite = all(bool(torch.isfinite(tensor).all()) for tensor in state)
            if not finite:
                raise ValueError(
                    f"got NaN or infinity in {matrix.name}, expected numbers; lower learning_rate."
                )
            moment = self.moments.of(matrix) if self.moments else None
            factors[matrix.name] = learner.factors(moment)
        return factors

    def _learner(self, index: int, init: str) -> _Learner:
        matrix = self.matrices[index]
        module, form = self._model[0].get_submodule(matrix.name), "untied"
        if self.tied:
            form = "output" if matrix.kind in ("o", "down") else "input"
        weight, rank = dense_weight(module).detach(), self.ranks[matrix.name]
        moment = self.moments.of(matrix).to(weight.device) if self.moments else None
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        return _Learner(module, form, _start(weight, rank, form, init, moment, generator))


@torch.inference_mode(False)
def learn(
    model: PreTrainedModel,
    batches: Sequence[object],
    ranks: Mapping[str, int],
    moments: MomentSource | None = None,
    tied: bool = True,
    init: str = "pca",
    learning_rate: float = LEARNING_RATE,
    epochs: int = EPOCHS,
    seed: int = 0,
) -> dict[str, Factors]:
    """Learn factors of the matrices in `ranks` without a Trainer; does not change the model.

    batches: of token ids, as for `calibrate`. moments: None computes them from the batches if the
    start needs them. Other arguments and errors: as for `LearningModule`.
    """
    if moments is None and init in INITS[1:]:
        moments = calibrate(model, batches, needs=Needs(input=True))
    module = LearningModule(model, ranks, moments, tied, init, learning_rate, seed)
    optimizer, loader = module.configure_optimizers(), every_batch(batches, seed)
    steps = chain.from_iterable(repeat(loader, epochs))
    for step, batch in enumerate(track(steps, "Learning", epochs * len(batches), "steps")):
        if step % len(batches) == 0:
            module.on_train_epoch_start()
        module.learn_batch(batch, optimizer)
    return module.gather()


def learned_bank(
    model: PreTrainedModel,
    factors: Mapping[str, Factors],
    matrices: list[Matrix] | None = None,
    storage: str = "plain",
    rank_multiple: int = 1,
    dtype: torch.dtype | None = None,
    key: str | None = None,
) -> Bank:
    """A bank of learned factors, for genomes whose ranks are at most the learned ones, or dense.

    matrices: None takes all of the model's. dtype, key: as for `fit`.
    """
    matrices, dtype = matrices or find_matrices(model), dtype or model.dtype
    sizing = Sizing(storage, rank_multiple)
    stored_factors = {
        m.name: stored(factors[m.name].cut(sizing.top_rank(m)), dtype, m.name) for m in matrices
    }
    key = key or fingerprint("learned", {n: f.digest() for n, f in stored_factors.items()}, storage)
    return Bank(stored_factors, matrices, sizing, "learned", dtype, key)


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank and how many there are."""
    joined = distributed.is_available() and distributed.is_initialized()
    return (distributed.get_rank(), distributed.get_world_size()) if joined else (0, 1)
