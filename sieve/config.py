"""Settings of a run: dataclasses mirroring `conf/`, converted once by `sieve.conversion`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sieve.tasks import TaskConfig

# Kept fractions that a search may choose from; 1 is the dense matrix, 0 leaves its mean output.
LEVELS = (
    1, .95, .9, .85, .8, .75, .7, .65, .6, .55, .5, .45, .4, .35, .3, .25, .2, .175, .15,
    .125, .1, .085, .07, .06, .05, .04, .03, .02, .01, .005, 0,
)  # fmt: skip
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
RECOVERIES = ("none", "lora", "full")
SIDES = ("in", "out", "both")  # of a matrix's two factors
LOSSES = ("task", "kl", "both")
COUNTS = (
    "rank", "alpha", "steps", "accumulate", "tokens", "batch_tokens", "check_every", "patience",
)  # fmt: skip
QUANTIZATIONS = ("none", "int8", "int4")
GROUP_SIZES = (32, 64, 128, 256)  # that torchao's kernels for int4 take
SHARDED = "sieve.distributed.strategy.ShardedStrategy"


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
class RecoveryConfig:
    """How a pruned model is trained; mirrors `conf/recovery`."""

    method: str = "none"  # none, lora, full
    rank: int = 8  # of the LoRA matrices
    alpha: int = 16  # their product is scaled by alpha / rank
    factors: str = "both"  # which of the two the LoRA matrices are added to: in, out, both
    loss: str = "both"  # task: right answers; kl: the dense model's answers; both: their sum
    steps: int = 400  # of the optimizer, at most
    learning_rate: float = 1e-3  # the largest: warm-up over a tenth, then cosine decay to 0
    accumulate: int = 1  # batches per step
    tokens: int = 200_000  # of the calibration prompts, padding not counted
    batch_tokens: int = 2_048  # of a batch, padding counted
    check_every: int = 50  # steps between two looks at rows it is not trained on
    patience: int = 4  # looks without improvement before it stops
    max_norm: float = 1.0  # of the gradient


@dataclass
class QuantizationConfig:
    """How weights are stored: as they are, or in 8 or 4 bits."""

    method: str = "none"
    group_size: int = 32  # int4: weights of a row that share a scale


@dataclass
class DeviceConfig:
    """What one device can do. What is null is measured on the machine at hand.

    tflops: per dtype, at its best; utilization: the share of it that a model's passes reach, and
    solver_utilization that of float64 which eigenvectors reach.
    """

    name: str = "auto"  # what the table calls it
    accelerator: str | None = None  # cpu, gpu; null: that of the trainer
    memory_gib: float | None = None  # null: measured on the machine at hand
    tflops: dict[str, float] = field(default_factory=dict)  # float64, float32, bfloat16, float16
    bandwidth_gb: float | None = None  # of its memory, a second
    utilization: float = 0.4
    solver_utilization: float = 0.02
    layer_ms: float = 0.8  # of a decoder block at least, however few the tokens
    overhead_gib: float = 0.6  # what is taken before the first tensor
    disk_gb: float = 0.5  # written a second
    host_gflops: float = 20.0  # of the processor beside it, float64, in pivoted QR


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
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
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
    device: DeviceConfig = field(default_factory=DeviceConfig)  # that a dry run reckons with
    batch_tokens: int = 8_192  # of a forward pass, padding counted
    share_prefix: float = 0.25  # least part of a typical row that is worth being shared; 2: never
    seed: int = 0
