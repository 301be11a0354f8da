"""Pairs of calibration batches: the same rows for the pruned and for the dense model."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from models import tiny_llama, tiny_tokenizer

from sieve.data.batches import TokenBatch
from sieve.data.datamodule import SieveDataModule
from sieve.data.paired import paired_calibration_batches, with_same_answers
from sieve.data.sharing import prefix_sharing_of
from sieve.tasks import Example, Task
from sieve.tasks.metrics import ACCURACY
from sieve.tasks.student import student_task

SHOTS = "the film was good: yes\nthe film was bad: no\n"
TOKENIZER = tiny_tokenizer(model_max_length=512)
TEMPLATE = "{% for m in messages %}[user] {{ m['content'] }}\n{% endfor %}"


def tasks(shots: str = SHOTS, **settings: Any) -> tuple[Task, Task]:
    """A task as the pruned and as the dense model reads it."""
    examples = []
    for i in range(24):
        prompt, choices = f"{'very ' * (i % 5)}film {i}:", (" no", " yes review")
        twin = Example(prompt, choices, i % 2)
        examples.append(replace(twin, prompt=shots + prompt, bare=prompt, twin=twin))
    splits = {"calibration": examples, "selection": examples[:4], "test": examples[:4]}
    long = Task("toy", "general", ACCURACY, splits, {}, chat="never", preamble=shots, **settings)
    return student_task(long), long


def module(task: Task, **options: Any) -> SieveDataModule:
    return SieveDataModule(task, TOKENIZER, **({"batch_tokens": 256} | options))


def rows(batch: TokenBatch) -> list[str]:
    tokens = zip(batch.input_ids, batch.attention_mask.bool(), strict=True)
    return [TOKENIZER.decode(ids[mask]).removeprefix("<bos>") for ids, mask in tokens]


def answers(batch: TokenBatch) -> list[list[int]]:
    return [row[row >= 0].tolist() for row in batch.targets]


@pytest.mark.parametrize("shares", [False, True])
def test_both_batches_hold_the_same_rows_and_the_same_answer_tokens(shares: bool) -> None:
    sharing = prefix_sharing_of(tiny_llama(max_position_embeddings=512)) if shares else None
    short, long = tasks()
    student, dense = module(short, sharing=sharing), module(long, sharing=sharing)
    pairs = paired_calibration_batches(student, dense, 96, 300)
    for own, other in pairs:
        assert [SHOTS + row for row in rows(own)] == rows(other)
        assert answers(own) == answers(other) and all(answers(own))
        assert own.answer_mask.sum() == other.answer_mask.sum()
        assert bool(other.prefix) == shares
    drawn = student.calibration_batches(96, 300)
    assert sorted(r for own, _ in pairs for r in rows(own)) == sorted(
        r for batch in drawn for r in rows(batch)
    )


def test_the_dense_batch_stays_within_its_limit() -> None:
    short, long = tasks(SHOTS * 2)
    student, dense = module(short), module(long)
    pairs = paired_calibration_batches(student, dense, 64, None)
    assert max(other.input_ids.numel() for _, other in pairs) <= 256
    assert sum(len(own.input_ids) for own, _ in pairs) == 24
    longest = max(len(own.input_ids) for own, _ in pairs)
    assert longest < max(len(b.input_ids) for b in student.calibration_batches(256, None))


def test_one_prompt_for_both_models_gives_the_batches_of_the_pruned_model() -> None:
    student = module(tasks()[0])
    pairs = paired_calibration_batches(student, student, 64, 200)
    for (own, other), batch in zip(pairs, student.calibration_batches(64, 200), strict=True):
        assert own is other and torch.equal(own.input_ids, batch.input_ids)


def test_rows_of_other_tasks_have_one_prompt() -> None:
    short, long = tasks()
    other = replace(tasks()[0], name="other")
    student = module(short, mix=lambda: [(short, 0.5), (other, 0.5)])
    pairs = paired_calibration_batches(student, module(long), 96, 200)
    same = [own is dense for own, dense in pairs]
    assert any(same) and not all(same)


def test_a_short_prompt_ends_so_that_answers_have_the_tokens_of_a_chat() -> None:
    tokenizer = tiny_tokenizer(model_max_length=512, chat_template=TEMPLATE)
    short, long = tasks()
    long = replace(long, chat="always")
    reader = replace(module(long).reader, tokenizer=tokenizer)
    task, ending = with_same_answers(short, long, reader)
    assert (ending, task.delimiter) == ("\n", "")
    assert task.splits["test"][0].prompt == short.splits["test"][0].prompt + "\n"
    assert with_same_answers(short, replace(long, chat="never"), reader) == (short, None)


def test_answers_of_other_tokens_are_refused() -> None:
    short, long = tasks()
    other = [
        replace(e, twin=e.twin and replace(e.twin, choices=(" a", " b")))
        for e in short.splits["test"]
    ]
    changed = replace(short, splits={"calibration": other})
    with pytest.raises(ValueError, match="let it end as task.prompt does"):
        with_same_answers(changed, long, module(long).reader)
    with pytest.raises(ValueError, match="answers have other tokens after recovery.student_prompt"):
        paired_calibration_batches(module(changed), module(long), 64, None)


def test_a_long_prompt_beyond_the_context_is_refused_before_the_run() -> None:
    short, long = tasks()
    longest = long.splits["calibration"][9]
    twin = replace(longest, prompt="very " * 400 + longest.prompt)
    rows = [replace(e, twin=twin) if e.twin is longest else e for e in short.splits["calibration"]]
    reader = module(long, context_length=512).reader
    changed = replace(short, splits={"calibration": rows * 8})
    with pytest.raises(ValueError, match="prompts are longer than the model's context"):
        with_same_answers(changed, long, reader)
