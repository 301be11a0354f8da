"""`read` gives typed values of any mapping, whole or partly filled."""

import math

import pytest
from report.results import full_result, genetic_result

from sieve.report.result import read


def test_numbers_texts_and_lists_keep_their_values() -> None:
    result = read(genetic_result())
    assert (result.task, result.drop.high, result.examples) == ("sst2", 0.016, 1821)
    assert result.kept_fraction.prunable == 0.35 and result.seed == 0
    assert result.search.confirmation and result.search.confirmation.tried[1].feasible
    assert result.search.curve[5].whole is False and not result.search.curve[5].chosen
    assert result.matrices[7].layer == 1 and result.spectrum["q"].energy_left[0] == 1.0
    assert result.cached == {"calibrate": True, "fit": True, "search": False, "evaluate": False}


@pytest.mark.parametrize("number", [None, math.nan, math.inf, "0.1", True])
def test_values_that_are_not_finite_numbers_become_none(number: object) -> None:
    assert read({"drop": {"point": number}}).drop.point is None


def test_a_missing_part_of_any_type_reads_like_an_empty_result() -> None:
    empty = read({})
    for wrong in (None, 3, "text", []):
        for key in set(full_result()) - {"task", "model", "domain", "metric", "command", "date"}:
            value = getattr(read({key: wrong}), key)
            assert value in (getattr(empty, key), str(wrong), wrong), key


def test_a_carved_split_names_the_split_it_came_from() -> None:
    data = read({"data": {"carved": {"test": {"from": "train", "fraction": 0.1}}}}).data
    assert (data.carved["test"].taken_from, data.carved["test"].fraction) == ("train", 0.1)
