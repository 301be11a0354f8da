"""Three splits that share no prompt: duplicates dropped, missing splits carved, sizes capped.

Everything is decided by hashes of prompts, never by the order of rows.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping

from sieve.tasks.config import ROLES
from sieve.tasks.example import Example

# Shares of the calibration split that a missing split takes.
CARVED_FRACTION = {"test": 0.20, "selection": 0.15}
# A prompt that stands in two splits stays in the first of these.
_PRECEDENCE = ("test", "selection", "calibration")

Splits = dict[str, list[Example]]


def prompt_hash(prompt: str, salt: str = "") -> str:
    """SHA-256 of a prompt, in hexadecimal."""
    return hashlib.sha256(f"{salt}\0{prompt}".encode()).hexdigest()


def drop_duplicates(splits: Mapping[str, list[Example]]) -> tuple[Splits, dict[str, int]]:
    """Drop repeated prompts, so that no prompt stands in two splits.

    The test split keeps its rows whole, repeats included, as published test sets are scored; the
    selection split loses what stands in test; calibration loses what stands in either, and its
    own repeats.

    Returns:
        The splits and the counts: "calibration/test" rows dropped from calibration, and so on;
        "test/test" and "selection/selection" repeats are counted but kept.
    """
    counts: Counter[str] = Counter()
    kept: Splits = {}
    home: dict[str, str] = {}
    for role in (role for role in _PRECEDENCE if role in splits):
        kept[role] = []
        own: set[str] = set()
        for example in splits[role]:
            prompt = example.content
            if prompt in home:
                counts[f"{role}/{home[prompt]}"] += 1
                continue
            if prompt in own:
                counts[f"{role}/{role}"] += 1
                if role == "calibration":
                    continue
            own.add(prompt)
            kept[role].append(example)
        home.update(dict.fromkeys(own, role))
    return {role: kept[role] for role in ROLES if role in kept}, dict(counts)


def carve(splits: Mapping[str, list[Example]]) -> tuple[Splits, dict[str, int]]:
    """Give a missing selection or test split its share of the calibration split.

    The share is the examples whose prompts hash lowest: the same whatever the order of rows.

    Returns:
        The three splits, and role -> rows for those that were carved.
    """
    result = {role: list(examples) for role, examples in splits.items()}
    total = len(result["calibration"])
    carved: dict[str, int] = {}
    for role, fraction in CARVED_FRACTION.items():
        if role in result:
            continue
        pool = sorted(result["calibration"], key=lambda example: prompt_hash(example.content))
        size = min(max(1, round(fraction * total)), len(pool))
        taken = {id(example) for example in pool[:size]}
        result[role] = [e for e in result["calibration"] if id(e) in taken]
        result["calibration"] = [e for e in result["calibration"] if id(e) not in taken]
        carved[role] = size
    return {role: result[role] for role in ROLES}, carved


def sample(examples: list[Example], limit: int | None, seed: int) -> list[Example]:
    """At most `limit` examples: those whose prompts hash lowest under the seed, order kept."""
    if limit is None or len(examples) <= limit:
        return examples
    ranked = sorted(
        range(len(examples)), key=lambda i: (prompt_hash(examples[i].content, f"rows {seed}"), i)
    )
    chosen = set(ranked[:limit])
    return [example for index, example in enumerate(examples) if index in chosen]


def check_not_empty(
    name: str, splits: Mapping[str, list[Example]], duplicates: Mapping[str, int]
) -> None:
    """Every split needs examples.

    Raises:
        ValueError: one is empty; the message says how many duplicates were dropped.
    """
    for role, examples in splits.items():
        if not examples:
            dropped = ", ".join(f"{pair}: {rows}" for pair, rows in duplicates.items()) or "none"
            raise ValueError(
                f"task '{name}': the {role} split is empty (duplicate prompts dropped: {dropped}), "
                f"expected at least one row; give the {role} split rows of its own."
            )
