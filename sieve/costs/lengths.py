"""A task in numbers for a dry run: rows of each split and tokens of a row.

Rows on this machine (a folder, or Almanac) are counted and their first ones encoded. Otherwise the
numbers come from `task.typical`, and nothing is downloaded.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sieve.config import Config, ModelConfig
from sieve.data.encoding import EncodedExample, encode_examples
from sieve.data.prefix import PrefixSharing
from sieve.model.checkpoint_files import hub_options
from sieve.tasks import Example, Task, TaskConfig, build_task
from sieve.tasks.splits import CARVED_FRACTION

SAMPLED = 64  # rows of a split that are encoded
CHARACTERS_PER_TOKEN = 4  # without a tokenizer


@dataclass(frozen=True)
class Lengths:
    """Sizes of a task: lengths in tokens, numbers of rows and passes, and their source."""

    rows: Mapping[str, int]  # of each split
    calibration: float  # of a calibration row, prompt and answer
    scored: float  # of a row that is scored
    passes: float  # rows that one example is scored by
    answer: float
    written: int  # that the model writes at most; 0 if answers are chosen
    source: str  # where these numbers come from, in words
    shared: float = 0.0  # of `scored`, which all rows begin with and which are run once


def lengths_of(config: TaskConfig, run: Config, context: int | None, classifies: bool) -> Lengths:
    """A task of a run in numbers.

    Args:
        context: the longest input of the model, in tokens.
        classifies: whether the model is a classifier.

    Raises ValueError if the task is not valid, or has neither rows nor `task.typical`.
    """
    config.validate()
    written = config.max_new_tokens if config.kind == "generation" else 0
    local = config.data_dir is not None or config.almanac is not None
    typical = config.typical.get("tokens") and "calibration" in config.typical.get("rows", {})
    if typical and not local:
        return _stated(config, context, written)
    try:
        task = build_task(config, run.seed)
    except RuntimeError as error:
        if local:
            raise
        raise ValueError(
            f"task '{config.name}' has neither rows on this machine nor task.typical; set "
            "task.data_dir to a folder, or set '+task.typical.tokens=200' and the rows of each "
            "split, as conf/task/medqa.yaml does."
        ) from error
    rows = {role: len(examples) for role, examples in task.splits.items()}
    samples = {role: examples[:SAMPLED] for role, examples in task.splits.items()}
    every = [example for examples in samples.values() for example in examples]
    tokenizer = _tokenizer(run.model)
    if tokenizer is None:
        texts = [example.prompt + example.choices[example.answer] for example in every]
        tokens = max(1.0, fmean(map(len, texts)) / CHARACTERS_PER_TOKEN)
        answer = tokens if config.kind == "perplexity" else 1.0
        source = f"rows counted, tokens guessed at {CHARACTERS_PER_TOKEN} characters each"
        return Lengths(rows, tokens, tokens, 1.0, answer, written, source)
    source = f"measured on {len(every):,} rows"
    if classifies:
        tokens = fmean(map(len, tokenizer([example.prompt for example in every])["input_ids"]))
        return Lengths(rows, tokens, tokens, 1.0, 1.0, 0, source)
    learned = _encode(task, tokenizer, context, samples["calibration"])
    scored = _encode(task, tokenizer, context, [*samples["selection"], *samples["test"]])
    sharing = PrefixSharing(run.share_prefix, lambda: math.inf)
    passes = [len(row) for example in scored for row in example.rows()]
    return Lengths(
        rows,
        calibration=fmean(len(example.answer_row()) for example in learned),
        scored=fmean(passes),
        passes=len(passes) / (len(every) - len(samples["calibration"])),
        answer=fmean(len(example.choices[example.answer]) for example in scored),
        written=written,
        source=source,
        shared=0 if task.kind == "perplexity" else len(sharing.prefix(scored)[0]),
    )


def _tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase | None:
    """The model's tokenizer if it is on this machine."""
    options = hub_options(model) | {"local_files_only": True}
    with suppress(OSError, ValueError, KeyError, ImportError, AttributeError, TypeError):
        return AutoTokenizer.from_pretrained(model.path, **options)
    return None


def _stated(config: TaskConfig, context: int | None, written: int) -> Lengths:
    """The numbers of `task.typical`; missing splits are carved from calibration as in a run."""
    rows = {role: int(count) for role, count in config.typical["rows"].items()}
    whole = rows["calibration"]
    for role, fraction in CARVED_FRACTION.items():
        if role not in rows:
            rows[role] = round(fraction * whole)
            rows["calibration"] -= rows[role]
    rows = {role: min(count, config.max_rows.get(role) or count) for role, count in rows.items()}
    tokens = min(float(config.typical["tokens"]), context or math.inf)
    answer, passes = (float(config.typical.get(key, 1)) for key in ("answer", "passes"))
    return Lengths(rows, tokens, tokens, passes, answer, written, "stated in task.typical")


def _encode(
    task: Task, tokenizer: PreTrainedTokenizerBase, context: int | None, rows: Sequence[Example]
) -> list[EncodedExample]:
    """Rows as a run encodes them; text longer than the context is split into windows."""
    text = task.kind == "perplexity"
    encoded = encode_examples(
        rows,
        tokenizer,
        chat="never" if text else task.chat,
        delimiter="" if text else task.delimiter,
        context_length=None if text else context,
        harness=task.harness,
        rolling=text,
    )
    return [window for e in encoded for window in (e.windows(context) if text else [e])]
