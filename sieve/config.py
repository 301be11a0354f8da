"""The settings of a run: dataclasses with the keys of `conf/`, whose comments explain each key."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sieve.tasks import TaskConfig

# Kept fractions that a search may choose from; 1 is the dense matrix, 0 leaves its mean output.
LEVELS = tuple(
    float(level)
    for level in "1 .95 .9 .85 .8 .75 .7 .65 .6 .55 .5 .45 .4 .35 .3 .25 .2 .175 .15 .125 "
    ".1 .085 .07 .06 .05 .04 .03 .02 .01 .005 0".split()
)
INITS = ("random", "pca", "optimal")  # of projection=learned
FORMATS = ("factorized", "dense", "onnx", "onnx_int8", "gguf")  # of an export
EXPORTS = ("none", *FORMATS)
# What a run may set of lightning.Trainer: where it runs, not how long.
TRAINER_KEYS = tuple(
    "_target_ accelerator devices num_nodes strategy deterministic benchmark profiler".split()
)
GROUP_SIZES = (32, 64, 128, 256)  # that torchao's int4 kernels support
SHARDED = "sieve.distributed.strategy.ShardedStrategy"


def shards(trainer: dict[str, Any]) -> bool:
    """Whether a trainer's settings shard the model's weights over ranks (trainer=fsdp)."""
    strategy = trainer.get("strategy")
    return isinstance(strategy, dict) and strategy.get("_target_") == SHARDED


@dataclass
class ModelConfig:
    """The model, from the Hub, a local directory or a GGUF file (`conf/model`)."""

    path: str = ""
    adapter: str | None = None
    name: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    allow_partial: bool = False
    architecture: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The model's name in results."""
        if self.name:
            return self.name
        names = [self.path, self.adapter] if self.adapter else [self.path]
        return "-".join(Path(name).expanduser().resolve().name for name in names)


@dataclass
class CalibrationConfig:
    """Which tokens the moments see, and how each token counts (`conf/calibration`)."""

    tokens: int = 50_000
    rows: int | None = None
    answers: str = "margin"
    weighting: str = "auto"
    mix: dict[str, TaskConfig] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    checkpointing: bool = False
    layers_at_once: int | None = None
    strategy: str = "whole"
    hidden: str = "disk"


@dataclass
class LearningConfig:
    """How projection=learned trains, by default as the paper's re-implementation reports."""

    level: float = 0.5
    tied: bool = True
    init: str = "pca"
    tokens: int = 200_000
    batch_tokens: int = 5_000
    epochs: int = 2


@dataclass
class ProjectionConfig:
    """How a matrix becomes factors (`conf/projection`)."""

    name: str = "loss_aware"
    storage: str = "pivoted"
    rank_multiple: int = 16
    dtype: str = "auto"
    damping: float | None = None
    refit: bool = True
    refit_target: str = "output"
    refit_tries: int = 3
    refit_tokens: int = 20_000
    tune_steps: int = 0
    learning_rate: float = 1e-3
    prune_head: bool = False
    prune_embedding: bool = False
    joint: bool = False
    narrow: bool = False
    learning: LearningConfig = field(default_factory=LearningConfig)


@dataclass
class SearchConfig:
    """How a genome is chosen (`conf/search`)."""

    method: str = "waterfill"  # the search: uniform, waterfill, random, evopress or genetic
    levels: list[float] = field(default_factory=lambda: list(LEVELS))
    normalize: str = "none"
    judge: str = "divergence"
    rounds: int = 2
    rows: int | None = None
    confirmation: float = 0.0
    candidates: int = 12
    alleles: str = "ranks"
    seeds: list[str] = field(default_factory=lambda: ["uniform", "waterfill", "measured"])
    evaluations: int = 300
    examples: int | None = None
    bottlenecks: bool = False
    recover: bool | None = None

    @property
    def fits_all_rows(self) -> bool:
        """Whether hundreds of genomes are compared on all selection rows, so none is fresh."""
        from sieve.report.genomes import LINES

        return self.method not in LINES and self.confirmation == 0


@dataclass
class SweepConfig:
    """Which job of a genetic search this process runs. The sweeper sets it, a user never does."""

    job: str = ""  # prepare, finalize, or empty
    genomes: str | None = None  # file of the genomes that this job scores
    ledger: str | None = None  # file of all scored genomes, for the last job


@dataclass
class RecoveryConfig:
    """How a pruned model is trained (`conf/recovery`)."""

    method: str = "none"
    student_prompt: str | None = None
    unlabelled: bool = True
    rank: int = 8
    alpha: int = 16
    factors: str = "both"
    loss: str = "both"
    hidden: float = 1.0
    steps: int = 400
    short_steps: int = 300
    minutes: float | None = None
    tries: int = 8
    first: float = 0.3
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    ema_decay: float = 0.98
    accumulate: int = 1
    tokens: int = 200_000
    batch_tokens: int = 1_024
    check_every: int = 50
    patience: int = 8
    max_norm: float = 1.0


