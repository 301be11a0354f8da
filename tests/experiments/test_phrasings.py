"""Rows of the reading task, asked in the phrasings of another split."""

import numpy as np
import pytest

from experiments.claims.phrasings import difference, phrasing_of, rephrased
from sieve.tasks.almanac import almanac_rows
from sieve.tasks.almanac.reading import TELLINGS
from sieve.tasks.config import ROLES


@pytest.mark.parametrize("split", ROLES)
def test_rephrased_rows_ask_for_the_same_value_of_the_same_person(split: str) -> None:
    rows = almanac_rows("reading", split="test", n_rows=40)
    changed = rephrased(rows, split)
    if split == "test":
        assert changed == rows
    for before, after in zip(rows, changed, strict=True):
        assert after | {"question": ""} == before | {"question": ""}
        kind, phrasing, name = phrasing_of(after)
        assert phrasing in TELLINGS["primary"][kind]["questions"][split]
        assert (kind, name) == phrasing_of(before)[::2]


def test_equal_rows_do_not_differ_and_rows_that_differ_do() -> None:
    generator = np.random.default_rng(0)
    right = generator.random(400) < 0.95
    change, p_value = difference(right, generator.permutation(right))
    assert change == 0 and p_value == 1
    change, p_value = difference(right, right & (generator.random(400) < 0.8))
    assert change > 0.1 and p_value < 0.001
