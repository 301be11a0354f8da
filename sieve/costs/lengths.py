"""A task in numbers for a dry run: counted on its rows where they are at hand, else as it states.

Rows are at hand in a folder or in Almanac; a tokenizer where the model is. Nothing is fetched while
the task says what is typical of it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sieve.config import ModelConfig
from sieve.costs.plan import Lengths
from sieve.data.encoding import encode_examples
from sieve.data.prefix import PrefixSharing
from sieve.tasks import Example, Task, TaskConfig, build_task
from sieve.tasks.splits import CARVED_FRACTION

SAMPLED = 64  # rows of a split


def lengths_of(
    config: TaskConfig,
    model: ModelConfig,
    context: int | None = None,
    classifies: bool = False,
    seed: int = 0,
    share: float = 2.0,
) -> Lengths:
    """What rows of a task take for a model whose longest input is `context` tokens.

    share: the least part of a row that is shared where all begin with it, see `sieve.data.prefix`.
    Raises ValueError where neither rows nor `task.typical` tell, or the task does not hold.
    """
    config.validate()
    tokenizer = _tokenizer(model)
    at_hand = config.data_dir is not None or config.almanac is not None
    if not at_hand and not (config.typical and _known(config)):
        try:
            task = build_task(config, seed)
        except RuntimeError as error:
            raise ValueError(
                f"task '{config.name}' has neither rows at hand nor task.typical to reckon with; "
                "set task.data_dir to a folder, or '+task.typical.tokens=200' and the rows of each "
                "split, as conf/task/medqa.yaml does."
            ) from error
        at_hand = True
    elif at_hand:
        task = build_task(config, seed)
    if not at_hand:
        return _stated(config, context)
    rows = {role: len(examples) for role, examples in task.splits.items()}
    if tokenizer is None:
        known = _stated(config, context) if config.typical else _guessed(config, task)
        where = "rows counted, tokens " + known.source
        return replace(known, rows=rows, source=where)
    return _measured(task, tokenizer, context, classifies, rows, config, share)


def _known(config: TaskConfig) -> bool:
    rows = config.typical.get("rows") or {}
    return bool(config.typical.get("tokens")) and "calibration" in rows


def _tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase | None:
    """The model's tokenizer where it is on this machine, None elsewhere."""
    options = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            model.path, local_files_only=True, **options
        )
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError):
        return None
    return found


def _stated(config: TaskConfig, context: int | None) -> Lengths:
    """What `task.typical` says; splits without rows are carved as they will be."""
    typical: Mapping[str, Any] = config.typical
    rows = {role: int(n) for role, n in typical["rows"].items()}
    whole = rows["calibration"]
    for role, share in CARVED_FRACTION.items():
        if role not in rows:
            rows[role] = round(share * whole)
            rows["calibration"] -= rows[role]
    limits = {role: n for role, n in config.max_rows.items() if n is not None}
    rows = {role: min(n, limits.get(role, n)) for role, n in rows.items()}
    tokens = float(typical["tokens"])
    tokens = tokens if context is None else min(tokens, context)
    answer = float(typical.get("answer", 1))
    written = config.max_new_tokens if config.kind == "generation" else 0
    passes = float(typical.get("passes", 1))
    return Lengths(rows, tokens, tokens, passes, answer, written, "as stated in the task")


def _guessed(config: TaskConfig, task: Task) -> Lengths:
    """By characters, four to a token."""
    examples = [e for role in task.splits for e in task.splits[role][:SAMPLED]]
    texts = [len(e.prompt) + len(e.choices[e.answer]) for e in examples]
    tokens = max(1.0, sum(texts) / len(texts) / 4)
    written = config.max_new_tokens if config.kind == "generation" else 0
    answer = tokens if config.kind == "perplexity" else 1.0
    return Lengths({}, tokens, tokens, 1.0, answer, written, "guessed at four characters each")


def _measured(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    context: int | None,
    classifies: bool,
    rows: Mapping[str, int],
    config: TaskConfig,
    share: float,
) -> Lengths:
    """Encode the first rows of every split."""
    calibration = task.splits["calibration"][:SAMPLED]
    scored = [e for role in ("selection", "test") for e in task.splits[role][:SAMPLED]]
    count = len(calibration) + len(scored)
    source = f"measured on {count:,} rows"
    if classifies:
        ids = tokenizer([e.prompt for e in [*calibration, *scored]])["input_ids"]
        mean = sum(map(len, ids)) / count
        return Lengths(rows, mean, mean, 1.0, 1.0, 0, source)
    learnt = _encoded(task, tokenizer, context, calibration)
    asked = _encoded(task, tokenizer, context, scored)
    fed = [row for one in asked for row in one.rows()]
    begun = (
        () if task.kind == "perplexity" else PrefixSharing(share, lambda: math.inf).prefix(asked)[0]
    )
    kept = sum(len(one.choices[one.answer]) for one in asked) / len(asked)
    written = config.max_new_tokens if config.kind == "generation" else 0
    return Lengths(
        rows, sum(len(one.answer_row()) for one in learnt) / len(learnt),
        sum(map(len, fed)) / len(fed), len(fed) / len(scored), kept, written, source, len(begun),
    )  # fmt: skip


def _encoded(
    task: Task, tokenizer: PreTrainedTokenizerBase, context: int | None, rows: Sequence[Example]
) -> list[Any]:
    """Rows as the run encodes them; of text that outgrows the context the parts."""
    text = task.kind == "perplexity"
    found = encode_examples(
        rows, tokenizer, chat="never" if text else task.chat,
        delimiter="" if text else task.delimiter, context_length=None if text else context,
        harness=task.harness, rolling=text,
    )  # fmt: skip
    return [part for one in found for part in (one.windows(context) if text else [one])]
