"""Settings of a run: dataclasses mirroring `conf/`, converted and checked once, at the edge."""

import logging
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sieve.genome import LEVELS, get_storage
from sieve.moments import WEIGHTINGS, Needs
from sieve.projections import get_projection
from sieve.quantization_settings import GROUP_SIZES, QUANTIZATIONS, QuantizationSettings
from sieve.recovery_settings import COUNTS, LOSSES, RECOVERIES, SIDES, RecoverySettings
from sieve.tasks import TaskConfig
from sieve.waterfill import NORMALIZATIONS

log = logging.getLogger(__name__)
ASSETS = Path(__file__).parent / "assets"
DTYPES = ("auto", "float32", "bfloat16", "float16")
SEARCHES = ("uniform", "waterfill", "random", "evopress", "genetic")
ALLELES = ("ranks", "levels")  # of a gene: ranks some 10 % apart, or the levels of the grid
SEEDS = ("uniform", "waterfill", "measured")
JUDGES = ("divergence", "margin")
JOBS = ("", "prepare", "finalize")  # of a genetic search, beside its shards
ANSWERS = ("margin", "sampled", "gold")
INITS = ("random", "pca", "optimal")  # of `learned`
TARGETS = ("output", "residual")  # of a refit
EXPORTS = ("none", "factorized", "dense", "onnx", "onnx_int8")
# What a run may ask of lightning.Trainer: where it runs, not how much of it.
TRAINER_KEYS = (
    "_target_", "accelerator", "devices", "num_nodes", "strategy", "deterministic", "benchmark",
    "profiler",
)  # fmt: skip


@dataclass
class ModelConfig:
    """Which model: a Hub name or a local directory."""

    path: str = ""
    name: str | None = None  # what results call it; the last part of the path when null
    revision: str | None = None
    dtype: str = "auto"  # auto: float32 on a CPU, the checkpoint's own on a GPU
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    allow_partial: bool = False  # go on where a part of it cannot be factorized and stays dense

    @property
    def label(self) -> str:
        """What results call the model."""
        return self.name or Path(self.path).resolve().name


@dataclass
class CalibrationConfig:
    """How much of the task the moments see, and how it counts."""

    tokens: int = 50_000
    answers: str = "margin"  # the loss whose gradients are collected: margin, sampled, gold
    # Of tokens in the moments of activations: none, answer, gradient, position; auto: gradient for
    # the projections that take gradients anyway, none for others.
    weighting: str = "auto"
    # Other tasks whose calibration rows are mixed in, +task@calibration.mix.NAME=NAME, and how many
    # tokens each brings beside the others, +calibration.weights.NAME=2; 1 by default. The run's own
    # task goes by the name "self".
    mix: dict[str, TaskConfig] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    checkpointing: bool = False  # compute blocks again backwards, to save memory
    layers_at_once: int | None = None  # whose moments are in memory; a pass for each group

    def weighting_for(self, needs: Needs) -> str:
        """How tokens count for a projection with these needs."""
        return needs.weighting if self.weighting == "auto" else self.weighting


@dataclass
class LearningConfig:
    """How `learned` learns, by default as the paper's re-implementation reports."""

    level: float = 0.5  # the level whose ranks are learnt; smaller ones are cut from it
    tied: bool = True
    init: str = "pca"  # random, pca, optimal
    tokens: int = 200_000
    batch_tokens: int = 5_000
    epochs: int = 2


@dataclass
class ProjectionConfig:
    """How a matrix becomes factors."""

    name: str = "loss_aware"
    storage: str = "pivoted"
    rank_multiple: int = 16
    dtype: str = "auto"  # auto: the checkpoint's own
    damping: float | None = None  # of the loss-aware; null: by the number of examples
    refit: bool = True  # solve the chosen ranks again on what the pruned model sees
    refit_target: str = "output"  # output, or residual: what the residual stream has lost, too
    refit_tries: int = 3  # genomes refitted at most, each smaller while ε holds
    refit_tokens: int = 20_000  # of the calibration prompts, for refitting and tuning
    tune_steps: int = 0  # of all factors together, towards the dense model's answers
    learning_rate: float = 1e-3  # of those steps, and of `learned`
    prune_head: bool = False  # factorize the output head too
    joint: bool = False  # let siblings (q, k, v; gate, up) share one V where that is cheaper
    learning: LearningConfig = field(default_factory=LearningConfig)


