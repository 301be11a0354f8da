"""The ratio of two speeds is the ratio of the speeds that are shown, with its spread."""

import pytest

from sieve.evaluation.speed import _rates


def test_the_ratio_is_that_of_the_rates_and_the_spread_that_of_the_repeats() -> None:
    seconds = {"dense": [4.0, 2.0, 3.0], "pruned": [1.0, 1.0, 2.0]}
    dense, pruned, ratio, spread = _rates(seconds, tokens=12)
    assert (dense, pruned, ratio) == (4.0, 12.0, 3.0) and ratio == pruned / dense
    assert spread == pytest.approx((4.0 - 1.5) / 2 / 3.0)


def test_one_repeat_has_no_spread() -> None:
    assert _rates({"dense": [2.0], "pruned": [1.0]}, tokens=1)[2:] == (2.0, 0.0)
