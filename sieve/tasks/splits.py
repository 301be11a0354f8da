"""Three splits that share no prompt: duplicates dropped, missing splits carved, sizes adjusted.

Hashes of prompts decide everything, so the order of rows does not matter.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Generic, NamedTuple, Protocol, TypeVar

from sieve.tasks.config import ROLES

# The share of the calibration split that a missing split takes.
CARVED_FRACTION = {"test": 0.20, "selection": 0.15}
# The share of the calibration split that a small selection split takes at most.
FILLED_FRACTION = 1 / 3
# The share of the rows without labels on which answers are compared, where the others train the
# pruned model, and the most of them.
COMPARED_FRACTION, MOST_COMPARED = 0.2, 4_000
# A prompt in two splits stays in the first of these.
_PRECEDENCE = ("test", "selection", "calibration")


class HasContent(Protocol):
    """An example, or what represents it: `content` tells it apart from others."""

    @property
    def content(self) -> str | bytes: ...

    @property
    def right(self) -> str | int: ...  # its right answer, or the answer's hash


E = TypeVar("E", bound=HasContent)


@dataclass(frozen=True)
class Division(Generic[E]):
    """The three splits, and how they were made."""

    splits: dict[str, list[E]]
    carved: dict[str, int]  # role -> rows taken from calibration for a missing split
    duplicates: dict[str, int]  # see `drop_duplicates`
    filled: int = 0  # rows taken from calibration for a small selection split
    contradictory: int = 0  # rows read whose prompt also has another right answer

    def report(self, calibration: str = "calibration") -> dict[str, object]:
        """The numbers of rows, for JSON; `calibration` is the name of the split that is carved."""
        return {
            "rows": {role: len(examples) for role, examples in self.splits.items()},
            "carved": {
                role: {"from": calibration, "fraction": CARVED_FRACTION[role], "rows": rows}
                for role, rows in self.carved.items()
            },
            "filled": {"selection": {"from": calibration, "rows": self.filled}},
            "duplicates": self.duplicates,
            "contradictory": self.contradictory,
            "truncated": {},
            "empty": {},
        }


class Reserved(NamedTuple, Generic[E]):
    """Rows in two parts that share no prompt."""

    rest: list[E]
    reserved: list[E]


def divide(
    name: str,
    splits: Mapping[str, list[E]],
    limits: Mapping[str, int | None],
    seed: int,
    selection_rows: int = 0,
    classes: bool = False,
) -> Division[E]:
    """Drop duplicates, carve missing splits and draw at most `limits[role]` examples of each.

    Args:
        selection_rows: a smaller selection split is filled up to this, if `limits` allows it.
        classes: whether right answers are classes, which carved splits must all have.

    Raises:
        ValueError: a split of the task `name` is empty.
    """
    distinct, duplicates = drop_duplicates(splits)
    _check_not_empty(name, distinct, duplicates)
    whole, carved = carve(distinct, classes)
    _check_not_empty(name, whole, duplicates)
    wanted = min(selection_rows, limits.get("selection") or selection_rows)
    filled = fill(whole, wanted)
    drawn = {role: sample(filled[role], limits.get(role), seed) for role in ROLES}
    moved = len(filled["selection"]) - len(whole["selection"])
    doubtful = contradictory(splits) if classes else 0
    return Division(drawn, carved, duplicates, moved, doubtful)


def reserve(rows: Sequence[E], share: float, salt: str, most: int | None = None) -> Reserved[E]:
    """Divide rows by hashes of their prompts; equal prompts stay together.

    Args:
        share: of the distinct prompts that are reserved.
        salt: another one reserves other prompts.
        most: prompts reserved at most.
    """
    contents = sorted({row.content for row in rows}, key=lambda c: prompt_hash(c, salt))
    chosen = set(contents[: min(round(share * len(contents)), most or len(contents))])
    return Reserved(
        [row for row in rows if row.content not in chosen],
        [row for row in rows if row.content in chosen],
    )


def prompt_hash(prompt: str | bytes, salt: str = "") -> str:
    """SHA-256 of a prompt, in hexadecimal."""
    return hashlib.sha256(f"{salt}\0{prompt!s}".encode()).hexdigest()


def drop_duplicates(splits: Mapping[str, list[E]]) -> tuple[dict[str, list[E]], dict[str, int]]:
    """Drop repeated prompts, so that no prompt is in two splits.

    The test split keeps all rows, repeats too, because published test sets are scored whole. The
    selection split loses the prompts of the test split. The calibration split loses the prompts of
    both, and its own repeats.

    Returns:
        The splits and the counts: "calibration/test" is the number of rows dropped from
        calibration because they are in test. "test/test" and "selection/selection" are kept.
    """
    counts: Counter[str] = Counter()
    distinct: dict[str, list[E]] = {}
    owner: dict[str | bytes, str] = {}  # prompt -> the first split that has it
    for role in (role for role in _PRECEDENCE if role in splits):
        distinct[role] = []
        own: set[str | bytes] = set()
        for example in splits[role]:
            prompt = example.content
            if prompt in owner:
                counts[f"{role}/{owner[prompt]}"] += 1
                continue
            if prompt in own:
                counts[f"{role}/{role}"] += 1
                if role == "calibration":
                    continue
            own.add(prompt)
            distinct[role].append(example)
        owner.update(dict.fromkeys(own, role))
    return {role: distinct[role] for role in ROLES if role in distinct}, dict(counts)


def contradictory(splits: Mapping[str, Sequence[HasContent]]) -> int:
    """The number of rows whose prompt also occurs with another right answer."""
    answers: dict[str | bytes, Counter[str | int]] = {}
    for example in chain.from_iterable(splits.values()):
        answers.setdefault(example.content, Counter())[example.right] += 1
    return sum(counts.total() for counts in answers.values() if len(counts) > 1)


def carve(
    splits: Mapping[str, list[E]], classes: bool = False
) -> tuple[dict[str, list[E]], dict[str, int]]:
    """Give a missing selection or test split its share of the calibration split.

    The share is the examples whose prompts have the lowest hashes: of all, or with `classes` of
    each right answer if a right answer would be missing.

    Returns:
        The three splits, and role -> rows of each split that was carved.
    """
    carved: dict[str, int] = {}
    whole = {role: list(examples) for role, examples in splits.items()}
    total = len(whole["calibration"])
    for role, fraction in CARVED_FRACTION.items():
        if role in whole:
            continue
        pool = sorted(whole["calibration"], key=lambda example: prompt_hash(example.content))
        first = pool[: max(1, round(fraction * total))]
        if classes and {e.right for e in first} != {e.right for e in pool}:
            first = _of_each_class(pool, len(first)) or first
        carved[role], taken = len(first), {id(example) for example in first}
        whole[role] = [e for e in whole["calibration"] if id(e) in taken]
        whole["calibration"] = [e for e in whole["calibration"] if id(e) not in taken]
    return {role: whole[role] for role in ROLES}, carved


def _of_each_class(pool: Sequence[E], rows: int) -> list[E]:
    """About `rows` examples: of each right answer its share, but neither none nor all."""
    groups: dict[str | int, list[E]] = {}
    for example in pool:
        groups.setdefault(example.right, []).append(example)
    parts = list[E]()
    for group in groups.values():
        share = max(1, round(rows / len(pool) * len(group)))
        parts += group[: min(share, len(group) - 1)]
    return parts


def fill(splits: Mapping[str, list[E]], rows: int) -> dict[str, list[E]]:
    """The splits with at least `rows` selection examples, the missing ones from calibration.

    These are the examples whose prompts have the lowest hashes, so a smaller number of rows takes
    some of the same. A third of the calibration split is taken at most.
    """
    calibration, selection = splits["calibration"], splits["selection"]
    share = (rows - len(selection)) / max(1, len(calibration))
    parts = reserve(calibration, min(max(0.0, share), FILLED_FRACTION), "selection")
    return {**splits, "calibration": parts.rest, "selection": [*selection, *parts.reserved]}


def sample(examples: list[E], limit: int | None, seed: int) -> list[E]:
    """At most `limit` examples, those with the lowest hashes under the seed, in their order."""
    if limit is None or len(examples) <= limit:
        return examples
    hashes = [prompt_hash(example.content, f"rows {seed}") for example in examples]
    chosen = sorted(sorted(range(len(examples)), key=lambda i: (hashes[i], i))[:limit])
    return [examples[index] for index in chosen]


def _check_not_empty(
    name: str, splits: Mapping[str, list[E]], duplicates: Mapping[str, int]
) -> None:
    for role, examples in splits.items():
        if not examples:
            dropped = ", ".join(f"{pair}: {rows}" for pair, rows in duplicates.items()) or "none"
            raise ValueError(
                f"task '{name}': the {role} split is empty (duplicate prompts dropped: {dropped}), "
                f"expected at least one row; give the {role} split rows of its own."
            )
