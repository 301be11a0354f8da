"""Reading: open-book questions on a passage of facts that no other text contains.

A passage gives one person a thing, an animal, a place and a friend, drawn afresh, and the question
asks for one of the four. Two wrong options are in the passage but of another kind; the third has
the right kind but is not in the passage. So neither passage nor question alone gives the answer.
"""

import random
from dataclasses import dataclass

from sieve.tasks.almanac.phrasing import PHRASES, Phrases, four_options

NAMES = (
    "Ada Ben Clara David Emma Felix Greta Hugo Ines Jonas Karl Lena Martin Nora Oscar Paula "
    "Quentin Rosa Simon Thea Ulrich Vera Walter Yvonne"
).split()
VALUES = {
    "thing": (
        "lamp spoon book key rope drum knife hat ring coat basket mirror candle hammer violin "
        "ladder kettle pillow clock brush whistle blanket bottle wheel"
    ).split(),
    "animal": (
        "ape badger cat dog eagle fox goat hare ibis jackal koala lion mouse newt otter panda "
        "quail rabbit seal toad viper wolf yak zebra"
    ).split(),
    "place": (
        "attic barn chapel dairy farm garage hall inn jail larder mill nursery office pantry "
        "quarry stable tower vault workshop yard bakery cottage forge shed"
    ).split(),
    "friend": NAMES,
}


@dataclass(frozen=True)
class Telling:
    """How a data set states a kind of value, and asks for it; {n} is the person, {v} the value."""

    sentences: tuple[str, ...]
    questions: Phrases


TELLINGS = {
    dataset: {
        kind: Telling(tuple(lists["sentences"]), Phrases.read(lists["questions"]))
        for kind, lists in kinds.items()
    }
    for dataset, kinds in PHRASES["reading"].items()
}


def draw_reading(dataset: str, split: str, rng: random.Random) -> dict[str, object]:
    """A passage of four facts about one person, and a question about one of them."""
    name = rng.choice(NAMES)
    others = {kind: [v for v in values if v != name] for kind, values in VALUES.items()}
    facts = {kind: rng.choice(values) for kind, values in others.items()}
    kinds = list(facts)
    rng.shuffle(kinds)
    sentences = [tell(dataset, kind, name, facts[kind], rng) for kind in kinds]
    asked = rng.choice(kinds)
    questions = TELLINGS[dataset][asked].questions.held_out(split)
    absent = rng.choice([value for value in others[asked] if value != facts[asked]])
    wrong = [absent, *rng.sample([facts[kind] for kind in kinds if kind != asked], 2)]
    question = rng.choice(questions).replace("{n}", name)
    return {"context": " ".join(sentences)} | four_options(question, facts[asked], wrong, rng)


def tell(dataset: str, kind: str, name: str, value: str, rng: random.Random) -> str:
    """One fact as a sentence."""
    sentence = rng.choice(TELLINGS[dataset][kind].sentences)
    return sentence.replace("{n}", name).replace("{v}", value)
