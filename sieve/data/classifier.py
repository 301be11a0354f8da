"""Batches for a sequence classifier, whose classes stand in the place of a vocabulary.

Rows are padded on the right, as encoders are trained; the one position that is scored is the
pooled one. So a class is a token that is predicted, and all else is as for a language model.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sieve.data.batches import IGNORED, TokenBatch, bucket, drawn
from sieve.data.choices import ScoringBatch
from sieve.data.encoding import Tokens
from sieve.data.encoding import shortened as cut_to
from sieve.model.backbone import pad_token_id
from sieve.tasks.example import Example
from sieve.tasks.task import Task


def classes_of(model: PreTrainedModel, task: Task) -> tuple[int, ...]:
    """The class of a classifier that stands for each label of a task.

    By the names in its configuration where these are the labels, else by position.

    Raises:
        ValueError: the task has no labels, or not as many as the model has classes.
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
            f"'{task.name}' the labels {', '.join(task.labels)}, expected as many, or the same "
            "names; set task.labels."
        )
    return tuple(range(len(labels)))


def classifying_batches(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    classes: Sequence[int],
    batch_tokens: int = 8192,
    context_length: int | None = None,
    shortened: Callable[[int], None] | None = None,
) -> list[ScoringBatch]:
    """All examples in batches of at most `batch_tokens` padded tokens, longest first."""
    rows = _encode(examples, tokenizer, context_length, shortened)
    batches = []
    for group in bucket([(1, len(row)) for row in rows], batch_tokens):
        held = _padded([rows[index] for index in group], tokenizer)
        count = len(group)
        places = torch.arange(count)[:, None, None].expand(count, len(classes), 1)
        batches.append(
            ScoringBatch(
                held.input_ids,
                held.attention_mask,
                None,
                1,
                torch.arange(count),
                places,
                torch.tensor(classes)[None, :, None].expand(count, -1, 1),
                torch.ones(count, len(classes), 1, dtype=torch.bool),
                torch.ones(count, len(classes), dtype=torch.int64),
                torch.tensor(group),
                torch.tensor([examples[index].answer for index in group]),
                torch.ones(count, len(classes)),
            )  # fmt: skip
        )
    return batches


def learning_batches(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    classes: Sequence[int],
    max_tokens: int | None,
    batch_tokens: int,
    seed: int,
    context_length: int | None = None,
    shortened: Callable[[int], None] | None = None,
) -> list[TokenBatch]:
    """Shuffled rows until `max_tokens` tokens are reached; the target is the row's class.

    It stands in the last column, wherever the row ends: a classifier has one prediction.
    """
    rows = _encode(examples, tokenizer, context_length, shortened)
    chosen = drawn([len(row) for row in rows], max_tokens, seed)
    batches = []
    for group in bucket([(1, len(rows[index])) for index in chosen], batch_tokens):
        own = [chosen[place] for place in group]
        held = _padded([rows[index] for index in own], tokenizer)
        held.targets[:, -1] = torch.tensor([classes[examples[index].answer] for index in own])
        batches.append(replace(held, answer_mask=held.targets != IGNORED))
    return batches


def _encode(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    shortened: Callable[[int], None] | None,
) -> list[Tokens]:
    """Prompts with the special tokens that the model was trained with, cut where that is asked."""
    if not examples:
        return []
    texts = [example.prompt for example in examples]
    rows = [tuple(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]
    changed = set[int]()
    for index, example in enumerate(examples):
        while limit is not None and len(rows[index]) > limit:
            shorter = cut_to(example, len(rows[index]), limit)
            if shorter is None:
                break
            changed.add(index)
            example = shorter
            rows[index] = tuple(tokenizer(example.prompt, verbose=False)["input_ids"])
    long = [len(row) for row in rows if limit is not None and len(row) > limit]
    if long:
        raise ValueError(
            f"{len(long)} of {len(rows)} prompts are longer than the model's context, the longest "
            f"has {max(long)} tokens, expected at most {limit}; shorten a field that the prompt "
            "names, as task.truncate=FIELD or ++task.max_words.FIELD=100."
        )
    if changed and shortened is not None:
        shortened(len(changed))
    return rows


def _padded(rows: Sequence[Tokens], tokenizer: PreTrainedTokenizerBase) -> TokenBatch:
    """Rows padded on the right, nothing to be predicted yet; positions are the model's business."""
    width = max(map(len, rows))
    input_ids = torch.full((len(rows), width), pad_token_id(tokenizer))
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    targets = torch.full_like(input_ids, IGNORED)
    return TokenBatch(input_ids, mask, None, targets != IGNORED, targets)
