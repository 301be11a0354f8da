"""A run killed at any moment leaves no torn file, and the next run resumes where it stopped."""

import signal
from pathlib import Path

import pytest
from runs import finished, make_world, run_sieve

# A kill before anything is written, amid the files of the longest stages, and between stages; with
# the number of finished files in the cache: calibrate and search write two, refit three, fit one
# for each of two blocks, and an index, evaluate two; the labels alone (TF-IDF) are scored after it.
KILLS = {
    "calibrate:begin": 0,
    "fit:rename": 2,
    "search:rename": 5,
    "refit:rename": 7,
    "evaluate:end": 12,
    "export:rename": 13,
    "report:rename": 13,
}
QUICK = ("projection.refit_tries=1", "speed.enabled=false")


@pytest.mark.slow
def test_a_run_that_is_killed_seven_times_ends_as_one_that_is_not(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    whole = finished(world, "whole", *QUICK, cache="cache_of_whole")
    run_dir, cache = world / "killed", world / "cache"
    before: dict[str, int] = {}
    for moment, artifacts in KILLS.items():
        done = run_sieve(world, run_dir, *QUICK, kill=moment)
        assert done.status == -signal.SIGKILL, done.stderr
        files = [path for path in cache.rglob("[!.]*") if path.is_file()]
        after = {path.name: path.stat().st_mtime_ns for path in files}
        # Finished files are not written again; an unfinished file has a temporary name.
        assert before.items() <= after.items()
        assert len(after) == artifacts, moment
        if moment.endswith("rename"):
            assert [*cache.rglob(".*.partial"), *run_dir.glob(".*.partial")]
        before = after

    result = finished(world, "killed", *QUICK)
    assert all(
        result["cached"][stage] for stage in ("calibrate", "fit", "search", "refit", "evaluate")
    )
    for key in ("baseline", "pruned", "drop", "kept_fraction", "bytes", "matrices", "spectrum"):
        assert result[key] == whole[key], key
    for name in ("genome.json", "export/model.safetensors"):
        assert (run_dir / name).read_bytes() == (world / "whole" / name).read_bytes()
    # The final run removes the temporary files that the kills left in the run directory.
    assert not list(run_dir.glob(".*.partial"))


@pytest.mark.slow
def test_a_run_that_is_asked_to_end_says_what_is_finished_and_how_to_resume(tmp_path: Path) -> None:
    done = run_sieve(make_world(tmp_path), tmp_path / "ended", *QUICK, kill="calibrate:terminate")
    assert done.status == 130, done.stderr
    message = "Interrupted. Finished: no stage. Run the same command again to resume.\n"
    assert done.stderr.endswith(message)
