"""The live view: one table where the terminal can show it, else a line per generation."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

from ._evolution import Evolution
from ._stopping import Stopping
from .config import GeneticSweeperConf

log = logging.getLogger(__name__)
RECENT = 8  # generations shown


class View:
    """Generation, best feasible, spread of the population, evaluations, memo hits, time left."""

    def __init__(self, settings: GeneticSweeperConf, console: Console | None = None) -> None:
        self.settings = settings
        self.console = console or Console(stderr=True)
        self.rows: list[tuple[str, ...]] = []
        self._progress: Callable[[], int] = lambda: 0
        self._size, self._number, self._began = 0, 0, time.monotonic()
        self._seconds: list[float] = []
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the table while the block runs."""
        if not (self.settings.view and self.console.is_terminal):
            yield
            return
        with Live(
            console=self.console, get_renderable=self.table, refresh_per_second=2, transient=False
        ) as self._live:
            yield
        self._live = None

    def begin(self, number: int, size: int, progress: Callable[[], int]) -> None:
        """A generation of `size` new genomes begins; progress: how many of them are done."""
        self._number, self._size, self._progress = number, size, progress
        self._began = time.monotonic()

    def end(self, evolution: Evolution, stopping: Stopping, memo: int, seconds: float) -> None:
        """A generation is done. memo: its genomes that were known before."""
        self._seconds.append(seconds)
        row = (
            str(len(stopping.progress)), best_text(evolution), f"{spread(evolution):.1%}",
            str(stopping.evaluated), str(memo), self.time_left(stopping),
        )  # fmt: skip
        self.rows.append(row)
        self._size = 0
        if self._live is None:
            log.info("generation %s  best %s  spread %s  evaluations %s  memo %s  left %s", *row)

    def time_left(self, stopping: Stopping) -> str:
        """At most so long, at the pace of the last generations; empty where nothing bounds it."""
        pace = float(np.mean(self._seconds[-5:])) if self._seconds else 0.0
        bounds = []
        if self.settings.generations is not None:
            bounds.append((self.settings.generations - len(stopping.progress)) * pace)
        if self.settings.seconds is not None:
            bounds.append(max(0.0, self.settings.seconds - stopping.seconds))
        if (budget := stopping.budget) is not None and stopping.evaluated:
            bounds.append(budget * stopping.seconds / stopping.evaluated)
        return _duration(min(bounds)) if bounds else ""

    def table(self) -> Table:
        """The table as it stands."""
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        for name in ("generation", "best", "spread", "evaluations", "memo", "at most left"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.rows[-RECENT:]:
            table.add_row(*row)
        if self._size:
            done = min(self._progress(), self._size)
            passed = _duration(time.monotonic() - self._began)
            table.add_row(str(self._number), f"{done} of {self._size}", "", "", "", passed)
        return table


def best_text(evolution: Evolution) -> str:
    """The best value, the length of the front, or what is missing to be feasible."""
    best, objectives = evolution.best(), evolution.objectives
    if not best:
        return "none"
    evaluation = evolution.known[best[0]]
    if (violation := objectives.violation(evaluation)) > 0:
        return f"infeasible by {violation:.3g}"
    if len(objectives.directions) > 1:
        return f"front of {len(best)}"
    return f"{evaluation.values[next(iter(objectives.directions))]:.5g}"


def spread(evolution: Evolution) -> float:
    """Mean standard deviation of a gene in the population, in parts of its range."""
    genomes = np.array(evolution.population)
    reach = np.array([max(v.high - v.low, 1e-12) for v in evolution.space.variables])
    return float((genomes.std(axis=0) / reach).mean())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
