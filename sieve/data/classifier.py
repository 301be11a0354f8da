"""Prompts for a sequence classifier, whose classes take the place of a vocabulary.

Each class is a token that may be predicted after the whole row. Rows are padded on the right, as
encoders are trained; everything else is as for a language model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sieve.data.encoding import EncodedExample, fit_context
from sieve.tasks.example import Example
from sieve.tasks.task import Task


def classes_of(model: PreTrainedModel, task: Task) -> tuple[int, ...]:
    """The classes of a classifier that stand for the labels of a task.

    Labels are matched by the names in the model's configuration, or else by position.

    Raises:
        ValueError: the task has no labels, or the model has a different number of classes.
    """
    if task.kind != "classification":
        raise ValueError(
            f"{type(model).__name__} is a classifier and task '{task.name}' is of kind "
            f"'{task.kind}', expected task.kind=classification; choose a causal language model."
        )
    names = {str(name).casefold(): int(i) for i, name in (model.config.id2label or {}).items()}
    labels = [label.strip().casefold() for label in task.labels]
    if all(label in names for label in labels):
        return tuple(names[label] for label in labels)
    if len(labels) != model.config.num_labels or len(labels) < 2:
        raise ValueError(
            f"the model has {model.config.num_labels} classes ({', '.join(names)}) and task "
            f"'{task.name}' has the labels {', '.join(task.labels)}, expected labels that "
            "match the names of classes, or one label per class in their order; set task.labels."
        )
    return tuple(range(len(labels)))


@dataclass(frozen=True)
class ClassifierEncoder:
    """Encodes prompts with the special tokens that a classifier expects.

    Args:
        classes: the class of each choice.
        context_length: the most tokens of a row; None does not check.
        cut: called with the number of prompts whose field was shortened.
    """

    tokenizer: PreTrainedTokenizerBase
    classes: Sequence[int]
    context_length: int | None = None
    cut: Callable[[int], None] | None = None

    def encode(self, examples: Sequence[Example]) -> list[EncodedExample]:
        """Examples with their classes as choices; ValueError if a prompt is too long."""
        return fit_context(self._encode, examples, self.context_length, self.cut)

    def _encode(self, examples: Sequence[Example]) -> list[EncodedExample]:
        if not examples:
            return []
        rows = self.tokenizer([example.prompt for example in examples], verbose=False)["input_ids"]
        choices = tuple((label,) for label in self.classes)
        return [
            EncodedExample(tuple(row), choices, example.answer)
            for row, example in zip(rows, examples, strict=True)
        ]
