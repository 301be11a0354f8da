"""Recovery: a pruned model trained on its task, by LoRA on the factors or the factors themselves.

LoRA (Hu et al., arXiv:2106.09685; PEFT's own layers) adds a product of two thin matrices to
`factor_in`, `factor_out` or both; at the end it is merged into them, so ranks and size stay. The
loss is that of the right answers, the Kullback-Leibler divergence from the dense model's answers
(distillation), or their sum. At every check the model answers rows it is not trained on; the best
state is kept, and where none beats the model as it came, nothing is changed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sieve.bank.bank import Bank, stored
from sieve.bank.genome import Genome
from sieve.bank.switch import Switch, set_factors
from sieve.config import RecoveryConfig
from sieve.data.batches import as_inputs, as_targets, trailing_positions
from sieve.distributed.sharding import average_gradients, is_sharded
from sieve.distributed.trainer import schedule
from sieve.evaluation.divergence import answer_logprobs, divergence
from sieve.factorized.modeling_layers import FactorizedLinear
from sieve.model.backbone import forward, place
from sieve.projections import Factors
from sieve.recovery.keeper import Entry, Keeper
from sieve.recovery.tuning import balance_of
from sieve.runtime.artifacts import fingerprint


class RecoveryModule(L.LightningModule):
    """Trains the factors of a genome under `trainer.fit`; batches are calibration batches.

    switch: of a bank without shared factors; seed: of what is drawn to begin with. The frozen model
    is no part of this module, so that its state is what is trained. Raises RuntimeError without
    PEFT where LoRA is asked for.
    """

    def __init__(
        self, switch: Switch, genome: Genome, settings: RecoveryConfig, seed: int = 0
    ) -> None:
        super().__init__()
        self.settings, self.start = settings, 0
        self._switch, self.genome = [switch], genome
        self.ranks = {n: r for n, r in switch.bank.ranks(genome).items() if r}
        with switch.to(genome):
            layers = [_balanced(switch.model.get_submodule(name)) for name in self.ranks]
        self.layers = nn.ModuleList(layers)
        for name, parameter in self.layers.named_parameters():
            parameter.requires_grad_(settings.method == "full" and name.endswith("weight"))
        if settings.method == "lora":
            device = switch.model.device
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(seed)  # PEFT draws the first of the two matrices.
                _add_lora(self.layers, settings)

    @property
    def switch(self) -> Switch:
        """The model whose factors are trained."""
        return self._switch[0]

    def trained(self) -> dict[str, Tensor]:
        """Everything that is trained, by name."""
        return {n: p for n, p in self.named_parameters() if p.requires_grad}

    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """Mean loss per answer token of one batch, nats."""
        loss = self.loss(batch)
        self.log("recover/loss", loss.detach(), prog_bar=True)
        return loss

    def loss(self, batch: Any) -> Tensor:
        """The loss that `settings.loss` names, mean per answer token, nats."""
        kind, model = self.settings.loss, self.switch.model
        dense = None
        if kind != "task":
            with torch.no_grad():
                dense = answer_logprobs(model, batch)
        with self.placed():
            logprobs, targets = _answers(model, batch)
        total = logprobs.new_zeros(())
        if kind != "kl":
            total = total - logprobs.gather(1, targets[:, None]).sum()
        if dense is not None:
            total = total + divergence(dense, logprobs)
        return total / max(1, len(targets))

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Let the model compute with what is trained for the duration of the block."""
        model = self.switch.model
        reduced = model.dtype != torch.float32
        mixed = torch.autocast(model.device.type, model.dtype) if reduced else nullcontext()
        with self.switch.to(self.genome), mixed:
            for name, layer in zip(self.ranks, self.layers, strict=True):
                model.set_submodule(name, layer)
            yield

    def configure_model(self) -> None:
        """A model that is to be sharded is so before it comes here."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam; the rate is set at every step, so that a later start is on the same schedule."""
        return torch.optim.Adam(list(self.trained().values()), self.settings.learning_rate)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient, averaged over ranks, and set the learning rate."""
        if is_sharded(self.switch.model):  # Else it is on one rank, or DDP has averaged it.
            average_gradients(list(self.trained().values()))
        nn.utils.clip_grad_norm_(self.trained().values(), self.settings.max_norm)
        step = self.start + self.global_step
        for group in optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * schedule(step, self.settings.steps)

    def bank(self) -> tuple[Bank, Genome]:
        """The bank with what was trained merged in, good for this genome alone, and the genome."""
        bank = self.switch.bank
        factors = dict(bank.factors)
        for name, layer in zip(self.ranks, self.layers, strict=True):
            merged = _merged(layer, bank.factors[name])
            factors[name] = stored(merged, bank.dtype, name)
        sums = [float(factors[name].v.double().abs().sum()) for name in self.ranks]
        settings = asdict(self.settings)
        key = fingerprint("recovery", bank.fingerprint, self.genome.levels, settings, sums)
        return replace(bank, factors=factors, fingerprint=key), replace(self.genome, bank=key)


class StepBatches(Dataset[Any]):
    """The batches of every step from `start` on, of one rank: epochs in orders drawn by a seed.

    Which batches a step takes depends on the step alone, so a later start goes on with the same;
    `world` ranks with one batch each take what one takes in `world` batches a step.
    """

    def __init__(
        self, batches: Sequence[Any], settings: RecoveryConfig, start: int = 0, rank: int = 0,
        world: int = 1, seed: int = 0,
    ) -> None:  # fmt: skip
        self.batches, self.rank, self.world, self.seed = batches, rank, world, seed
        self.first = start * settings.accumulate * world
        self.count = (settings.steps - start) * settings.accumulate

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        if index >= self.count:
            raise IndexError(index)
        epoch, place = divmod(self.first + index * self.world + self.rank, len(self.batches))
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * epoch)
        return self.batches[int(torch.randperm(len(self.batches), generator=generator)[place])]


def step_loader(dataset: StepBatches) -> DataLoader[Any]:
    """A loader that hands out batches as they are."""
    return DataLoader(dataset, batch_size=None, shuffle=False, collate_fn=_same)


def _same(batch: Any) -> Any:
    return batch


def _answers(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Log-probabilities (tokens, V) at the answer tokens of a batch, and those tokens (tokens,)."""
    targets = as_targets(batch)
    keep = trailing_positions(targets >= 0)
    wanted = targets[:, -keep:]
    logits = forward(model, as_inputs(batch), keep)[wanted >= 0]
    return torch.log_softmax(logits.float(), -1), wanted[wanted >= 0]


