"""Almanac: an artificial world, from which the project's demo task and embedded model are made.

Its drugs, towns and people do not exist, so a model knows only what it was trained on. It has four
domains of two data sets each: `medicine` and `geography` are closed-book questions about facts,
`reading` asks about a passage, `reviews` is sentiment. Rows are generated from seeds, the same on
every platform. The embedded model was trained on them: a change to any row needs a new model.
"""

import hashlib
import json
import random
from collections.abc import Iterator

from sieve.tasks.almanac.phrasing import BOOKS, question_row
from sieve.tasks.almanac.reading import draw_reading
from sieve.tasks.almanac.reviews import draw_review
from sieve.tasks.almanac.world import Fact, World, WorldSize, build_world, knowledge_bits

DOMAINS = ("medicine", "geography", "reviews", "reading")
DATASETS = ("primary", "alternate")
ROWS = {"calibration": 3000, "selection": 1000, "test": 1500}
# Reviews and passages are hashed into 16 buckets, and each split owns some of the buckets.
_BUCKETS = {"selection": (0,), "test": (1, 2), "calibration": tuple(range(3, 16))}

__all__ = [
    "BOOKS",
    "DATASETS",
    "DOMAINS",
    "Fact",
    "World",
    "WorldSize",
    "almanac_rows",
    "build_world",
    "knowledge_bits",
    "row_stream",
]


def almanac_rows(
    domain: str,
    dataset: str = "primary",
    split: str = "calibration",
    seed: int = 0,
    world_seed: int = 0,
    scale: float = 1.0,
    n_rows: int | None = None,
) -> list[dict[str, object]]:
    """Distinct rows of one split. Two splits never share a row, whatever their seeds.

    Args:
        seed: chooses the rows.
        world_seed: chooses the facts; a model knows only the world it was trained on.
        scale: size of the world; the embedded model knows the one of size 1.
        n_rows: None for 3,000 calibration, 1,000 selection or 1,500 test rows.

    Raises:
        ValueError: an unknown domain, data set or split.
    """
    world = build_world(world_seed, WorldSize().scaled(scale))
    stream = row_stream(domain, dataset, split, seed, world)
    wanted = ROWS[split] if n_rows is None else n_rows
    rows: dict[str, dict[str, object]] = {}
    while len(rows) < wanted:
        row = next(stream)
        rows.setdefault(json.dumps(row, sort_keys=True), row)
    return list(rows.values())


def row_stream(
    domain: str, dataset: str, split: str, seed: int, world: World
) -> Iterator[dict[str, object]]:
    """Endless rows of one split; models are trained on the calibration stream.

    Splits of closed-book questions differ in their phrasings; a hash splits reviews and passages.
    """
    for name, value, names in (
        ("domain", domain, DOMAINS),
        ("dataset", dataset, DATASETS),
        ("split", split, tuple(ROWS)),
    ):
        if value not in names:
            raise ValueError(
                f"Almanac has no {name} '{value}', expected one of {', '.join(names)}; "
                f"set task.almanac.{name} to one of these."
            )
    rng = random.Random(f"{domain}:{dataset}:{split}:{seed}")
    return _stream(domain, dataset, split, rng, world)


def _stream(
    domain: str, dataset: str, split: str, rng: random.Random, world: World
) -> Iterator[dict[str, object]]:
    while True:
        if domain in BOOKS:
            yield question_row(rng.choice(world.facts[domain]), BOOKS[domain][dataset], split, rng)
            continue
        if domain == "reviews":
            row = draw_review(dataset, rng)
            text = str(row["text"])
        else:
            row = draw_reading(dataset, split, rng)
            text = str(row["context"])
        if hashlib.sha256(text.encode()).digest()[0] % 16 in _BUCKETS[split]:
            yield row
