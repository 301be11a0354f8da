"""A task: three splits of examples, and how they are to be scored."""

from dataclasses import dataclass, field
from typing import Any

from sieve.tasks.example import Example
from sieve.tasks.metrics import Metric, RowMetric
from sieve.tasks.writing import Writing


@dataclass(frozen=True)
class Task:
    """Three splits of examples that share no prompt, and how they are to be scored."""

    name: str
    domain: str
    metric: Metric
    splits: dict[str, list[Example]]  # calibration, selection, test
    report: dict[str, Any]  # rows per split, what was carved, dropped, truncated; JSON-able
    chat: str = "auto"
    delimiter: str = " "
    normalize: str = "none"
    labels: tuple[str, ...] = field(default=())  # classification: the label words
    kind: str = "classification"
    row_metric: RowMetric | None = None  # None: right or wrong, or of text
    writing: Writing | None = None  # of generation
    unit: str = "token"  # of perplexity
    preamble: str = ""  # what stands before every prompt, shots included
    scoring: str = ""  # a fingerprint of the settings that say what a row is worth
    harness: bool = False  # encode prompts and answers as lm-evaluation-harness does