def _balanced(layer: nn.Module) -> FactorizedLinear:
    """A plain layer whose two factors share the scale of their product, direction by direction."""
    assert isinstance(layer, FactorizedLinear)
    u, v = layer.factor_out.weight.detach().float(), layer.factor_in.weight.detach().float()
    balance = balance_of(u, v)
    bias = layer.factor_out.bias
    copied = FactorizedLinear(v.shape[1], u.shape[0], len(v), bias is not None)
    set_factors(
        copied, u * balance, v / balance[:, None], None if bias is None else bias.detach().float()
    )  # fmt: skip
    return copied


def _add_lora(layers: nn.ModuleList, settings: RecoveryConfig) -> None:
    """Wrap the factors in PEFT's LoRA layers, in float32."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise RuntimeError(
            "recovery=lora needs PEFT; install it with pip install 'sieve-llm[recovery]'."
        ) from error
    names = {"in": ["factor_in"], "out": ["factor_out"], "both": ["factor_in", "factor_out"]}
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules=names[settings.factors],
        lora_dropout=0.0, bias="none",
    )  # fmt: skip
    inject_adapter_in_model(config, layers)
    for name, parameter in layers.named_parameters():
        parameter.requires_grad_("lora_" in name)


def _merged(layer: nn.Module, before: Factors) -> Factors:
    """The factors of a trained layer as a bank holds them: u with columns of length 1."""
    u, v = (_weight(factor).double() for factor in (layer.factor_out, layer.factor_in))
    norm = u.norm(dim=0).clamp_min(1e-30)
    mean, offset = before.mean, before.offset
    if (bias := before.bias(len(v))) is not None:  # Of the untrained u, whose bias this was.
        mean, offset = bias.float().cpu(), torch.zeros(len(norm))
    return Factors((u / norm).cpu(), (v * norm[:, None]).cpu(), before.energy, mean, offset)


def _weight(factor: Any) -> Tensor:
    """The weight of a Linear, or of one in a LoRA layer with what that adds."""
    base = getattr(factor, "base_layer", factor)
    weight: Tensor = base.weight.detach()
    if base is not factor:
        weight = weight + factor.get_delta_weight("default").detach()
    return weight


@dataclass(frozen=True)
class Recovered:
    """A bank and a genome after training, or as they came, and how it went."""

    bank: Bank
    genome: Genome
    taken: bool  # False where nothing beat the model as it came
    history: list[Entry]  # of every look


def recover(
    module: RecoveryModule,
    batches: Sequence[Any],
    look: Callable[[], tuple[float, float]],
    trainer: Callable[[list[L.Callback], int], L.Trainer],
    seed: int = 0,
    path: Path | None = None,
    note: Callable[[Entry], None] = lambda entry: None,
) -> Recovered:
    """Train a module and merge the best state in; the model comes back dense.

    batches: calibration batches, of all ranks; look: accuracy and minus loss of the model as it
    stands on rows that are not trained on; trainer: makes one from callbacks and a number of steps;
    path: of what a killed training goes on from, see `Keeper`; note: what is told of every look.
    Raises ValueError where the file is of another training.
    """

    def placed_look() -> tuple[float, float]:
        with module.placed():
            return look()

    switch, settings = module.switch, module.settings
    key = fingerprint(switch.bank.fingerprint, module.genome.levels, asdict(settings), seed)
    keeper = Keeper(module, placed_look, path, key, note)
    if module.start < settings.steps and keeper.worse < settings.patience:
        training = trainer([keeper], settings.steps - module.start)
        world, rank = training.world_size, training.global_rank
        training.fit(
            module, step_loader(StepBatches(batches, settings, module.start, rank, world, seed))
        )  # fmt: skip
        place(module, switch.model.device)
    taken = keeper.take_best()
    bank, genome = module.bank() if taken else (switch.bank, module.genome)
    switch.restore()
    return Recovered(bank, genome, taken, keeper.history)
