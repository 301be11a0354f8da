"""The short prompt of the pruned model (`recovery.student_prompt`), beside the dense model's."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from sieve.bank.genome import Genome
from sieve.bank.switch import Switch
from sieve.data.datamodule import SieveDataModule
from sieve.data.paired import with_same_answers
from sieve.data.scored import ScoredBatch
from sieve.evaluation.speed import compare_rows
from sieve.stages.cached import Record
from sieve.stages.run import Run
from sieve.tasks.student import student_config, student_task

log = logging.getLogger(__name__)
TIMED = 24  # test rows


def with_student_prompt(run: Run) -> Run:
    """The run whose task is what the pruned model reads, with the dense model's task beside it.

    Raises:
        ValueError: no ending of the short prompt gives answers the tokens that they have after the
            long prompt.
    """
    config, dense = run.config, run.task
    prompt = config.recovery.student_prompt
    if prompt is None:
        return run
    reader = replace(run.data_of(dense).reader, cut=None)
    task, ending = with_same_answers(student_task(dense), dense, reader)
    rows = zip(task.splits["test"], dense.splits["test"], strict=True)
    if dense.chat == "never" and all(one.prompt == other.prompt for one, other in rows):
        if run.leads:
            log.warning(
                "recovery.student_prompt=%s is the prompt that the dense model reads too: task "
                "'%s' has no instruction, shots or chat template to leave out. Set task.shots=4.",
                *(prompt, task.name),
            )
        return run
    settings = student_config(config.task, prompt)
    if ending is not None:
        settings = replace(settings, prompt=settings.prompt + ending, delimiter="")
    return replace(run, config=replace(config, task=settings), task=task, dense_task=dense)


def prompt_record(
    run: Run, switch: Switch, genome: Genome, finish: Callable[[], object] | None
) -> Record:
    """Tokens and milliseconds of a test row of both models, each with its own prompt.

    A row is timed alone and runs whole, as a server answers it. Leaves the model dense.

    finish: called after every switch to `genome`, for example to quantize the model.
    """
    speed, pairs = run.config.speed, (run.original_data, run.data)
    dense_tokens, pruned_tokens = (_tokens_per_row(data) for data in pairs)
    dense_ms = pruned_ms = None
    if speed.enabled and run.leads and not run.sharded:
        dense_rows, pruned_rows = (_single_rows(data) for data in pairs)
        dense_ms, pruned_ms = compare_rows(
            switch,
            genome,
            dense_rows,
            pruned_rows,
            speed.repeats,
            finish,
            run.original_model,
        )
    return {
        "student_prompt": run.config.recovery.student_prompt,
        "dense_tokens_per_row": dense_tokens,
        "pruned_tokens_per_row": pruned_tokens,
        "dense_ms_per_row": dense_ms,
        "pruned_ms_per_row": pruned_ms,
    }


def _tokens_per_row(data: SieveDataModule) -> float:
    batches = data.scoring("test")
    tokens = sum(int(batch.attention_mask.sum()) for batch in batches)
    return tokens / sum(len(batch.examples) for batch in batches)


def _single_rows(data: SieveDataModule) -> list[Sequence[ScoredBatch]]:
    """Batches of one test row each, without a shared prefix."""
    examples = data.task.splits["test"]
    reader = replace(data.reader, sharing=None, cut=None)
    some = examples[:: math.ceil(len(examples) / TIMED)]
    return [reader.scoring(data.task, [example], data.batch_tokens) for example in some]