@dataclass
class SearchConfig:
    """How a genome is chosen."""

    method: str = "waterfill"
    levels: list[float] = field(default_factory=lambda: list(LEVELS))  # uniform
    normalize: str = "none"  # waterfill: none where energies share a unit, else relative
    judge: str = "divergence"  # what evopress, genetic and seeds go by: divergence, or margin alone
    rounds: int = 2  # of measuring what matrices cost, for the seeds named "measured"
    confirmation: float = 0.0  # share of the selection rows on which winners are confirmed
    candidates: int = 12  # genomes that may be tried there, the smallest first
    alleles: str = "ranks"  # of random, evopress, genetic: ranks, or levels
    seeds: list[str] = field(default_factory=lambda: list(SEEDS))  # what these begin with
    evaluations: int = 300  # random, evopress: genomes evaluated, those of the seeds included
    examples: int | None = None  # random, evopress: rows scored in all, those of the seeds included
    bottlenecks: bool = False  # how far each matrix alone can be pruned, the rest dense
    job: str = ""  # genetic: which job of the search this is; the sweeper says so
    shard: str | None = None  # genetic: file of the genomes to evaluate; the sweeper's, too
    ledger: str | None = None  # genetic: file of all evaluated genomes, for the last job


@dataclass
class ExportConfig:
    """What is written for use outside."""

    format: str = "factorized"


@dataclass
class SpeedConfig:
    """How dense and pruned speed are compared."""

    enabled: bool = True
    batch_size: int = 8
    prompt_tokens: int = 128
    new_tokens: int = 16
    repeats: int = 5


@dataclass
class LoggerConfig:
    """Weights & Biases: mode auto is online with a key and offline without."""

    wandb: bool = True
    mode: str = "auto"
    project: str = "sieve"
    entity: str | None = None
    group: str | None = None


@dataclass
class PathsConfig:
    """Where runs and finished stages stand."""

    runs_dir: str = "runs"
    cache_dir: str = "~/.cache/sieve"


@dataclass
class Config:
    """One run."""

    task: TaskConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    recovery: RecoverySettings = field(default_factory=RecoverySettings)
    quantization: QuantizationSettings = field(default_factory=QuantizationSettings)
    export: ExportConfig = field(default_factory=ExportConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    trainer: dict[str, Any] = field(default_factory=dict)  # keywords of lightning.Trainer
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    # Other tasks on whose test rows both models are scored too: +task@also.NAME=NAME.
    also: dict[str, TaskConfig] = field(default_factory=dict)
    tolerance: float = 0.02  # ε: accuracy that may be lost, as a fraction
    guarantee: bool = False  # hold the interval's upper end, not the point, to the tolerance
    inspect: bool = False  # show the model's matrices, and do no more
    batch_tokens: int = 8_192  # of a forward pass, padding counted
    seed: int = 0


def register_resolvers() -> None:
    """`${asset:name}` in YAML is the path of something shipped in `sieve/assets`."""
    OmegaConf.register_new_resolver("asset", lambda name: str(ASSETS / name), replace=True)


def to_config(raw: DictConfig) -> Config:
    """Convert Hydra's composed configuration to plain dataclasses and check it.

    Raises:
        ValueError: a key is unknown, of the wrong type, missing, or out of range.
    """
    if OmegaConf.is_missing(raw, "task"):
        raise ValueError(
            "no task was chosen; add one, such as +task=almanac_medicine or +task=jsonl."
        )
    if OmegaConf.is_missing(raw.task, "name"):
        raise ValueError("task.name is missing; set it, as task.name=arc_easy for +task=lm_eval.")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), raw)
        OmegaConf.resolve(merged)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        message = str(error).splitlines()[0]
        raise ValueError(f"the configuration does not hold: {message}") from error
    assert isinstance(config, Config)
    for task in (config.task, *config.also.values(), *config.calibration.mix.values()):
        task.preamble = task.preamble.replace("\\n", "\n")
    check(config)
    return config


