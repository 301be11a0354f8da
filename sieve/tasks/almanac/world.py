"""The facts of Almanac: invented entities, and the relations between them.

A world is a pure function of its seed and size. No training data contains it, so a model that
answers its questions has learned them here, and what it must know can be counted in bits.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache

from sieve.tasks.almanac.words import WORDS

PARTS = WORDS["names"]

# Kind of name that is drawn first -> its number in `WorldSize`, by domain.
ENTITIES = {
    "medicine": {"drug": "drugs", "condition": "conditions"},
    "geography": {"town": "towns", "country": "countries", "river": "rivers"},
}


@dataclass(frozen=True)
class WorldSize:
    """Numbers of invented entities."""

    drugs: int = 32
    conditions: int = 16
    towns: int = 32
    countries: int = 12
    rivers: int = 10

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 6:
                raise ValueError(
                    f"got a world of {getattr(self, field.name)} {field.name}, expected at least 6 "
                    "so that a question has enough wrong options; use a larger world."
                )

    def scaled(self, factor: float) -> "WorldSize":
        """`factor` times as many entities, at least 6 of each."""
        numbers = {f.name: max(6, round(getattr(self, f.name) * factor)) for f in fields(self)}
        return WorldSize(**numbers)


@dataclass(frozen=True)
class Fact:
    """`value` is the `relation` of `subject`, one of `candidates`.

    `confusable` is the value of a similar relation with the same candidates, as the condition in
    which a drug is dangerous and the one it treats: a wrong option that tests reading.
    """

    relation: str
    subject: str
    value: str
    candidates: tuple[str, ...]
    confusable: str | None = None


@dataclass(frozen=True)
class World:
    """All facts of a world, by domain."""

    seed: int
    size: WorldSize
    facts: dict[str, tuple[Fact, ...]]


@lru_cache(maxsize=8)
def build_world(seed: int = 0, size: WorldSize | None = None) -> World:
    """Draw the world of this seed and size (the default size if None)."""
    size = size or WorldSize()
    rng = random.Random(f"world:{seed}")
    names = _Names(rng)
    return World(seed, size, {domain: _facts(domain, names, size) for domain in ENTITIES})


def knowledge_bits(domain: str, world: World) -> float:
    """Bits needed to know a closed-book domain: the sum over its facts of log2(candidates).

    0 for `reviews` and `reading`, which do not ask for facts of the world.
    """
    return sum(math.log2(len(fact.candidates)) for fact in world.facts.get(domain, ()))


class _Names:
    """Draws invented names, each only once."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._used: set[str] = set()

    def draw(self, kind: str, number: int) -> tuple[str, ...]:
        """`number` new names with endings of this kind."""
        return tuple(self._new(kind) for _ in range(number))

    def _new(self, kind: str) -> str:
        while True:
            parts = ("onsets", "vowels", "onsets", "vowels", "last_consonants")
            stem = "".join(self.rng.choice(PARTS[part]) for part in parts)
            name = (stem + self.rng.choice(PARTS["endings"][kind])).capitalize()
            if name not in self._used:
                self._used.add(name)
                return name


def _facts(domain: str, names: _Names, size: WorldSize) -> tuple[Fact, ...]:
    """All facts of a domain, in the order of the file."""
    kinds = {kind: names.draw(kind, getattr(size, key)) for kind, key in ENTITIES[domain].items()}
    facts: list[Fact] = []
    for entry in WORDS["facts"][domain]:
        values = entry["values"]
        if isinstance(values, str):
            values = kinds.get(values) or names.draw(values, 8)
        facts += _relate(names.rng, entry["relations"], kinds[entry["subject"]], tuple(values))
    return tuple(facts)


def _relate(
    rng: random.Random, relations: list[str], subjects: tuple[str, ...], values: tuple[str, ...]
) -> Iterator[Fact]:
    """A fact per subject and relation, its value drawn uniformly: log2(candidates) bits each.

    A second relation has one candidate less, because the value of the first one is ruled out.
    """
    first, *sibling = relations
    for subject, value in [(subject, rng.choice(values)) for subject in subjects]:
        if not sibling:
            yield Fact(first, subject, value, values)
            continue
        remaining = tuple(candidate for candidate in values if candidate != value)
        other = rng.choice(remaining)
        yield Fact(first, subject, value, values, other)
        yield Fact(sibling[0], subject, other, remaining, value)
