"""What a run's log takes of a result."""

import pytest
from report.results import full_result, genetic_result

from sieve.report.closing import closing, headline, rows_per_test


def test_closing_figures_are_nested_as_in_the_result_and_have_no_lists() -> None:
    result = genetic_result()
    found = closing(result)
    assert found["kept_fraction"] == result["kept_fraction"]
    assert found["model"] == "reader-6m" and found["search"]["evaluations"] == 7
    assert "curve" not in found["search"] and "matrices" not in found
    # A key per matrix of a large model would drown the rest.
    assert "kept_high" not in found["search"] and "spectrum" not in found


def test_the_headline_is_plain_numbers() -> None:
    result = full_result()
    found = headline(result)
    assert found["kept_fraction"] == 0.35 and found["kept_fraction_model"] == 0.55
    assert found["bytes_fraction"] == pytest.approx(7_200_000 / 12_906_872)
    assert (found["dense_accuracy"], found["accuracy"], found["drop"]) == (0.807, 0.801, 0.006)
    assert found["stage_seconds"] == pytest.approx(sum(result["seconds"].values()))
    assert found["evaluations"] == 8 and found["peak_memory_mib"] == 900.0


def test_the_headline_leaves_out_missing_measurements() -> None:
    result = full_result() | {"speed": None, "seconds": {}}
    result["drop"] = {"point": float("nan"), "low": None, "high": None}
    missing = {"prefill_ratio", "decode_ratio", "stage_seconds", "drop", "drop_low", "drop_high"}
    assert set(headline(full_result())) - set(headline(result)) == missing
    assert headline({}) == {}


def test_every_tested_task_has_a_row_with_the_run_settings() -> None:
    other = {key: full_result()[key] for key in ("metric", "pruned", "drop")}
    other |= {"domain": "questions", "baseline": {"accuracy": 0.9}}
    own, trec = rows_per_test(full_result() | {"also": {"trec": other}})
    assert (own["sieved_on"], own["tested_on"], own["domain"]) == ("sst2", "sst2", "sentiment")
    assert (trec["sieved_on"], trec["tested_on"], trec["domain"]) == ("sst2", "trec", "questions")
    assert (trec["dense_accuracy"], trec["accuracy"], trec["drop_high"]) == (0.9, 0.801, 0.016)
    assert (own["search"], own["recovery"], own["kept_fraction"]) == ("uniform", None, 0.35)
