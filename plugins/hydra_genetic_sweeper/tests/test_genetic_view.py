"""The live view, and job output on the same terminal."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from applications import CHUNKS, JOBLIB, command, environment
from hydra_plugins.hydra_genetic_sweeper._evolution import Evolution
from hydra_plugins.hydra_genetic_sweeper._ledger import Generation
from hydra_plugins.hydra_genetic_sweeper._objectives import Evaluation, Objectives
from hydra_plugins.hydra_genetic_sweeper._space import Discrete, Space
from hydra_plugins.hydra_genetic_sweeper._stopping import Stopping
from hydra_plugins.hydra_genetic_sweeper._view import View, duration
from hydra_plugins.hydra_genetic_sweeper.config import GeneticSweeperConf
from rich.console import Console

SIZE = Objectives({"size": "minimize"}, {})
SPACE = Space(tuple(Discrete(name, tuple(range(9))) for name in "ab"))


def view(console: Console | None = None, **changes: Any) -> tuple[View, Evolution]:
    settings = GeneticSweeperConf(**{"population": 6} | changes)
    return View(settings, Stopping(settings, SIZE), console), Evolution(SPACE, settings, SIZE)


def take(view: View, evolution: Evolution, seconds: float) -> None:
    genomes = evolution.ask()
    evaluations = [Evaluation({"size": genome[0]}) for genome in genomes]
    evolution.tell(evaluations)
    view.stopping.update(Generation(genomes, evaluations, len(genomes), 1, seconds))
    view.end(evolution, 2, seconds)


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({"generations": 5}, 30.0),
        ({"generations": None, "seconds": 25.0}, 5.0),
        ({"generations": None, "evaluations": 15}, 5.0),
        ({"generations": 3, "seconds": 1000.0}, 10.0),
        ({"generations": None}, None),
    ],
)
def test_time_left_is_the_nearest_limit_at_the_current_pace(
    changes: dict[str, Any], left: float | None
) -> None:
    shown_view, evolution = view(**changes)
    assert shown_view.left() is None
    take(shown_view, evolution, 8.0)
    take(shown_view, evolution, 12.0)
    assert shown_view.left() == (None if left is None else pytest.approx(left))
    shown_view.begin(3, 6, lambda: 3)
    shown_view._began -= 4.0
    assert shown_view.left() == (None if left is None else pytest.approx(left - 4, abs=0.1))


def test_the_live_view_shows_progress_and_time_left() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    shown_view, evolution = view(console, generations=4)
    with shown_view.shown():
        take(shown_view, evolution, 61.0)
        shown_view.begin(2, 6, lambda: 3)
        console.print(shown_view.shape())
    text = console.file.getvalue()
    for name in ("generation", "best", "spread", "evaluations", "memo", "time", "1:01"):
        assert name in text
    assert "generation 2: 3 of 6 genomes in 0.0 s, at most 3:03 left" in text


def test_durations_have_units() -> None:
    assert [duration(s) for s in (0.04, 9.94, 9.96, 61, 3723)] == [
        "0.0 s",
        "9.9 s",
        "0:10",
        "1:01",
        "1:02:03",
    ]


def on_a_terminal(folder: Path, *overrides: str) -> tuple[str, str]:
    """Run a search with stderr on a terminal of 100 columns; return stderr and stdout."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        command(CHUNKS, *overrides),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env=environment() | {"TERM": "xterm-256color", "COLUMNS": "100"},
    )
    os.close(theirs)
    screen = b""
    try:
        while chunk := os.read(ours, 1 << 16):
            screen += chunk
    except OSError:
        pass  # Linux raises this when the other end is closed.
    os.close(ours)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, screen
    return screen.decode(), out


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="terminals of POSIX")
def test_job_output_appears_above_the_view(tmp_path: Path) -> None:
    pytest.importorskip("joblib")
    few = ("hydra.sweeper.generations=3", "seconds=0.1")
    screen, out = on_a_terminal(tmp_path, *few, *JOBLIB)
    screen = re.sub(r"\x1b\[\?25[lh]", "", screen)  # show and hide the cursor
    notes = [match.start() for match in re.finditer("a chunk of", screen)]
    assert len(notes) == 6
    for note in notes:
        assert screen[:note].endswith(("\n", "\x1b[2K")) or note == 0
    assert "a chunk of" not in out and "optimization_results.yaml" in out
    assert re.search(r"generation [23]: . of 8 genomes in .* s, at most .* s left", screen)
