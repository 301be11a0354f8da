"""Calibration batches in pairs: the same rows as the pruned model and as the dense model read them.

Both batches of a pair have the same rows in the same order and the same answer tokens, so the
dense model's answers to its long prompt teach the pruned model, which reads a short one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from sieve.data.batches import TokenBatch, bucket, token_batch
from sieve.data.calibration_rows import draw_rows, drawn_order, shares_prefix
from sieve.data.datamodule import SieveDataModule
from sieve.data.encoding import EncodedExample, Tokens
from sieve.data.reader import Reader
from sieve.model.backbone import pad_token_id
from sieve.tasks.example import Example
from sieve.tasks.student import with_ending
from sieve.tasks.task import Task

Pair = tuple[TokenBatch, TokenBatch]
COMPARED = 64  # longest calibration rows, whose answers are compared before a run begins
ENDINGS = ("\n", "", " ")  # of a short prompt, tried in this order
DIFFERENT = (
    "task '{}': answers have other tokens after recovery.student_prompt than after the prompt of "
    "the dense model, expected the same; let it end as task.prompt does, or set task.chat=never."
)


def paired_calibration_batches(
    student: SieveDataModule, dense: SieveDataModule, batch_tokens: int, tokens: int | None
) -> list[Pair]:
    """Batches of the pruned model, each with the dense model's batch of the same rows.

    `student.calibration_batches(batch_tokens, tokens)` has the same rows and the same limits. A
    batch has fewer rows where the dense model's prompts would exceed its own limit, the larger one
    of `batch_tokens` and `dense.batch_tokens`.

    Args:
        student: of the task as the pruned model reads it; other tasks of its mix have one prompt.
        dense: of the task as the dense model reads it; the same object if both read one prompt.

    Raises:
        ValueError: the answers of a row have other tokens in the two prompts.
    """
    if dense is student:
        batches = student.calibration_batches(batch_tokens, tokens)
        return list(zip(batches, batches, strict=True))
    pairs = list[Pair]()
    for task, portion in student.mix:
        limit = None if tokens is None else max(1, round(tokens * portion))
        if task is student.task:
            pairs += _pairs(student, dense, batch_tokens, limit)
            continue
        batches = student.reader.calibration(
            task, limit, batch_tokens, student.seed, share=student.share_calibration
        )
        pairs += zip(batches, batches, strict=True)
    return pairs


def dense_examples(examples: Sequence[Example]) -> list[Example]:
    """Examples of the pruned model as the dense model reads them."""
    return [example.twin or example for example in examples]


def with_same_answers(task: Task, dense: Task, reader: Reader) -> tuple[Task, str | None]:
    """The pruned model's task whose answers have the dense model's tokens, and its prompts' ending.

    Answers have no delimiter behind a chat template, so the short prompt then ends otherwise. None:
    prompts end as they are rendered, and the delimiter follows.

    Raises:
        ValueError: the answers have other tokens whatever the ending, or a long prompt exceeds the
            context.
    """
    rows = task.splits["calibration"]
    longest = sorted(rows, key=lambda row: -len((row.twin or row).prompt))[:COMPARED]
    long = reader.encode(dense, dense_examples(longest))
    some = replace(task, splits={"calibration": longest}, unlabelled=[])
    for ending in (None, *ENDINGS):
        tried = some if ending is None else with_ending(some, ending)
        if same_answers(reader.encode(tried, tried.splits["calibration"]), long):
            return (task if ending is None else with_ending(task, ending)), ending
    raise ValueError(DIFFERENT.format(task.name))


def same_answers(student: Sequence[EncodedExample], dense: Sequence[EncodedExample]) -> bool:
    """Whether every choice of every example has the same tokens in both prompts."""
    return all(_scored(one) == _scored(other) for one, other in zip(student, dense, strict=True))


def _scored(encoded: EncodedExample) -> list[Tokens]:
    return [encoded.scored(index) for index in range(len(encoded.choices))]


def _pairs(
    student: SieveDataModule, dense: SieveDataModule, batch_tokens: int, tokens: int | None
) -> Iterator[Pair]:
    examples, reader = student.task.splits["calibration"], student.reader
    sharing = reader.sharing if student.share_calibration else None
    encode = partial(reader.encode, student.task)
    rows, prefix, longest = draw_rows(examples, encode, tokens, student.seed, sharing=sharing)
    order = drawn_order(len(examples), student.seed)[: len(rows)]
    long_rows = dense.reader.encode(dense.task, dense_examples([examples[i] for i in order]))
    if not same_answers(rows, long_rows):
        raise ValueError(DIFFERENT.format(student.task.name))
    pad, pad_right = pad_token_id(reader.tokenizer), reader.classes is not None
    common, most = dense.reader.sharing.prefix(long_rows) if dense.reader.sharing else ((), 0)
    widest = max(batch_tokens, dense.batch_tokens)
    for shares in (True, False):
        own = prefix if shares else ()
        chosen = [i for i, row in enumerate(rows) if shares_prefix(row, longest) == shares]
        sizes = [(1, len(rows[i].answer_row()) - len(own)) for i in chosen]
        for group in bucket(sizes, batch_tokens):
            length = max(len(long_rows[chosen[place]].answer_row()) for place in group)
            lent = common if length <= most else ()
            step = max(1, widest // (length - len(lent)))
            for start in range(0, len(group), step):
                some = [chosen[place] for place in group[start : start + step]]
                yield (
                    token_batch([rows[i] for i in some], pad, pad_right, own),
                    token_batch([long_rows[i] for i in some], pad, pad_right, lent),
                )
