"""Batches for a sequence classifier, whose classes take the place of a vocabulary.

A row is padded on the right, as encoders are trained, and has one prediction. Each class is a token
that may be predicted; everything else is as for a language model.
"""

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sieve.data.batches import TokenBatch, draw_rows, token_batches
from sieve.data.choices import ScoringBatch, encoded_batches
from sieve.data.encoding import EncodedExample, fit_context
from sieve.model.backbone import pad_token_id
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
            f"'{task.name}' has the labels {', '.join(task.labels)}, expected as many labels as "
            "classes, or the same names; set task.labels."
        )
    return tuple(range(len(labels)))


def classifier_batches(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    classes: Sequence[int],
    batch_tokens: int = 8192,
    context_length: int | None = None,
    cut: Callable[[int], None] | None = None,
) -> list[ScoringBatch]:
    """All examples in batches of at most `batch_tokens` padded tokens, longest first.

    Args:
        classes: the class of each choice.
        cut: called with the number of prompts whose field was shortened.
    """
    encode = _encoder(tokenizer, classes, context_length, cut)
    pad = pad_token_id(tokenizer)
    return encoded_batches(encode(examples), pad, batch_tokens, pad_right=True)


def classifier_calibration_batches(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    classes: Sequence[int],
    max_tokens: int | None,
    batch_tokens: int,
    seed: int,
    context_length: int | None = None,
    cut: Callable[[int], None] | None = None,
) -> list[TokenBatch]:
    """Shuffled rows until `max_tokens` tokens are reached; the target is the class of the row.

    The target is in the last column, wherever the row ends. classes, cut: as `classifier_batches`.
    """
    encode = _encoder(tokenizer, classes, context_length, cut)
    rows = draw_rows(examples, encode, max_tokens, seed)
    return token_batches(rows, pad_token_id(tokenizer), batch_tokens, pad_right=True)


def _encoder(
    tokenizer: PreTrainedTokenizerBase,
    classes: Sequence[int],
    limit: int | None,
    cut: Callable[[int], None] | None,
) -> Callable[[Sequence[Example]], list[EncodedExample]]:
    """Returns a function that encodes prompts with the special tokens that the model expects."""
    choices = tuple((label,) for label in classes)

    def encode(examples: Sequence[Example]) -> list[EncodedExample]:
        if not examples:
            return []
        rows = tokenizer([example.prompt for example in examples], verbose=False)["input_ids"]
        return [
            EncodedExample(tuple(row), choices, example.answer)
            for row, example in zip(rows, examples, strict=True)
        ]

    return lambda examples: fit_context(encode, examples, limit, cut)
