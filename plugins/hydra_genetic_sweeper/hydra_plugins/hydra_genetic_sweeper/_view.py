"""The live view: a table on a terminal, otherwise one log line per generation."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ._evolution import Evolution
from ._stopping import Stopping
from ._terminal import captured_terminal
from .config import GeneticSweeperConf

log = logging.getLogger(__name__)
RECENT = 8  # generations shown


class View:
    """Shows the last generations: best, spread, evaluations, memo hits, time and time left."""

    def __init__(
        self, settings: GeneticSweeperConf, stopping: Stopping, console: Console | None = None
    ) -> None:
        self.settings, self.stopping = settings, stopping
        self.console = console
        self.rows: list[tuple[str, ...]] = []
        self._progress: Callable[[], int] = lambda: 0
        self._number, self._size, self._began = 0, 0, 0.0
        self._seconds: list[float] = []
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the table while the block runs."""
        if not self._can_be_live():
            yield
            return
        with (
            nullcontext(self.console) if self.console else captured_terminal() as console,
            Live(
                console=console,
                get_renderable=self.shape,
                refresh_per_second=2,
                redirect_stdout=False,
                redirect_stderr=False,
            ) as self._live,
        ):
            yield
            self._size = 0
        self._live = None

    def _can_be_live(self) -> bool:
        """Whether the terminal can move its cursor; rich alone trusts environment variables."""
        console = self.console or Console(stderr=True)
        able = console.is_terminal and not console.is_dumb_terminal
        return self.settings.view and able and (self.console is not None or os.isatty(2))

    def begin(self, number: int, size: int, progress: Callable[[], int]) -> None:
        """Start a generation of `size` new genomes; `progress` returns how many are done."""
        self._number, self._size, self._progress = number, size, progress
        self._began = time.monotonic()

    def end(self, evolution: Evolution, memo: int, seconds: float) -> None:
        """Add a finished generation; `memo` of its genomes had been evaluated before."""
        self._seconds.append(seconds)
        self._size = 0
        row = (
            str(len(self.stopping.progress)),
            best_text(evolution),
            f"{spread(evolution):.1%}",
            str(self.stopping.evaluated),
            str(memo),
            duration(seconds),
        )
        self.rows.append(row)
        if self._live is None:
            left = self.left()
            log.info(
                "generation %s  best %s  spread %s  evaluations %s  memo %s  time %s%s",
                *row,
                "" if left is None else f"  at most {duration(left)} left",
            )

    def left(self) -> float | None:
        """The most seconds that the search can still take at its pace; None without a limit."""
        settings, stopping = self.settings, self.stopping
        passed = time.monotonic() - self._began if self._size else 0.0
        if (pace := self._pace(passed)) is None:
            return None
        bounds = []
        if settings.generations is not None:
            running = max(0.0, pace - passed) - pace if self._size else 0.0
            bounds.append((settings.generations - len(stopping.progress)) * pace + running)
        if settings.seconds is not None:
            bounds.append(settings.seconds - stopping.seconds - passed)
        if (budget := stopping.budget) is not None and stopping.evaluated:
            bounds.append(budget * stopping.seconds / stopping.evaluated - passed)
        return max(0.0, min(bounds)) if bounds else None

    def _pace(self, passed: float) -> float | None:
        """Seconds per generation: the mean of the last ones, or an estimate during the first."""
        if self._seconds:
            return float(np.mean(self._seconds[-5:]))
        done = self._progress()
        return passed * self._size / done if done else None

    def shape(self) -> Group:
        """The last generations as a table, and a line about the running one."""
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        for name in ("generation", "best", "spread", "evaluations", "memo", "time"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.rows[-RECENT:]:
            table.add_row(*row)
        return Group(table, Text(self.running())) if self._size else Group(table)

    def running(self) -> str:
        """The progress of the running generation, in one line."""
        done = min(self._progress(), self._size)
        passed, left = duration(time.monotonic() - self._began), self.left()
        rest = "" if left is None else f", at most {duration(left)} left"
        return f"generation {self._number}: {done} of {self._size} genomes in {passed}{rest}"


def best_text(evolution: Evolution) -> str:
    """The best value, the size of the front, or the smallest violation."""
    best, objectives = evolution.best(), evolution.objectives
    if not best:
        return "none"
    evaluation = evolution.evaluations[best[0]]
    if (violation := objectives.violation(evaluation)) > 0:
        return f"infeasible by {violation:.3g}"
    if len(objectives.directions) > 1:
        return f"front of {len(best)}"
    return f"{evaluation.values[next(iter(objectives.directions))]:.5g}"


def spread(evolution: Evolution) -> float:
    """The mean standard deviation of a gene in the population, as a fraction of its range."""
    genomes = np.array(evolution.population)
    ranges = np.array([max(v.high - v.low, 1e-12) for v in evolution.space.variables])
    return float((genomes.std(axis=0) / ranges).mean())


def duration(seconds: float) -> str:
    """A duration such as 1:02:03, 0:42 or 7.1 s."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
