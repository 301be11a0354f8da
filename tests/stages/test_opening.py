"""Opening a run: it says its rows, refuses rows that are too long, and says where it ended."""

import json
from pathlib import Path

import pytest
from runs import make_world, write_rows
from sessions import session


@pytest.mark.parametrize("split", ["validation", "test"])
def test_one_row_that_is_too_long_is_an_error_when_a_run_opens(tmp_path: Path, split: str) -> None:
    world = make_world(tmp_path)
    file = world / "data" / f"{split}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[7]["text"] += " 1 2 3 4" * 100
    write_rows(file, rows)
    message = "1 of 120 prompts are longer than the model's context"
    with pytest.raises(ValueError, match=message), session(world):
        pass


def test_a_run_says_its_rows_and_its_longest_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "sieve")
    with session(make_world(tmp_path)):
        lines = [r.message for r in caplog.records if r.message.startswith(("Rows", "The longest"))]
    assert lines[0].startswith("Rows: 120 calibration (60 no, 60 yes), 60 selection (30 no")
    assert lines[1].endswith(" of at most 128 tokens.") and len(lines) == 2


@pytest.mark.parametrize("lightning", [False, True])
def test_an_interrupted_run_says_which_stages_are_finished(tmp_path: Path, lightning: bool) -> None:
    with pytest.raises(KeyboardInterrupt, match="^Interrupted. Finished: calibrate, fit$"):
        with session(make_world(tmp_path)) as run:
            run.seconds |= {"calibrate": 1.0, "fit": 2.0}
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt:
                if lightning:  # It ends the process where it is interrupted.
                    raise SystemExit(1)  # noqa: B904
                raise
