"""The live view: one table where the terminal can show it, else a line per generation."""

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
from ._terminal import held
from .config import GeneticSweeperConf

log = logging.getLogger(__name__)
RECENT = 8  # generations shown


class View:
    """Generation, best feasible, spread of the population, evaluations, memo hits, time left."""

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
            nullcontext(self.console) if self.console else held() as console,
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
        """Whether there is a terminal that can move its cursor; rich takes a variable's word."""
        console = self.console or Console(stderr=True)
        able = console.is_terminal and not console.is_dumb_terminal
        return self.settings.view and able and (self.console is not None or os.isatty(2))

    def begin(self, number: int, size: int, progress: Callable[[], int]) -> None:
        """A generation of `size` new genomes begins; progress: how many of them are done."""
        self._number, self._size, self._progress = number, size, progress
        self._began = time.monotonic()

    def end(self, evolution: Evolution, memo: int, seconds: float) -> None:
        """A generation is done, and counted. memo: its genomes that were known before."""
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
        """Seconds the search takes at most, at its pace so far; None where nothing bounds it."""
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
        """Seconds of a generation: of the last ones, or as the first goes on."""
        if self._seconds:
            return float(np.mean(self._seconds[-5:]))
        done = self._progress()
        return passed * self._size / done if done else None

    def shape(self) -> Group:
        """The last generations as a table, and a line on the one that runs."""
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        for name in ("generation", "best", "spread", "evaluations", "memo", "time"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.rows[-RECENT:]:
            table.add_row(*row)
        return Group(table, Text(self.running())) if self._size else Group(table)

    def running(self) -> str:
        """What is going on, in a line."""
        done = min(self._progress(), self._size)
        passed, left = duration(time.monotonic() - self._began), self.left()
        rest = "" if left is None else f", at most {duration(left)} left"
        return f"generation {self._number}: {done} of {self._size} genomes in {passed}{rest}"


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


def duration(seconds: float) -> str:
    """Such as 1:02:03, 0:42 or 7.1 s."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
