"""The part of `result.json` on the rows of a run, as typed objects."""

from dataclasses import dataclass

from sieve.report.building import Number


@dataclass(frozen=True)
class Carved:
    taken_from: str  # "from" in the file, which Python reserves
    fraction: Number


@dataclass(frozen=True)
class Filled:
    taken_from: str
    rows: Number


@dataclass(frozen=True)
class Vocabulary:
    size: Number
    answers: Number
    prompts: Number


@dataclass(frozen=True)
class Prompt:
    sentence: str  # what was measured and taken; empty if nothing was measured


@dataclass(frozen=True)
class Data:
    """Where the rows came from and what was done to them, by split."""

    source: str
    read: dict[str, Number]
    split_names: dict[str, str]
    rows: dict[str, Number]
    carved: dict[str, Carved]
    filled: dict[str, Filled]
    duplicates: dict[str, Number]
    contradictory: Number  # rows with the prompt of a row with another label
    truncated: dict[str, Number]  # by field of the prompt
    empty: dict[str, Number]  # texts without a word, by field of the prompt
    shortened: Number  # prompts cut to the length of the model's context
    answers: dict[str, dict[str, Number]]
    vocabulary: Vocabulary
    prompt: Prompt
    harness: dict[str, str]  # metric, filter and shots of a task of lm-evaluation-harness


@dataclass(frozen=True)
class Experts:
    """How many experts of a mixture saw too few tokens."""

    experts: Number
    few: Number
    unseen: Number
    fewest: dict[str, Number]


@dataclass(frozen=True)
class Calibration:
    rows: Number
    tokens: Number
    experts: Experts | None
