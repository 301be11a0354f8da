"""The subject of the figures: the embedded model on a task of Almanac, with few rows."""

from functools import cached_property

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
from sieve.calibration.calibration import calibrate
from sieve.conversion import ASSETS, CONF, register_resolvers, to_config
from sieve.data.calibration_rows import calibration_batches
from sieve.data.choices import scoring_batches
from sieve.model.matrices import Matrix, dense_weight, find_matrices
from sieve.projections.moments import Moments
from sieve.search.objective import Objective
from sieve.tasks import Task, build_task

TASK = "almanac_medicine"
MATRIX = "model.layers.3.mlp.gate_proj"  # the matrix of figures that show only one
CALIBRATED, SCORED = 160, 150  # rows


class Subject:
    """A model, its task, and measurements of both. Each is computed once, at its first use."""

    @cached_property
    def task(self) -> Task:
        register_resolvers()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return build_task(to_config(compose("config", [f"+task={TASK}"])).task)

    @cached_property
    def model(self) -> PreTrainedModel:
        transformers_logging.disable_progress_bar()
        path = ASSETS / "embedded"
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
        return model.eval()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(ASSETS / "embedded")
        return tokenizer

    @cached_property
    def matrix(self) -> Matrix:
        return next(matrix for matrix in find_matrices(self.model) if matrix.name == MATRIX)

    @cached_property
    def weight(self) -> Tensor:
        """The weight of `matrix` (d_out, d_in), float64."""
        return dense_weight(self.model.get_submodule(MATRIX)).detach().double()

    @cached_property
    def moments(self) -> Moments:
        rows = self.task.splits["calibration"][:CALIBRATED]
        batches = calibration_batches(rows, self.tokenizer, batch_tokens=2048)
        return calibrate(self.model, batches, projection="loss_aware")

    @cached_property
    def bank(self) -> Bank:
        """The bank that the default settings give."""
        return fit(self.model, self.moments, "loss_aware", "pivoted", 16)

    @cached_property
    def plain_bank(self) -> Bank:
        """The bank of a plain singular value decomposition of the weights."""
        return fit(self.model, self.moments, "svd", "plain", 16)

    @cached_property
    def objective(self) -> Objective:
        rows = self.task.splits["selection"][:SCORED]
        return Objective(self.model, self.bank, scoring_batches(rows, self.tokenizer))
