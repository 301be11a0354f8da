"""`kl`: all factors of a chosen genome tuned together against the dense model's answers.

The closed forms treat every matrix by itself. A few hundred Adam steps on the Kullback-Leibler
divergence from the dense model's distribution at the answer tokens, over calibration rows and
without labels, let them make up for each other; ranks and size stay. What held-out calibration
rows do not confirm is taken back.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sieve.bank.bank import Bank, BankFactors, stored
from sieve.bank.genome import Genome
from sieve.bank.switch import Switch, add_biases
from sieve.data.batches import every_batch, split_batches
from sieve.distributed.trainer import make_trainer, schedule
from sieve.evaluation.divergence import answer_logprobs, divergence
from sieve.model.backbone import place
from sieve.projections import Factors
from sieve.runtime.artifacts import fingerprint

log = logging.getLogger(__name__)


def balance_of(u: Tensor, v: Tensor) -> Tensor:
    """What u (d_out, r) is multiplied and v (r, d_in) divided by, (r,), to be of one scale."""
    return (v.norm(dim=1) / u.norm(dim=0).clamp_min(1e-30)).clamp_min(1e-30).sqrt()


class Pair(nn.Module):
    """Trainable factors u (d_out, r) and v (r, d_in) of one matrix, and a bias where it has one.

    The two share the scale of the product evenly, which u's unit columns in the bank do not.
    """

    def __init__(self, factors: Factors, rank: int) -> None:
        super().__init__()
        u, v = factors.u[:, :rank].float(), factors.v[:rank].float()
        balance = balance_of(u, v)
        self.u, self.v = nn.Parameter(u * balance), nn.Parameter(v / balance[:, None])
        bias = factors.bias(rank)
        self.bias = None if bias is None else nn.Parameter(bias.float().clone())

    def factors(self, before: BankFactors) -> Factors:
        """The tuned factors, as the bank holds them."""
        u, v = self.u.detach(), self.v.detach()
        norm = u.norm(dim=0).clamp_min(1e-30)
        mean, offset = before.mean, before.offset
        if self.bias is not None:
            mean = self.bias.detach().cpu()
            offset = None if offset is None else torch.zeros(len(norm))
        return Factors((u / norm).cpu(), (v * norm[:, None]).cpu(), before.energy, mean, offset)


class TuningModule(L.LightningModule):
    """Tunes the factors of `genome` under `trainer.fit`; batches are calibration batches.

    learning_rate: the largest, reached after a tenth of `steps` and then lowered to 0 (cosine).
    """

    def __init__(
        self, switch: Switch, genome: Genome, steps: int = 300, learning_rate: float = 1e-3
    ) -> None:
        super().__init__()
        self.steps, self.learning_rate = steps, learning_rate
        bank = switch.bank
        self.ranks = {n: r for n, r in bank.ranks(genome).items() if r is not None}
        self.pairs = nn.ModuleList(Pair(bank.factors[n], r) for n, r in self.ranks.items())
        self._switch = [switch]  # In a list, lest the frozen model become a part of this module.

    @property
    def switch(self) -> Switch:
        """The model whose factors are tuned."""
        return self._switch[0]

    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """Mean divergence per answer token of one batch, nats."""
        loss, tokens = self.divergence(batch)
        self.log("tune/kl", loss.detach() / tokens, prog_bar=True)
        return loss / tokens

    def divergence(self, batch: Any) -> tuple[Tensor, int]:
        """Σ KL(dense ‖ pruned) over the answer tokens of a batch, and their number."""
        model = self.switch.model
        with torch.no_grad():
            self.switch.restore()
            dense = answer_logprobs(model, batch)
        with self.placed():
            return divergence(dense, answer_logprobs(model, batch)), len(dense)

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Let the model compute with the trainable factors for the duration of the block."""
        model = self.switch.model
        for name, pair in zip(self.ranks, self.pairs, strict=True):
            assert isinstance(pair, Pair)
            model.set_submodule(name, _Tuned(pair, self.switch.biases[name]))
        try:
            yield
        finally:
            self.switch.restore()

    def configure_optimizers(self) -> Any:
        """Adam, with warm-up and cosine decay."""
        optimizer = torch.optim.Adam(self.pairs.parameters(), self.learning_rate)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: schedule(n, self.steps))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": rate, "interval": "step"},
        }


class _Tuned(nn.Module):
    """y = u v x + bias with a pair's parameters."""

    def __init__(self, pair: Pair, dense: Tensor | None) -> None:
        super().__init__()
        self.pair, self.dense = pair, dense

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_in) to (..., d_out)."""
        u, v, bias = self.pair.u.to(x.dtype), self.pair.v.to(x.dtype), self.pair.bias
        total = add_biases(self.dense, None if bias is None else bias.to(x.dtype), x.dtype)
        return nn.functional.linear(x @ v.T, u, total)


def mean_divergence(module: TuningModule, batches: Sequence[Any]) -> float:
    """Mean KL(dense ‖ pruned) per answer token over batches, nats."""
    with torch.no_grad():
        parts = [module.divergence(batch) for batch in batches]
    return float(sum(loss for loss, _ in parts)) / max(1, sum(tokens for _, tokens in parts))


def tuned_bank(module: TuningModule, genome: Genome) -> tuple[Bank, Genome]:
    """The bank with the tuned factors, good for this genome alone, and the genome of it."""
    bank = module.switch.bank
    factors = dict(bank.factors)
    for name, pair in zip(module.ranks, module.pairs, strict=True):
        assert isinstance(pair, Pair)
        factors[name] = stored(pair.factors(bank.factors[name]), bank.dtype, name)
    sums = [float(f.v.double().abs().sum()) for f in factors.values()]
    key = fingerprint("kl", bank.fingerprint, genome.levels, module.steps, sums)
    return replace(bank, factors=factors, fingerprint=key), replace(genome, bank=key)


def _where(device: torch.device) -> dict[str, Any]:
    """The one device of this process, whichever rank it is."""
    if device.type == "cuda":
        return {"accelerator": "gpu", "devices": [device.index or 0]}
    return {"accelerator": "cpu", "devices": 1}


def tune(
    model: PreTrainedModel,
    bank: Bank,
    genome: Genome,
    batches: Sequence[Any],
    steps: int = 300,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> tuple[Bank, Genome]:
    """Tune a genome's factors on three quarters of calibration batches; the model comes back dense.

    What comes back is the bank and the genome given, unless the divergence on the other batches
    fell. Raises ValueError with fewer than two batches.
    """
    fitted, held = split_batches(batches)
    switch = Switch(model, bank, as_stored=False)
    module = TuningModule(switch, genome, steps, learning_rate).to(model.device)
    before = mean_divergence(module, held)
    trainer = make_trainer(
        {**_where(model.device), "max_steps": steps, "max_epochs": -1}
    )  # fmt: skip
    trainer.fit(module, every_batch(fitted, seed))
    place(module, model.device)
    after = mean_divergence(module, held)
    switch.restore()
    log.info("  tuned        held-out divergence %.4f -> %.4f nats", before, after)
    return tuned_bank(module, genome) if after < before else (bank, genome)
