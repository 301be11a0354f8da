"""A task: three splits of examples, and how they are scored."""

from dataclasses import dataclass, field, replace

from sieve.tasks.example import NO_ANSWER, Example
from sieve.tasks.metrics import Metric, RowMetric
from sieve.tasks.writing import Writing


@dataclass(frozen=True)
class Task:
    """Three splits of examples that share no prompt, and how they are scored."""

    name: str
    domain: str
    metric: Metric
    splits: dict[str, list[Example]]  # calibration, selection, test
    report: dict[str, object]  # rows read, carved, dropped and truncated; for JSON
    chat: str = "auto"
    delimiter: str = " "
    normalize: str = "none"
    labels: tuple[str, ...] = ()  # classification: the label words
    kind: str = "classification"
    row_metric: RowMetric | None = None  # None: accuracy, or a text's log-likelihood
    writing: Writing | None = None  # generation only
    unit: str = "token"  # perplexity: token, word or byte
    preamble: str = ""  # precedes every prompt, shots included
    scoring: str = ""  # fingerprint of the settings that decide what a row is worth
    unlabelled: list[Example] = field(default_factory=list)  # `answer` says nothing
    harness: bool = False  # encode prompts and answers as lm-evaluation-harness does

    def with_answer(self, example: Example, answer: int | str) -> Example:
        """An example with an answer, in both prompts: a choice's index, or a written text."""
        twin = self.with_answer(example.twin, answer) if example.twin else None
        if isinstance(answer, int):
            return replace(example, answer=answer, relevance=(), twin=twin)
        assert self.writing is not None
        choice = self.delimiter + (answer.strip() or NO_ANSWER)
        read = self.writing.extract_from(answer) or ""
        return replace(example, choices=(choice,), references=(read,), twin=twin)
