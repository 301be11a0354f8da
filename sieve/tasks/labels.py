"""The label words that the data themselves have, where `task.labels` is empty.

A spelling mistake would become a class of its own, so words that look like one are an error.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from sieve.tasks.config import TaskConfig
from sieve.tasks.example import Row
from sieve.tasks.prompts import RowReader

FEWEST = 5  # rows of a label
EMPTY = ("", "nan", "null", "n/a")  # what programs write where there is no label
RESERVED = ("true", "false", "null", "nan", "inf")  # which Hydra does not read as text
MOST_SHOWN = 12  # labels in a message
Counts = dict[object, Counter[str]]  # label -> split -> rows


def find_labels(config: TaskConfig, splits: Mapping[str, Iterable[Row]]) -> tuple[str, ...]:
    """The label words: `task.labels`, or else the sorted distinct labels of all splits.

    Args:
        splits: the rows of each split, by its name.

    Raises:
        ValueError: `task.labels` is empty, and the labels in the rows are not strings, fewer than
            two, or look like mistakes.
    """
    if config.labels:
        return tuple(config.labels)
    counts = _count(config, splits)
    if others := [label for label in counts if not isinstance(label, str)]:
        raise _needs_words(config, others)
    if len(counts) < 2:
        raise ValueError(
            f"task '{config.name}': the data has {len(counts)} distinct labels in the field "
            f"'{config.label_field}', expected at least two; set task.label_field, or task.labels, "
            "for example to [no,yes]."
        )
    words = {str(label): by_split for label, by_split in counts.items()}
    if faults := _faults(words):
        raise _dirty(config, words, faults, next(iter(splits)))
    return tuple(sorted(word.strip() for word in words))


def _count(config: TaskConfig, splits: Mapping[str, Iterable[Row]]) -> Counts:
    reader, counts = RowReader(config), Counts()
    for name, rows in splits.items():
        for row in rows:
            label = reader.get(row, config.label_field)
            if label is not None:
                key = label if isinstance(label, str | int | float) else (str(label),)
                counts.setdefault(key, Counter())[name] += 1
    if not counts:  # A message that names the columns.
        name, row = next((name, row) for name, rows in splits.items() for row in rows)
        reader.require(row, config.label_field, f"row 1 of {name}", "holds the label")
    return counts


def _needs_words(config: TaskConfig, labels: list[object]) -> ValueError:
    """The error for labels that are numbers."""
    numbers = sorted(n for n in labels if isinstance(n, int | float) and math.isfinite(n))
    label, advice = labels[0], "set task.labels, for example to [no,yes]"
    if numbers and len(numbers) == len(labels) <= MOST_SHOWN:
        values = [f"{number:g}" for number in numbers]
        advice = f"set task.labels to the words for {', '.join(values)}, in this order"
        if numbers != list(range(len(numbers))):
            advice += f', and "task.label_values={as_setting(values)}", as they do not count from 0'
    return ValueError(
        f"task '{config.name}': the data has labels such as {label!r} and task.labels is empty, "
        f"expected a word for each label; {advice}."
    )


def _faults(words: Mapping[str, Counter[str]]) -> dict[str, str]:
    """Label -> what looks wrong about it, for the labels that look like mistakes."""
    same = Counter(map(_folded, words))
    splits = {split for by_split in words.values() for split in by_split}
    faults = dict[str, str]()
    for word, by_split in words.items():
        if _folded(word) in EMPTY:
            faults[word] = "no label"
        elif same[_folded(word)] > 1:
            faults[word] = "differs from another only in case or spaces"
        elif by_split.total() < FEWEST:
            faults[word] = f"fewer than {FEWEST} rows"
        elif len(splits) > 1 and len(by_split) == 1:
            faults[word] = f"only in {next(iter(by_split))}"
    return faults


def _dirty(
    config: TaskConfig,
    words: Mapping[str, Counter[str]],
    faults: Mapping[str, str],
    calibration: str,
) -> ValueError:
    """The error that shows the doubtful labels, and the setting to copy."""
    rows = sum(by_split.total() for by_split in words.values())
    if rows < FEWEST * len(words):
        return ValueError(
            f"task '{config.name}': the data has {rows:,} rows for {len(words):,} labels, expected "
            f"at least {FEWEST} of each label; add rows, or set task.label_field to the column "
            "that holds the label."
        )
    shown = [
        f"{word!r} ({words[word].total():,} rows, {faults[word]})"
        for word in sorted(faults, key=lambda word: words[word].total())
    ]
    more = len(shown) - MOST_SHOWN
    listed = ", ".join(shown[:MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")
    return ValueError(
        f"task '{config.name}': the labels in '{config.label_field}' look like mistakes: {listed}; "
        f"the others are {', '.join(_good_counts(words, faults)) or 'none'}, expected labels that "
        f'every split has; correct the rows, and list the right labels: "task.labels='
        f'{as_setting(_clean(words, calibration))}".'
    )


def _good_counts(words: Mapping[str, Counter[str]], faults: Mapping[str, str]) -> list[str]:
    good = [word for word in sorted(words) if word not in faults][:MOST_SHOWN]
    return [f"{word!r} ({words[word].total():,} rows)" for word in good]


def _clean(words: Mapping[str, Counter[str]], calibration: str) -> list[str]:
    """The labels that calibration has often, and only the most frequent of equal spellings."""
    best = dict[str, str]()
    for word in sorted(words, key=lambda word: -words[word].total()):
        frequent = words[word].total() >= FEWEST and words[word][calibration] > 0
        if frequent and _folded(word) not in EMPTY:
            best.setdefault(_folded(word), word.strip())
    return sorted(best.values())


def as_setting(words: Iterable[str]) -> str:
    """A list of words as Hydra reads it in quotes on a command line."""
    plain = [
        word if word.isalpha() and word.casefold() not in RESERVED else f"'{word}'"
        for word in words
    ]
    return f"[{','.join(plain)}]"


def _folded(word: str) -> str:
    return " ".join(word.split()).casefold()
