"""A task in numbers for a dry run: rows of each split and tokens of a row.

Rows on this machine (a folder, or Almanac) are counted, and the first ones are encoded as a run
encodes them. Without rows or a tokenizer, the numbers come from `task.typical`. Nothing is
downloaded.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sieve.config import Config, ModelConfig
from sieve.costs.batches import CPU_TOKENS
from sieve.data.batches import TokenBatch
from sieve.data.classifier import classes_of
from sieve.data.prefix import prefix_of
from sieve.data.reader import Reader
from sieve.data.scored import ScoredBatch
from sieve.data.sharing import PrefixSharing
from sieve.model.backbone import context_length, is_classifier
from sieve.model.checkpoint_files import find_model, load_tokenizer
from sieve.tasks import Task, TaskConfig, task_by_shots
from sieve.tasks.config import UNLABELLED
from sieve.tasks.shots import counts_to_measure, fewest_shots
from sieve.tasks.splits import CARVED_FRACTION, FILLED_FRACTION

SAMPLED = 64  # rows of a split that are encoded
CHARACTERS_PER_TOKEN = 4  # without a tokenizer and `task.typical`


@dataclass(frozen=True)
class Lengths:
    """Sizes of a task: numbers of rows, lengths in tokens, and their source."""

    rows: Mapping[str, int]  # of each split, and of `unlabelled` if there are any
    calibration: float  # of a calibration row, prompt and answer, without `prefix`
    scored: float  # of a row that is scored
    source: str  # where these numbers come from, in words
    passes: float = 1.0  # rows that the model runs to score one example
    answer: float = 1.0  # tokens of an answer
    written: int = 0  # that the model writes at most; 0 if answers are chosen
    shared: float = 0.0  # tokens of `scored` that all rows begin with, which run once
    prefix: float = 0.0  # tokens before each calibration row, which run once for each batch


def lengths_of(config: TaskConfig, run: Config, model: PreTrainedModel) -> Lengths:
    """A task of a run in numbers. The model's tensors may have no memory.

    Raises ValueError if the task is not valid, or has neither rows nor `task.typical`.
    """
    config.validate()
    typical, source = config.typical, "stated in task.typical"
    if (
        not rows_are_local(config)
        and "tokens" in typical
        and "calibration" in typical.get("rows", {})
    ):
        rows = _stated_rows(config)
    else:
        tasks = tasks_by_length(config, run.seed)
        if tokenizer := local_tokenizer(run.model):
            for longer in tasks[:-1]:
                with suppress(ValueError):  # Its prompts exceed the context.
                    return measured(longer, run, tokenizer, model)
            return measured(tasks[-1], run, tokenizer, model)
        task = tasks[0]
        rows = _rows_of(task)
        source = f"rows counted, lengths {source}"
        if "tokens" not in typical:
            source = f"rows counted, tokens guessed at {CHARACTERS_PER_TOKEN} characters each"
            first = task.splits["calibration"][:SAMPLED]
            characters = fmean(len(row.prompt + row.choices[row.answer]) for row in first)
            typical = {**typical, "tokens": max(1.0, characters / CHARACTERS_PER_TOKEN)}
    tokens = min(float(typical["tokens"]), context_length(model) or math.inf)
    answer = typical.get("answer", tokens if config.kind == "perplexity" else 1.0)
    written = config.max_new_tokens if config.kind == "generation" else 0
    return Lengths(rows, tokens, tokens, source, typical.get("passes", 1.0), answer, written)


def rows_are_local(config: TaskConfig) -> bool:
    """Whether the rows of a task are on this machine."""
    return config.data_dir is not None or config.almanac is not None


def _stated_rows(config: TaskConfig) -> dict[str, int]:
    """The rows of `task.typical`, after splits are carved and filled as in a run."""
    rows = {role: int(count) for role, count in config.typical["rows"].items()}
    whole = rows["calibration"]
    for role in CARVED_FRACTION.keys() - rows:
        rows[role] = round(CARVED_FRACTION[role] * whole)
        rows["calibration"] -= rows[role]
    wanted = min(config.selection_rows, config.max_rows.get("selection") or math.inf)
    moved = min(wanted - rows["selection"], round(FILLED_FRACTION * rows["calibration"]))
    rows["selection"] += max(0, int(moved))
    rows["calibration"] -= max(0, int(moved))
    return {role: min(count, config.max_rows.get(role) or count) for role, count in rows.items()}


def tasks_by_length(config: TaskConfig, seed: int) -> list[Task]:
    """The task with each number of shots that its settings allow, most first."""
    try:
        task_of = task_by_shots(config, seed)
    except RuntimeError as error:
        raise ValueError(
            f"{error} A dry run does without the rows of '{config.name}' if you set "
            "'+task.typical.tokens=200' and the rows of each split, as conf/task/medqa.yaml does."
        ) from error
    rows = len(task_of(fewest_shots(config)).splits["calibration"])
    return [task_of(count) for count in reversed(counts_to_measure(config, rows))]


def local_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase | None:
    """The model's tokenizer if it is on this machine."""
    with suppress(ValueError, RuntimeError):
        return load_tokenizer(model, find_model(model.path, weights=False), local_files_only=True)
    return None


def reader_of(config: Config, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> Reader:
    """How the model of a run reads rows; its tensors may have no memory."""
    classes = partial(classes_of, model) if is_classifier(model) else None
    sharing = None if classes else PrefixSharing(config.share_prefix, lambda: math.inf)
    return Reader(tokenizer, context_length(model), classes, sharing=sharing)


def measured(
    task: Task, run: Config, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> Lengths:
    """The sizes of a task, measured on batches of its first rows.

    model: its tensors may have no memory.
    """
    reader = reader_of(run, tokenizer, model)
    first = {role: examples[:SAMPLED] for role, examples in task.splits.items()}
    some, tokens = replace(task, splits=first), run.batch_tokens or CPU_TOKENS
    shares = run.calibration.strategy == "whole"
    calibration = reader.calibration(some, None, tokens, run.seed, share=shares)
    scored = reader.scoring(task, [*first["selection"], *first["test"]], tokens)
    answers = sum(int(batch.answer_mask.sum()) for batch in calibration)
    return Lengths(
        _rows_of(task),
        calibration=_mean_length(calibration) - _prefix(calibration),
        scored=_mean_length(scored),
        source=f"measured on {sum(map(len, first.values())):,} rows with the longest prompt that "
        "task.chat and task.shots allow",
        passes=_rows(scored) / sum(len(batch.examples) for batch in scored),
        answer=answers / _rows(calibration),
        written=task.writing.max_new_tokens if task.writing else 0,
        shared=_prefix(scored),
        prefix=_prefix(calibration),
    )


def _rows_of(task: Task) -> dict[str, int]:
    """The rows of each split, and the ones without labels if there are any."""
    rows = {role: len(examples) for role, examples in task.splits.items()}
    return rows | ({UNLABELLED: len(task.unlabelled)} if task.unlabelled else {})


def _rows(batches: Sequence[TokenBatch | ScoredBatch]) -> int:
    return sum(len(batch.input_ids) for batch in batches)


def _prefix(batches: Sequence[TokenBatch | ScoredBatch]) -> int:
    return max(len(prefix_of(batch)) for batch in batches)


def _mean_length(batches: Sequence[TokenBatch | ScoredBatch]) -> float:
    return sum(int(batch.attention_mask.sum()) for batch in batches) / _rows(batches)