def check(config: Config) -> None:
    """Every check that spans settings or needs no data; ValueError says what to do."""
    if not 0 <= config.tolerance < 1:
        raise ValueError(
            f"tolerance is {config.tolerance}, expected a fraction of accuracy from 0 to below 1 "
            "(0.02 is two points); set tolerance=0.02."
        )
    if not config.model.path:
        raise ValueError("model.path is empty; choose model=... or set model.path=<directory>.")
    for key, value, allowed in (
        ("model.dtype", config.model.dtype, DTYPES),
        ("projection.dtype", config.projection.dtype, DTYPES),
        ("search.method", config.search.method, SEARCHES),
        ("projection.refit_target", config.projection.refit_target, TARGETS),
        ("projection.learning.init", config.projection.learning.init, INITS),
        ("search.normalize", config.search.normalize, NORMALIZATIONS),
        ("search.judge", config.search.judge, JUDGES),
        ("search.alleles", config.search.alleles, ALLELES),
        ("search.job", config.search.job, JOBS),
        *(("search.seeds", seed, SEEDS) for seed in config.search.seeds),
        ("calibration.answers", config.calibration.answers, ANSWERS),
        ("recovery.method", config.recovery.method, RECOVERIES),
        ("recovery.factors", config.recovery.factors, SIDES),
        ("recovery.loss", config.recovery.loss, LOSSES),
        ("quantization.method", config.quantization.method, QUANTIZATIONS),
        ("calibration.weighting", config.calibration.weighting, ("auto", *WEIGHTINGS)),
        ("export.format", config.export.format, EXPORTS),
        ("logger.mode", config.logger.mode, ("auto", "online", "offline")),
    ):
        if value not in allowed:
            raise ValueError(f"{key} is {value!r}, expected one of {', '.join(allowed)}.")
    _check_counts(config)
    for key, size in (
        ("projection.learning_rate", config.projection.learning_rate),
        ("recovery.learning_rate", config.recovery.learning_rate),
        ("recovery.max_norm", config.recovery.max_norm),
    ):
        if not 0 < size < math.inf:
            raise ValueError(f"{key} is {size}, expected a number above 0.")
    if stray := [key for key in config.trainer if key not in TRAINER_KEYS]:
        raise ValueError(
            f"trainer.{stray[0]} is not a setting of a run, expected one of "
            f"{', '.join(TRAINER_KEYS[1:])}; for a dtype set model.dtype, for fewer tokens "
            "calibration.tokens, for fewer rows task.max_rows."
        )
    _check_projection(config)
    _check_levels(config.search.levels)
    _check_search(config.search)
    _check_quantization(config)
    config.task.validate()
    _check_others(config)


def _check_others(config: Config) -> None:
    """Tasks beside the run's own, and their weights."""
    for task in (*config.calibration.mix.values(), *config.also.values()):
        task.validate()
    weights, known = config.calibration.weights, {"self", *config.calibration.mix}
    if stray := sorted(set(weights) - known):
        raise ValueError(
            f"calibration.weights.{stray[0]} is of no task of calibration.mix, expected one of "
            f"{', '.join(sorted(known))}; add +task@calibration.mix.{stray[0]}=..."
        )
    shares = [weights.get(name, 1.0) for name in known]
    if min(shares) < 0 or not 0 < sum(shares) < math.inf:
        raise ValueError(
            f"calibration.weights is {weights}, expected numbers of at least 0, one of them above."
        )


