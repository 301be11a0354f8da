"""Settings of a run: dataclasses mirroring `conf/`, converted and checked once, at the edge."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sieve.device_settings import DeviceSettings
from sieve.genome import LEVELS
from sieve.moments import Needs
from sieve.quantization_settings import QuantizationSettings
from sieve.recovery_settings import RecoverySettings
from sieve.tasks import TaskConfig

ASSETS = Path(__file__).parent / "assets"
DTYPES = ("auto", "float32", "bfloat16", "float16")
SEARCHES = ("uniform", "waterfill", "random", "evopress", "genetic")
ALLELES = ("ranks", "levels")  # of a gene: ranks some 10 % apart, or the levels of the grid
SEEDS = ("uniform", "waterfill", "measured")
JUDGES = ("divergence", "margin")
JOBS = ("", "prepare", "finalize")  # of a genetic search, beside its shards
ANSWERS = ("margin", "sampled", "gold")
STRATEGIES = ("whole", "stream")  # of calibration
HIDDEN = ("disk", "memory")  # where hidden states wait when streaming
INITS = ("random", "pca", "optimal")  # of `learned`
TARGETS = ("output", "residual")  # of a refit
EXPORTS = ("none", "factorized", "dense", "onnx", "onnx_int8")
# What a run may ask of lightning.Trainer: where it runs, not how much of it.
TRAINER_KEYS = (
    "_target_", "accelerator", "devices", "num_nodes", "strategy", "deterministic", "benchmark",
    "profiler",
)  # fmt: skip
SHARDED = "sieve.strategy.ShardedStrategy"


def shards(trainer: dict[str, Any]) -> bool:
    """Whether a trainer's settings ask for a model that is shared out over ranks."""
    strategy = trainer.get("strategy")
    return isinstance(strategy, dict) and strategy.get("_target_") == SHARDED


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
    # What config.json says, for dry_run and inspect where that is not on this machine; of: the path
    # that it is of, so that another path is not taken for it.
    architecture: dict[str, Any] = field(default_factory=dict)

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
    strategy: str = "whole"  # or stream: one block of the model in memory, read from its files
    hidden: str = "disk"  # where hidden states wait when streaming: disk or memory

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

    method: str = "waterfill"  # chosen with search=
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
class LauncherConfig:
    """How many jobs of a sweep run at a time; where they run is Hydra's part."""

    workers: int = 1


@dataclass
class LoggerConfig:
    """Weights & Biases: mode auto is online with a key and offline without."""

    wandb: bool = True
    mode: str = "auto"
    project: str = "sieve"
    entity: str | None = None
    group: str | None = None  # null: the experiment's name, else the sweep's
    tags: list[str] = field(default_factory=list)  # beside task, model, search and projection
    artifact: bool = False  # keep the export and result.json there as an artifact


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
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    # Other tasks on whose test rows both models are scored too: +task@also.NAME=NAME.
    also: dict[str, TaskConfig] = field(default_factory=dict)
    tolerance: float = 0.02  # ε: accuracy that may be lost, as a fraction
    # Kept fractions whose accuracy on the test rows is measured too; nothing is chosen by it.
    curve: list[float] = field(default_factory=list)
    guarantee: bool = False  # hold the interval's upper end, not the point, to the tolerance
    until: str | None = None  # fit: end once the bank stands
    inspect: bool = False  # show the model's matrices, and do no more
    dry_run: bool = False  # show what the run will cost, and do no more
    device: DeviceSettings = field(default_factory=DeviceSettings)  # that a dry run reckons with
    batch_tokens: int = 8_192  # of a forward pass, padding counted
    share_prefix: float = 0.25  # least part of a typical row that is worth being shared; 2: never
    seed: int = 0


def register_resolvers() -> None:
    """What YAML may ask for.

    `${asset:name}` is the path of something shipped in `sieve/assets`; `${sweep_unless:a,b}` is
    Hydra's mode of what is a sweep, but a single run where any of the arguments is true.
    """
    OmegaConf.register_new_resolver("asset", lambda name: str(ASSETS / name), replace=True)
    OmegaConf.register_new_resolver(
        "sweep_unless", lambda *flags: "RUN" if any(flags) else "MULTIRUN", replace=True
    )


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
    from sieve.checks import check

    assert isinstance(config, Config)
    for task in (config.task, *config.also.values(), *config.calibration.mix.values()):
        task.preamble = task.preamble.replace("\\n", "\n")
    check(config)
    return config
