"""Whole runs of which calibration and fit read the model block by block."""

from pathlib import Path

import pytest
from runs import finished, make_world, read_result, run_sieve

STREAM = "calibration.strategy=stream"
STREAMED = (STREAM, "share_prefix=2")  # Streamed rows share no prefix.


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.slow
def test_a_run_until_fit_leaves_a_bank_and_the_next_goes_on_to_the_result_of_the_whole_model(
    world: Path,
) -> None:
    whole = finished(world, "whole", "share_prefix=2", cache="whole")
    done = run_sieve(world, world / "streamed", *STREAMED, "until=fit", cache="streamed")
    assert done.status == 0, done.stderr
    assert (next((world / "streamed").glob("bank-*")) / "index.json").is_file()
    assert not (world / "streamed" / "result.json").exists()
    assert not list((world / "streamed").glob(".hidden.*"))
    done = run_sieve(world, world / "streamed", *STREAMED, cache="streamed")
    assert done.status == 0, done.stderr
    result = read_result(world / "streamed")
    assert result["cached"]["calibrate"] and result["cached"]["fit"]
    for key in ("baseline", "pruned", "kept_fraction", "matrices"):
        assert result[key] == whole[key]


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("projection=learned", "projection=learned trains through the whole model"),
        ("calibration.layers_at_once=1", "set calibration.layers_at_once=null"),
        ("until=search", "until is 'search', expected one of fit"),
        ("calibration.hidden=tape", "calibration.hidden"),
    ],
)
def test_what_does_not_go_with_streaming_is_one_sentence(
    override: str, reason: str, world: Path
) -> None:
    done = run_sieve(world, world / "refused", STREAM, override)
    assert done.status == 1 and reason in done.stderr and "Traceback" not in done.stderr