def _check_counts(config: Config) -> None:
    for key, number in (
        ("calibration.tokens", config.calibration.tokens),
        ("batch_tokens", config.batch_tokens),
        ("projection.rank_multiple", config.projection.rank_multiple),
        ("projection.refit_tokens", config.projection.refit_tokens),
        ("projection.refit_tries", config.projection.refit_tries),
        ("projection.learning.tokens", config.projection.learning.tokens),
        ("projection.learning.batch_tokens", config.projection.learning.batch_tokens),
        ("projection.learning.epochs", config.projection.learning.epochs),
        ("search.candidates", config.search.candidates),
        ("search.rounds", config.search.rounds),
        *((f"recovery.{key}", getattr(config.recovery, key)) for key in COUNTS),
        ("search.evaluations", config.search.evaluations),
        ("search.examples", 1 if config.search.examples is None else config.search.examples),
        *((f"speed.{key}", n) for key, n in asdict(config.speed).items() if key != "enabled"),
    ):
        if number < 1:
            raise ValueError(f"{key} is {number}, expected at least 1.")


def _check_projection(config: Config) -> None:
    """What a projection can be asked for, and together with what."""
    if not 0 < (level := config.projection.learning.level) < 1:
        raise ValueError(
            f"projection.learning.level is {level}, expected a kept fraction between 0 and 1."
        )
    at_once = config.calibration.layers_at_once
    if at_once is not None and at_once < 1:
        raise ValueError(
            f"calibration.layers_at_once is {at_once}, expected null (all) or at least 1."
        )
    if config.projection.joint and (
        config.projection.name == "learned" or config.projection.tune_steps
    ):
        raise ValueError(
            "projection.joint goes with the closed forms; set projection.joint=false for "
            "projection=learned and for projection.tune_steps above 0."
        )
    if config.projection.joint and config.recovery.method != "none":
        raise ValueError(
            "recovery trains factors that matrices have of their own; set projection.joint=false."
        )
    if config.projection.name == "learned" and config.projection.prune_head:
        raise ValueError(
            "projection=learned does not learn the output head; set projection.prune_head=false."
        )
    if (damping := config.projection.damping) is not None and damping < 0:
        raise ValueError(f"projection.damping is {damping}, expected null or at least 0.")
    get_projection(config.projection.name)
    get_storage(config.projection.storage)


def _check_search(search: SearchConfig) -> None:
    if not 0 <= search.confirmation < 1:
        raise ValueError(
            f"search.confirmation is {search.confirmation}, expected a share of the selection rows "
            "from 0 to below 1."
        )
    led = search.job or search.shard
    if search.method == "genetic" and not led:
        raise ValueError(
            "search=genetic runs as a sweep; leave hydra.mode=MULTIRUN and hydra/sweeper=genetic "
            "as conf/search/genetic.yaml sets them."
        )
    if search.job == "finalize" and not search.ledger:
        raise ValueError("search.job=finalize takes search.ledger, the file of the sweeper.")


def _check_quantization(config: Config) -> None:
    if (size := config.quantization.group_size) not in GROUP_SIZES:
        sizes = ", ".join(map(str, GROUP_SIZES))
        raise ValueError(f"quantization.group_size is {size}, expected one of {sizes}.")
    if config.quantization.method != "none" and config.export.format not in ("factorized", "none"):
        raise ValueError(
            f"quantization={config.quantization.method} is of the factors, which "
            f"export={config.export.format} does not keep; set export=factorized, or "
            "quantization=none (export=onnx_int8 has 8 bits of its own)."
        )


def _check_levels(levels: list[float]) -> None:
    if not levels or any(not 0 <= level <= 1 for level in levels) or 1 not in levels:
        raise ValueError(
            f"search.levels is {levels}, expected kept fractions from 0 to 1 with 1 among them."
        )
