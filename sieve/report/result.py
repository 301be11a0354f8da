"""`result.json` as typed objects, so that the report reads `result.drop.point`.

`read` accepts any mapping: a missing key, a null, a number that is not finite and a value of the
wrong type become None, an empty text or an empty list. Files of older versions render as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sieve.report.building import Number, build
from sieve.report.data import Calibration, Data
from sieve.report.flips import ClassScore, Flips
from sieve.report.recovery import Recovery


@dataclass(frozen=True)
class Drop:
    """How much worse the pruned model is on the test rows, and the 95 % paired interval."""

    point: Number
    low: Number
    high: Number
    upper: Number  # one-sided bound at the run's `confidence`; None without it
    mcnemar_p: Number


@dataclass(frozen=True)
class TestScore:  # of a model on the test rows
    accuracy: Number
    chance: Number  # measured for the dense model only
    beats_chance: bool | None
    inverted: bool | None  # significantly worse than chance
    not_finite: Number  # rows on which it computed NaN or infinity


@dataclass(frozen=True)
class Comparison:
    """Both models on the test rows of one task."""

    metric: str
    relative: bool  # smaller is better, and a drop is a fraction of the dense model's value
    domain: str
    baseline: TestScore
    pruned: TestScore
    examples: Number
    drop: Drop


@dataclass(frozen=True)
class KeptFraction:  # of the parameters
    prunable: Number
    model: Number


@dataclass(frozen=True)
class Parameters:
    prunable_dense: Number
    prunable_kept: Number
    model_dense: Number
    model_kept: Number


@dataclass(frozen=True)
class Bytes:
    dense: Number  # of weights on disk
    pruned: Number


@dataclass(frozen=True)
class Memory:
    peak_mib: Number  # of the whole run


@dataclass(frozen=True)
class Speed:
    prefill_ratio: Number  # pruned over dense
    decode_ratio: Number
    prefill_spread: Number  # half the range of the repeats' ratios, as a share of the ratio
    decode_spread: Number
    prefill_dense: Number  # tokens per second
    prefill_pruned: Number
    decode_dense: Number
    decode_pruned: Number


@dataclass(frozen=True)
class ShortPrompt:  # tokens and milliseconds of a test row, if the models read different prompts
    student_prompt: str
    dense_tokens_per_row: Number
    pruned_tokens_per_row: Number
    dense_ms_per_row: Number
    pruned_ms_per_row: Number


@dataclass(frozen=True)
class EvaluatedGenome:
    """A genome that was scored on selection rows."""

    kept_fraction: Number
    accuracy: Number
    margin: Number
    divergence: Number
    examples_used: Number
    whole: bool | None  # False: decided before it was scored on all rows
    feasible: bool | None
    chosen: bool
    refitted: bool


@dataclass(frozen=True)
class Generation:  # kept fractions and counts of its genomes
    generation: Number
    best: Number
    median: Number
    low: Number
    high: Number
    feasible: Number
    evaluated: Number
    memo: Number  # genomes that had been evaluated before
    seconds: Number


@dataclass(frozen=True)
class Confirmation:  # the best genomes scored on rows that the search has not used
    rows: Number
    together: bool  # with the rows of the search
    kept_before: Number
    kept: Number
    tried: list[EvaluatedGenome]


@dataclass(frozen=True)
class Bottleneck:
    """The least that one matrix can keep while all others are dense."""

    name: str
    level: Number
    kept_fraction: Number
    evaluations: Number


@dataclass(frozen=True)
class Refit:  # the chosen ranks solved again
    taken: bool
    kept_before: Number
    margin_before: Number  # of the same genome on the selection split
    margin_after: Number
    matrices_changed: Number


@dataclass(frozen=True)
class Search:
    """What the search evaluated, and what it found."""

    method: str
    evaluations: Number
    examples: Number
    baseline_accuracy: Number
    curve: list[EvaluatedGenome]
    generations: list[Generation]
    confirmation: Confirmation | None
    kept_high: dict[str, Number]
    bottlenecks: list[Bottleneck]
    refit: Refit | None


@dataclass(frozen=True)
class TestPoint:
    """A genome on the test rows that the search did not choose."""

    kept_fraction: Number
    accuracy: Number
    drop: Drop
    matrices: Number  # how many matrices were removed
    removed: Number  # the fraction of the prunable parameters in them


@dataclass(frozen=True)
class Contrast:  # the dense model without the matrices that need the most, or the least
    bottlenecks: TestPoint | None
    others: TestPoint | None


@dataclass(frozen=True)
class Quantization:
    """Bytes of the prunable matrices and accuracy on the test rows, before and after."""

    method: str
    quantized: Number
    left: Number
    saved: Number
    bytes_dense: Number
    bytes_before: Number
    bytes_after: Number
    accuracy_before: Number
    accuracy_after: Number


@dataclass(frozen=True)
class Certificate:
    """The drop of the finished model on selection rows, and its bound at a confidence.

    This is the run's confidence, or a higher one if the same rows tested other models before.
    """

    rows: Number
    drop: Number
    upper: Number
    confidence: Number
    certified: bool | None


@dataclass(frozen=True)
class Unlabelled:
    """Rows without labels, and on how many of them the answers of both models differ."""

    rows: Number
    changed: Number
    upper: Number  # bound of the share that differs, at this confidence
    confidence: Number


@dataclass(frozen=True)
class Vocabulary:
    """Tokens of the pruned and the dense model, and the test rows that have no others."""

    tokens: Number
    dense_tokens: Number
    rows: Number  # of the test split
    same: Number  # rows with the dense model's answer; None if answers are written
    rows_kept: Number  # rows whose tokens all stay
    same_kept: Number  # of these


@dataclass(frozen=True)
class Tfidf:  # TF-IDF with logistic regression, without a language model
    accuracy: Number
    rows: Number  # that it was trained on


@dataclass(frozen=True)
class Rivals:
    """What else the task's labels give, on the test rows."""

    tfidf: Tfidf | None
    tuned_dense: Number  # the dense model, if it was tuned first
    trained_on_labels: bool  # whether the pruned model was


