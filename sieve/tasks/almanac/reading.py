"""Reading: open-book questions on a passage of facts that no other text contains.

A passage gives one person a thing, an animal, a place and a friend, drawn afresh, and the question
asks for one of the four. Two wrong options are in the passage but of another kind; the third has
the right kind but is not in the passage. So neither passage nor question alone gives the answer.
"""

import random

from sieve.tasks.almanac.phrasing import four_options
from sieve.tasks.almanac.words import WORDS

VALUES: dict[str, list[str]] = WORDS["values"]
# Data set -> kind of value -> sentences that state it, and questions that ask for it by split.
# {n} is the person, {v} the value.
TELLINGS = WORDS["reading"]


def draw_reading(dataset: str, split: str, rng: random.Random) -> dict[str, object]:
    """A passage of four facts about one person, and a question about one of them."""
    name = rng.choice(VALUES["friend"])
    others = {kind: [v for v in values if v != name] for kind, values in VALUES.items()}
    facts = {kind: rng.choice(values) for kind, values in others.items()}
    kinds = list(facts)
    rng.shuffle(kinds)
    told = {
        k: rng.choice(TELLINGS[dataset][k]["sentences"]).replace("{v}", facts[k]) for k in kinds
    }
    asked = rng.choice(kinds)
    questions = TELLINGS[dataset][asked]["questions"][split]
    absent = rng.choice([value for value in others[asked] if value != facts[asked]])
    wrong = [absent, *rng.sample([facts[kind] for kind in kinds if kind != asked], 2)]
    question = rng.choice(questions).replace("{n}", name)
    return {"context": " ".join(told.values()).replace("{n}", name)} | four_options(
        question, facts[asked], wrong, rng
    )
