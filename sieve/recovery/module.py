"""The Lightning module that trains the factors of a pruned model, directly or through LoRA.

LoRA (Hu et al., arXiv:2106.09685; the layers are PEFT's) adds a product of two thin matrices to
`factor_in`, `factor_out` or both. After training the product is merged into the factors, so ranks
and size do not change.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sieve.bank.bank import Bank, BankFactors
from sieve.bank.genome import Genome
from sieve.bank.narrowing import factors_of
from sieve.bank.solver import stored
from sieve.bank.switch import Switch, set_factors
from sieve.config import RecoveryConfig
from sieve.data.batches import as_targets
from sieve.distributed.sharding import average_gradients, is_sharded
from sieve.distributed.trainer import schedule
from sieve.evaluation.divergence import answer_logprobs, divergence
from sieve.factorized.modeling_layers import FactorizedLinear
from sieve.model.matrices import dense_like, dense_weight
from sieve.projections import Factors
from sieve.recovery.hidden import compared_blocks, outputs_of, relative_error, states
from sieve.recovery.teacher import Teacher, TrainingBatch
from sieve.runtime.artifacts import fingerprint

FULL_RATE = 16  # the largest rank whose factors learn at `recovery.learning_rate`
LORA_TARGETS = {
    "in": ["factor_in"],
    "out": ["factor_out"],
    "both": ["factor_in", "factor_out"],
}


class RecoveryModule(L.LightningModule):
    """Trains the factors of a genome under `trainer.fit` on calibration batches.

    The frozen model is not a submodule, so this module's state is the trained layers alone.

    Args:
        switch: of a bank without factors that siblings share, with `as_stored=False`.
        genome: its matrices of rank 0 have no factors and are not trained.
        config: method, loss, steps and learning rate.
        seed: of the random start of LoRA.
        teacher: `teacher_of` the model and `config`, which trainings share; None starts a new one.

    Raises:
        RuntimeError: for `method=lora` where PEFT is not installed.
    """

    def __init__(
        self,
        switch: Switch,
        genome: Genome,
        config: RecoveryConfig,
        seed: int = 0,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__()
        self.config, self.genome = config, genome
        self.start = 0  # the first step, above 0 when a training resumes
        self.start_again(0, config.learning_rate)
        self._switch = [switch]  # In a list, so that the model does not become a submodule.
        self.teacher = teacher or teacher_of(switch.model, config)
        used = {gene: rank for gene, rank in switch.bank.in_use(genome).items() if rank}
        self.narrow = {gene: rank for gene, rank in used.items() if gene.neurons}
        self.ranks = {gene.name: rank for gene, rank in used.items() if not gene.neurons}
        # What is trained, in the order of `layers`: factors, and layers that have lost neurons.
        self.names = [*self.ranks, *(name for gene in self.narrow for name in gene.members)]
        with switch.to(genome):
            pruned = {name: switch.model.get_submodule(name) for name in self.names}
            factors = {name: switch.bank.factors[name].cut(r) for name, r in self.ranks.items()}
            self.layers = nn.ModuleList(
                _balanced(layer, factors[name]) if name in factors else _precise(layer)
                for name, layer in pruned.items()
            )
        for name, parameter in self.layers.named_parameters():
            parameter.requires_grad_(config.method == "full" and name.endswith("weight"))
        if config.method == "lora":
            device = switch.model.device
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(seed)  # PEFT draws the first of the two thin matrices.
                _add_lora(self.layers, config)

    @property
    def switch(self) -> Switch:
        """The switch of the model whose factors are trained."""
        return self._switch[0]

    def trained(self) -> dict[str, Tensor]:
        """The trained parameters by name."""
        return {n: p for n, p in self.named_parameters() if p.requires_grad}

    def start_again(self, step: int, rate: float) -> None:
        """Let the schedule of the learning rate begin at a step, with `rate` as the peak."""
        self.restart, self.rate = step, rate

    def training_step(self, batch: TrainingBatch, batch_idx: int = 0) -> Tensor:
        """Mean loss per answer token of one batch, nats."""
        loss = self.loss(batch)
        self.log("recover/loss", loss.detach(), prog_bar=True)
        return loss

    def loss(self, batch: TrainingBatch) -> Tensor:
        """The loss that `config.loss` names, mean per answer token, nats.

        Rows without labels have the loss of the dense model's answers only. The error of hidden
        states is added `config.hidden` times.
        """
        kind, targets, hidden = self.config.loss, as_targets(batch.rows), self.config.hidden
        dense = self.teacher.answer(batch) if self.taught(batch) else None
        with self.installed(), outputs_of(self.teacher.blocks) as outputs:
            logprobs = answer_logprobs(self.switch.model, batch.rows)
        total = logprobs.new_zeros(())
        if kind != "kl" and batch.labelled:
            total = total - logprobs.gather(1, targets[targets >= 0][:, None]).sum()
        if dense is not None and (kind != "task" or not batch.labelled):
            total = total + divergence(dense.logprobs, logprobs)
        total = total / max(1, len(logprobs))
        if dense is not None and hidden:
            pruned = states(batch.rows, outputs, batch.dense is not None)
            total = total + hidden * relative_error(dense.states, pruned)
        return total

    def taught(self, batch: TrainingBatch) -> bool:
        """Whether the loss of a batch needs the dense model."""
        return self.config.loss != "task" or not batch.labelled or self.config.hidden > 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let the model compute with the trained layers inside the block, and densely after it."""
        model = self.switch.model
        reduced = model.dtype != torch.float32
        mixed = torch.autocast(model.device.type, model.dtype) if reduced else nullcontext()
        with self.switch.to(self.genome), mixed:
            for name, layer in zip(self.names, self.layers, strict=True):
                model.set_submodule(name, layer)
            yield

    def configure_model(self) -> None:
        """Nothing: a model that ranks share is already sharded here."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam or Muon. `on_before_optimizer_step` sets the rate, also of a resumed training."""
        parameters, rate = list(self.trained().values()), self.config.learning_rate
        if self.config.optimizer == "muon":  # Steps as large as Adam's (arXiv:2502.16982).
            return torch.optim.Muon(
                parameters, rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
            )
        groups: list[dict[str, Any]] = []
        for name, layer in zip(self.names, self.layers, strict=True):
            own = [parameter for parameter in layer.parameters() if parameter.requires_grad]
            # A dense layer that has lost neurons is as good as factors of its full rank.
            rank = self.ranks.get(name) or min(own[0].shape)
            share = 1.0 if self.config.method == "lora" else share_of_rate(rank)
            groups.append({"params": own, "share": share})
        return torch.optim.Adam(groups, rate)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient, averaged over ranks, and set the learning rate."""
        if is_sharded(self.switch.model):  # Otherwise there is one rank, or DDP averages.
            average_gradients(list(self.trained().values()))
        nn.utils.clip_grad_norm_(self.trained().values(), self.config.max_norm)
        step = self.start + self.global_step - self.restart
        for group in optimizer.param_groups:
            share = group.get("share", 1.0)
            group["lr"] = share * self.rate * schedule(step, self.config.steps - self.restart)

    def bank(self) -> tuple[Bank, Genome]:
        """A bank with the trained factors, valid for this genome alone, and the genome for it."""
        bank = self.switch.bank
        factors, layers = dict(bank.factors), dict(zip(self.names, self.layers, strict=True))
        for name in self.ranks:
            merged = _merged(layers[name], bank.factors[name])
            factors[name] = stored(merged, bank.dtype, name)
        for gene, count in self.narrow.items():
            weights = [_weight(layers[name]) for name in gene.members]
            changed = factors_of(gene, weights, bank.factors[gene.name].cut(count))
            factors[gene.name] = stored(changed, bank.dtype, gene.name, torch.float32)
        sums = [
            float(part.double().abs().sum())
            for name in (*self.ranks, *(gene.name for gene in self.narrow))
            for part in (factors[name].v, factors[name].u)
        ]
        key = fingerprint(
            "recovery", bank.fingerprint, self.genome.levels, asdict(self.config), sums
        )
        return replace(bank, factors=factors, fingerprint=key), replace(self.genome, bank=key)


def share_of_rate(rank: int) -> float:
    """The share of `recovery.learning_rate` at which factors of a rank learn.

    Adam moves every number of a factor by about the rate, so the change of the product, a sum over
    the rank, grows with it: a rate that suits a small rank does harm at a large one.
    """
    return min(1.0, FULL_RATE / rank)


def teacher_of(model: PreTrainedModel, config: RecoveryConfig) -> Teacher:
    """The dense model as a teacher of what `config` trains on."""
    return Teacher(model, compared_blocks(model) if config.hidden else ())


def _balanced(layer: nn.Module, factors: BankFactors) -> FactorizedLinear:
    """A float32 layer of the bank's factors, which share the scale of their product evenly.

    Column i of u (d_out, r) and row i of v (r, d_in) get the same norm; in a bank u has unit
    columns, so one learning rate would not suit both. Steps that the dtype of the model would round
    away add up in float32.

    Args:
        layer: of the pruned model, for the bias.
        factors: of the bank, which may be more precise than the model.
    """
    assert isinstance(layer, FactorizedLinear)
    device = layer.factor_out.weight.device
    u, v = factors.u.to(device).float(), factors.v.to(device).float()
    balance = (v.norm(dim=1) / u.norm(dim=0).clamp_min(1e-30)).clamp_min(1e-30).sqrt()
    bias = None if layer.factor_out.bias is None else layer.factor_out.bias.detach().float()
    copied = type(layer)(v.shape[1], u.shape[0], len(v), bias is not None)
    set_factors(copied, u * balance, v / balance[:, None], bias)
    return copied


def _precise(layer: nn.Module) -> nn.Module:
    """A copy of a dense layer in float32."""
    bias = getattr(layer, "bias", None)
    bias = None if bias is None else bias.detach().float().clone()
    return dense_like(layer, dense_weight(layer).detach().float().clone(), bias)


def _add_lora(layers: nn.ModuleList, config: RecoveryConfig) -> None:
    """Wrap the factors in PEFT's LoRA layers, in float32."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise RuntimeError(
            "recovery=lora needs PEFT; install it with pip install 'sieve-llm[recovery]'."
        ) from error
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=[
            f"{index}.{part}" if part else str(index)
            for index, layer in enumerate(layers)
            for part in (LORA_TARGETS[config.factors] if _is_factorized(layer) else [""])
        ],
        lora_dropout=0.0,
        bias="none",
    )
    with warnings.catch_warnings():  # PEFT says that it adapts to Conv1D.
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        inject_adapter_in_model(lora, layers)
    for name, parameter in layers.named_parameters():
        parameter.requires_grad_("lora_" in name)


def _is_factorized(layer: nn.Module) -> bool:
    return isinstance(layer, FactorizedLinear)


def _merged(layer: nn.Module, before: Factors) -> Factors:
    """The factors of a trained layer as a bank stores them: u with unit columns."""
    u, v = (_weight(layer.get_submodule(f)).double() for f in ("factor_out", "factor_in"))
    norm = u.norm(dim=0).clamp_min(1e-30)
    mean, offset = before.mean, before.offset
    if (bias := before.bias(len(v))) is not None:  # Fitted with the untrained u, so kept whole.
        mean, offset = bias.float().cpu(), torch.zeros(len(norm))
    return Factors((u / norm).cpu(), (v * norm[:, None]).cpu(), before.energy, mean, offset)


def _weight(factor: nn.Module) -> Tensor:
    """The weight (d_out, d_in) of a layer; of a LoRA layer, with the product that it adds."""
    if isinstance(factor, nn.Linear | Conv1D):
        return dense_weight(factor).detach()
    added: Tensor = factor.get_delta_weight("default").detach()  # type: ignore[operator]
    base = factor.get_submodule("base_layer")
    return _weight(base) + (added.T if isinstance(base, Conv1D) else added)
