"""What the figures of the documentation are computed from: the embedded model on Almanac, small."""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from sieve.bank.bank import Bank, fit
from sieve.bank.genome import Genome
from sieve.calibration.calibration import calibrate
from sieve.conversion import ASSETS, CONF, register_resolvers, to_config
from sieve.data.batches import TokenBatch, calibration_batches
from sieve.data.choices import scoring_batches
from sieve.model.matrices import Matrix, dense_weight, find_matrices
from sieve.projections.moments import Moment, Moments, Needs
from sieve.refit.refit import refit, token_weights
from sieve.search.objective import Objective
from sieve.tasks import Task, build_task

TASK = "almanac_medicine"
SHOWN = "model.layers.3.mlp.gate_proj"  # the matrix that figures of one matrix show
CALIBRATED, REFITTED, SCORED = 160, 400, 150  # rows


class Subject:
    """A model, its task and what was measured of them, each computed when it is first asked for."""

    @cached_property
    def task(self) -> Task:
        """The task as its file in `conf/` says."""
        register_resolvers()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return build_task(to_config(compose("config", [f"+task={TASK}"])).task)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The embedded model."""
        transformers_logging.disable_progress_bar()
        path = ASSETS / "embedded"
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
        return model.eval()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        tokenizer: Any = AutoTokenizer.from_pretrained(ASSETS / "embedded")
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        return tokenizer

    @cached_property
    def matrix(self) -> Matrix:
        """The matrix that is shown."""
        return next(m for m in find_matrices(self.model) if m.name == SHOWN)

    @cached_property
    def weight(self) -> Tensor:
        """Its weight (d_out, d_in), float64."""
        return dense_weight(self.model.get_submodule(SHOWN)).detach().double()

    def batches(self, start: int, rows: int) -> list[TokenBatch]:
        """Calibration batches of some rows."""
        examples = self.task.splits["calibration"][start : start + rows]
        return calibration_batches(examples, self.tokenizer, batch_tokens=2048)

    @cached_property
    def moments(self) -> Moments:
        """Moments for the loss-aware projection."""
        return calibrate(self.model, self.batches(0, CALIBRATED), projection="loss_aware")

    @cached_property
    def bank(self) -> Bank:
        """The bank of the defaults."""
        return fit(self.model, self.moments, "loss_aware", "pivoted", 16)

    @cached_property
    def plain_bank(self) -> Bank:
        """The bank of a plain singular value decomposition."""
        return fit(self.model, self.moments, "svd", "plain", 16)

    def seen(self, start: int) -> Moment:
        """The shown matrix's moment of its inputs over rows from `start` on."""
        needs = Needs(input=True, magnitude=True)
        one = [self.matrix]
        return calibrate(self.model, self.batches(start, CALIBRATED), one, needs).of(self.matrix)

    @cached_property
    def objective(self) -> Objective:
        """Scores genomes of the bank on some selection rows."""
        rows = self.task.splits["selection"][:SCORED]
        return Objective(self.model, self.bank, scoring_batches(rows, self.tokenizer))

    @cached_property
    def _refitting(self) -> tuple[list[TokenBatch], dict[str, list[Tensor]]]:
        """Batches to refit on, and how much their tokens count."""
        batches = self.batches(0, REFITTED)
        return batches, token_weights(self.model, self.bank.matrices, batches)

    def refitted(self, genome: Genome) -> float:
        """The divergence of a genome from the dense model once it is refitted, nats."""
        batches, weights = self._refitting
        done = refit(self.model, self.bank, genome, self.moments, batches, weights)
        return self.objective.on(done.bank).score(done.genome).divergence


def relative_errors(weight: Tensor, u: Tensor, v: Tensor, second: Tensor) -> np.ndarray:
    """E‖W x − U_r V_r x‖² over E‖W x‖² at every rank from 0 on, in float64.

    second: E[x xᵀ] (d_in, d_in).
    """
    whole = torch.einsum("oi,ij,oj->", weight, second, weight)
    left, errors = weight.clone(), [1.0]
    for rank in range(v.shape[0]):
        left = left - torch.outer(u[:, rank], v[rank])
        errors.append(float(((left @ second) * left).sum() / whole))
    return np.array(errors)