@dataclass
class VocabularyConfig:
    """Which tokens the model and its tokenizer have (`conf/vocabulary`)."""

    method: str = "none"
    min_rows: int = 1
    fill: float = 0.06


@dataclass
class QuantizationConfig:
    """In how many bits weights are stored (`conf/quantization`)."""

    method: str = "none"
    group_size: int = 32


@dataclass
class DeviceConfig:
    """What one device can do. What is null is measured on the machine at hand.

    tflops: per dtype, at its best; utilization: the share of it that a model's passes reach, and
    solver_utilization that of float64 which eigenvectors reach. thread_solver_utilization is what
    they reach on one thread of a CPU.
    """

    name: str = "auto"  # what the table calls it
    accelerator: str | None = None  # cpu, gpu; null: that of the trainer
    memory_gib: float | None = None  # null: measured on the machine at hand
    tflops: dict[str, float] = field(default_factory=dict)  # float64, float32, bfloat16, float16
    bandwidth_gb: float | None = None  # of its memory, a second
    utilization: float = 0.4
    solver_utilization: float = 0.02
    thread_solver_utilization: float | None = None  # null: measured, or of no use on a GPU
    layer_ms: float = 0.8  # of a decoder block at least, however few the tokens
    overhead_gib: float = 0.6  # what is taken before the first tensor
    disk_gb: float = 0.5  # written a second


@dataclass
class ExportConfig:
    """The format of the exported model, and how it is checked (`conf/export`)."""

    format: str = "factorized"
    storage: str | None = None  # of factors: plain, pivoted; None: as the bank has them
    merge_head: bool = False  # write output head and embedding as dense matrices
    check_rows: int = 64  # 0: do not check
    gguf_dtype: str = "auto"  # of matrices: auto, float32, float16, bfloat16 or q8_0
    allow_larger: bool = False  # GGUF only: write a file that is no smaller than the dense model's


@dataclass
class SpeedConfig:
    """How the speeds of the dense and the pruned model are compared (`conf/config.yaml`)."""

    enabled: bool = True
    batch_size: int = 8
    prompt_tokens: int = 128
    new_tokens: int = 16
    repeats: int = 5


@dataclass
class LauncherConfig:
    """Where the jobs of a sweep run (`conf/launcher`)."""

    workers: int = 1


@dataclass
class LoggerConfig:
    """What Weights & Biases gets (`conf/logger`)."""

    wandb: bool = True
    mode: str = "auto"
    project: str = "sieve"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    artifact: bool = False


@dataclass
class PathsConfig:
    """The folders of runs and of finished stages (`conf/paths`)."""

    runs_dir: str = "runs"
    cache_dir: str = "~/.cache/sieve"


@dataclass
class Config:
    """One run (`conf/config.yaml`)."""

    task: TaskConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    trainer: dict[str, Any] = field(default_factory=dict)  # keywords of lightning.Trainer
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    also: dict[str, TaskConfig] = field(default_factory=dict)
    tolerance: float = 0.02
    curve: list[float] = field(default_factory=list)
    confidence: float | None = 0.9
    until: str | None = None
    inspect: Any = False  # true, false or data
    dry_run: bool = False
    device: DeviceConfig = field(default_factory=DeviceConfig)
    batch_tokens: int | None = None
    share_prefix: float = 0.25
    seed: int = 0

    @property
    def recovers(self) -> bool:
        """Whether sizes are tried by what they are after training."""
        return self.recovery.method != "none" and self.search.recover is not False

    @property
    def only_runs(self) -> bool:
        """Whether stages after the fit only run the model: they neither train nor rewrite it."""
        projection, export = self.projection, self.export
        trains = projection.tune_steps or self.recovery.method != "none"
        rewrites = (
            projection.narrow
            or self.quantization.method != "none"
            or self.vocabulary.method != "none"
            or export.format not in ("none", "factorized", "dense")
            or export.storage is not None
            or export.merge_head
        )
        return not (trains or rewrites or self.search.method == "genetic")

    @property
    def tests(self) -> int:
        """How many choices are tested on the same selection rows; each of them may be wrong.

        These are the search or the sizes after training, a refit, a training of one size, and a
        quantization.
        """
        refits = self.projection.refit or self.projection.tune_steps > 0
        trains = self.recovery.method != "none"
        changes = [not self.recovers and refits, not self.recovers and trains]
        return 1 + sum(changes) + (self.quantization.method != "none")

    @property
    def test_confidence(self) -> float | None:
        """The confidence of each of the `tests`, so that all of them keep `confidence`."""
        if self.confidence is None:
            return None
        return 1 - (1 - self.confidence) / self.tests
