"""Progress bars with rate and time left; only rank 0 shows them, and only in a terminal.

All bars of a process have one style. A bar within a bar is shown below it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

T = TypeVar("T")
console = Console(stderr=True)  # progress
output = Console()  # results
_shown: list[Progress] = []  # the bars of this process, at most one group


def is_rank_zero() -> bool:
    """Whether this process is rank 0 or the only one."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0


class _Count(ProgressColumn):
    """ "1,024/1,500", or "1,024" if the end is not known."""

    def render(self, task: Task) -> Text:
        """The column of one bar."""
        total = "" if task.total is None else f"/{task.total:,.0f}"
        return Text(f"{task.completed:,.0f}{total}", style="progress.download")


class _Rate(ProgressColumn):
    """ "410 rows/s"; empty until it is known."""

    def render(self, task: Task) -> Text:
        """The column of one bar."""
        speed = task.finished_speed or task.speed
        if speed is None:
            return Text("")
        digits = 0 if speed >= 100 else 1 if speed >= 1 else 2
        unit = task.fields.get("unit", "")
        rate = f"{speed:,.{digits}f}"
        return Text(f"{rate} {unit}/s" if unit else f"{rate}/s", style="progress.data.speed")


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """The bars of this process: description, count, rate and time left.

    The field `unit` of a task names what it counts, such as "rows". Remove a task at its end.
    """
    if _shown:
        yield _shown[0]
        return
    progress = Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=None),
        _Count(),
        _Rate(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not is_rank_zero() or not console.is_terminal,
    )
    with progress:
        _shown.append(progress)
        try:
            yield progress
        finally:
            _shown.remove(progress)


def track(
    items: Sequence[T] | Iterable[T],
    description: str,
    total: float | None = None,
    unit: str = "",
    size: Callable[[T], float] = lambda _: 1,
) -> Iterator[T]:
    """Iterate with a progress bar.

    Args:
        total: what the sizes add up to; None: computed if `items` is a sequence.
        unit: what is counted, in the plural, such as "rows".
        size: how much of it an item has.
    """
    if total is None and isinstance(items, Sequence):
        total = sum(map(size, items))
    with progress_bar() as progress:
        bar = progress.add_task(description, total=total, unit=unit)
        try:
            for item in items:
                yield item
                progress.advance(bar, size(item))
        finally:
            progress.remove_task(bar)
