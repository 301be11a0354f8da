"""The table at the end of a multirun has every job, also one that failed."""

from pathlib import Path

import pytest
from rich.console import Console
from runs import arguments, execute, make_world

from sieve.report.jobs import jobs_table, read_jobs
from sieve.runtime.artifacts import write_json_atomic


def write_job(
    folder: Path, *overrides: str, failure: str | None = None, ended: bool = True
) -> None:
    (folder / ".hydra").mkdir(parents=True)
    lines = "".join(f"- {word}\n" for word in overrides)
    (folder / ".hydra" / "overrides.yaml").write_text(lines or "[]\n")
    if ended:
        write_json_atomic(folder / "job.json", {"failure": failure})


def text_of(sweep: Path, width: int = 80) -> str:
    console = Console(width=width, record=True, color_system=None)
    with console.capture() as capture:
        console.print(jobs_table(sweep))
    return capture.get()


def test_a_failed_job_has_its_reason_and_a_killed_one_too(tmp_path: Path) -> None:
    write_job(tmp_path / "10", "+task=x", "seed=10", failure="tolerance is -1; raise it.")
    write_job(tmp_path / "2", "+task=x", "seed=2", ended=False)
    text = text_of(tmp_path)
    assert "Job 10 failed: tolerance is -1; raise it." in text
    assert "Job 2 failed: it did not finish." in text
    assert "seed=10" in text and "+task=x" not in text  # What all jobs share says nothing.
    assert text.index("seed=2") < text.index("seed=10")  # In the order of the numbers.


def test_jobs_without_a_result_have_no_table_and_parts_of_a_search_are_left_out(
    tmp_path: Path,
) -> None:
    write_job(tmp_path / "0", "dry_run=true")
    assert jobs_table(tmp_path) is None
    write_job(tmp_path / "1", "+sweep.job=prepare", failure="x")
    assert [job.folder.name for job in read_jobs(tmp_path)] == ["0"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_multirun_ends_with_a_table_of_its_jobs(launcher: str, tmp_path: Path) -> None:
    world = make_world(tmp_path)
    words = [
        "--multirun",
        f"launcher={launcher}",
        "tolerance=.9,.95,7",
        "projection.refit=false",
        "speed.enabled=false",
        "export=none",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
    ]
    given = [w for w in arguments(world, tmp_path) if not w.startswith("hydra.run.dir")]
    done = execute(tmp_path, [*given, *words])
    assert done.status == 1  # One of the tolerances is out of range.
    table = done.stdout[done.stdout.rindex(" job ") :].splitlines()
    for line, tolerance in zip(table[1:4], ("0.9", "0.95", "7"), strict=True):
        assert f"tolerance={tolerance}" in line
    # The model of these tests is no better than chance.
    assert all(line.count("%") == 2 and "→" in line for line in table[1:3]), table
    assert all("no answer" in line for line in table[1:3]), table
    assert "failed" in table[3]
    assert "Job 2 failed: tolerance is 7" in done.stdout
    assert "The job's number is its folder in sweep" in done.stdout
