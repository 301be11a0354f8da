"""A run killed at any moment leaves nothing torn, and the next one goes on where it stopped."""

import signal
from pathlib import Path

import pytest
from runs import finished, make_world, run_sieve

MOMENTS = ("begin", "rename", "end")
# How many files stand in the cache when a stage has ended; calibrate and search write two, refit
# three, fit one for each of two blocks, and an index.
ARTIFACTS = {
    "calibrate": 2,
    "fit": 5,
    "search": 7,
    "refit": 10,
    "evaluate": 11,
    "export": 11,
    "report": 11,
}


@pytest.mark.slow
def test_killed_at_every_stage_and_run_again(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    whole = finished(world, "whole", cache="cache_of_whole")
    run_dir, cache = world / "killed", world / "cache"
    before: dict[str, int] = {}
    for stage in ARTIFACTS:
        for moment in MOMENTS:
            done = run_sieve(world, run_dir, kill=f"{stage}:{moment}")
            assert done.status == -signal.SIGKILL, done.stderr
            files = [path for path in cache.rglob("[!.]*") if path.is_file()]
            after = {path.name: path.stat().st_mtime_ns for path in files}
            # What was finished is not written again; what was not bears no final name.
            assert before.items() <= after.items()
            if moment == "rename":
                assert [*cache.rglob(".*.partial"), *run_dir.glob(".*.partial")]
                assert after == before
            before = after
        assert len(before) == ARTIFACTS[stage]

    result = finished(world, "killed")
    assert all(
        result["cached"][stage] for stage in ("calibrate", "fit", "search", "refit", "evaluate")
    )
    for key in ("baseline", "pruned", "drop", "kept_fraction", "bytes", "matrices", "spectrum"):
        assert result[key] == whole[key], key
    for name in ("genome.json", "export/model.safetensors"):
        assert (run_dir / name).read_bytes() == (world / "whole" / name).read_bytes()
    # What the kills left beside the files of the run directory went when these were written.
    assert not list(run_dir.glob(".*.partial"))