@dataclass(frozen=True)
class Export:
    format: str
    accuracy: Number  # of ONNX graphs and 8-bit GGUF files only
    server: str  # the module that serves it


@dataclass(frozen=True)
class Matrix:
    name: str
    kind: str
    layer: int | None
    d_out: Number
    d_in: Number
    level: Number
    rank: Number  # None: dense
    neurons: Number  # that its MLP has kept; None: all
    kept_fraction: Number


@dataclass(frozen=True)
class Spectrum:
    rank_fraction: list[Number]
    energy_left: list[Number]  # the share of output energy lost at each of them


@dataclass(frozen=True)
class Result(Comparison):
    """A finished run."""

    task: str
    model: str
    dense: str  # what the dense model is, if it is not the checkpoint itself
    seed: int | None
    tolerance: Number
    confidence: Number
    projection: str
    storage: str
    kept_fraction: KeptFraction
    parameters: Parameters
    bytes: Bytes
    memory: Memory
    speed: Speed
    prompt: ShortPrompt | None
    search: Search
    also: dict[str, Comparison]
    curve: list[TestPoint]
    contrast: Contrast
    recovery: Recovery | None
    quantization: Quantization | None
    certificate: Certificate | None
    unlabelled: Unlabelled | None
    vocabulary: Vocabulary | None
    rivals: Rivals
    flips: Flips | None
    classes: list[ClassScore]
    export: Export
    data: Data
    calibration: Calibration
    seconds: dict[str, Number]
    cached: dict[str, bool]
    matrices: list[Matrix]
    spectrum: dict[str, Spectrum]
    sieve_version: str
    command: str
    date: str
    device: str
    versions: dict[str, str]

    @property
    def total_seconds(self) -> Number:
        """The time of all stages together."""
        stages = [value for value in self.seconds.values() if value is not None]
        return sum(stages) if stages else None

    @property
    def whole_first(self) -> bool:
        """Whether embeddings shrank too, so that the whole model's kept fraction tells the most."""
        factorized = any(m.kind == "embedding" and m.rank is not None for m in self.matrices)
        return self.vocabulary is not None or factorized


def read(record: Mapping[str, object]) -> Result:
    """The result that a `result.json` holds."""
    return build(Result, record)
