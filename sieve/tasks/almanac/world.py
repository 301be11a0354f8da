"""The facts of Almanac: invented entities, and the relations between them.

A world is a pure function of its seed and size. No training data contains it, so a model that
answers its questions has learned them here, and what it must know can be counted in bits.
"""

import math
import random
from dataclasses import dataclass, fields
from functools import lru_cache

ONSETS = "b br d dr f g gr h k kl l m n p r s st t tr v w z".split()
LAST_CONSONANTS = "b d l m n r t v".split()
VOWELS = "a e i o u".split()
ENDINGS = {
    "drug": ("ol", "ane", "ix", "ium"),
    "condition": ("itis", "osis", "oma", "emia"),
    "town": ("burg", "ton", "by", "ford"),
    "country": ("ia", "land", "avia", "stan"),
    "river": ("ava", "esk", "une", "ohr"),
    "language": ("ish", "ese", "ic", "ak"),
    "currency": ("mark", "dor", "ling", "een"),
}
ORGANS = tuple("heart liver lung kidney stomach skin brain spleen".split())
SYMPTOMS = tuple("swelling numbness blisters hoarseness chills pallor limping blindness".split())
EFFECTS = tuple(
    "nausea dizziness cough rash thirst cramps fever fatigue tremor itching headache "
    "insomnia".split()
)
CLASSES = tuple("sedative stimulant antiviral steroid vitamin hormone antibiotic antacid".split())
GOODS = tuple("copper wool salt timber amber silk honey coal pepper glass tea marble".split())
SEAS = tuple("Amethyst Bitter Crimson Drowned Emerald Frozen".split())


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
    medicine = _medicine(rng, names, size)
    geography = _geography(rng, names, size)
    return World(seed, size, {"medicine": tuple(medicine), "geography": tuple(geography)})


def knowledge_bits(domain: str, world: World) -> float:
    """Bits needed to know a closed-book domain: the sum over its facts of log2(candidates).

    0 for `reviews` and `reading`, which do not ask for facts of the world.
    """
    if domain in ("reviews", "reading"):
        return 0.0
    if domain not in world.facts:
        raise ValueError(
            f"Almanac has no domain '{domain}', expected medicine, geography, reviews or reading; "
            "use one of these."
        )
    return sum(math.log2(len(fact.candidates)) for fact in world.facts[domain])


class _Names:
    """Draws invented names, each only once."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._used: set[str] = set()

    def draw(self, kind: str, number: int) -> tuple[str, ...]:
        """`number` new names with endings of this kind."""
        return tuple(self._new(kind) for _ in range(number))

    def _new(self, kind: str) -> str:
        while True:
            stem = "".join(self._rng.choice(ONSETS) + self._rng.choice(VOWELS) for _ in range(2))
            last = self._rng.choice(LAST_CONSONANTS)
            name = (stem + last + self._rng.choice(ENDINGS[kind])).capitalize()
            if name not in self._used:
                self._used.add(name)
                return name


def _relate(
    rng: random.Random, relation: str, subjects: tuple[str, ...], values: tuple[str, ...]
) -> list[Fact]:
    """One fact per subject, its value drawn uniformly: log2(len(values)) bits each."""
    return [Fact(relation, subject, rng.choice(values), values) for subject in subjects]


def _relate_siblings(
    rng: random.Random,
    relations: tuple[str, str],
    subjects: tuple[str, ...],
    values: tuple[str, ...],
) -> list[Fact]:
    """Two relations with the same values, which differ for every subject.

    The second has one candidate less, because the value of the first one is ruled out.
    """
    facts = []
    for first in _relate(rng, relations[0], subjects, values):
        remaining = tuple(value for value in values if value != first.value)
        other = rng.choice(remaining)
        facts.append(Fact(relations[0], first.subject, first.value, values, other))
        facts.append(Fact(relations[1], first.subject, other, remaining, first.value))
    return facts


def _medicine(rng: random.Random, names: _Names, size: WorldSize) -> list[Fact]:
    drugs = names.draw("drug", size.drugs)
    conditions = names.draw("condition", size.conditions)
    return [
        *_relate_siblings(rng, ("treats", "avoid"), drugs, conditions),
        *_relate(rng, "class", drugs, CLASSES),
        *_relate(rng, "effect", drugs, EFFECTS),
        *_relate(rng, "organ", conditions, ORGANS),
        *_relate(rng, "symptom", conditions, SYMPTOMS),
    ]


def _geography(rng: random.Random, names: _Names, size: WorldSize) -> list[Fact]:
    towns = names.draw("town", size.towns)
    countries = names.draw("country", size.countries)
    rivers = names.draw("river", size.rivers)
    return [
        *_relate_siblings(rng, ("export", "import"), towns, GOODS),
        *_relate(rng, "country", towns, countries),
        *_relate(rng, "river", towns, rivers),
        *_relate(rng, "language", countries, names.draw("language", 8)),
        *_relate(rng, "currency", countries, names.draw("currency", 8)),
        *_relate(rng, "sea", rivers, SEAS),
    ]
