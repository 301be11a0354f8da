"""Progress bars with the time left; only rank 0 shows them, and only in a terminal."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")
console = Console(stderr=True)  # progress
output = Console()  # results


def is_rank_zero() -> bool:
    """Whether this process is rank 0 or the only one."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0


def progress_bar() -> Progress:
    """A rich progress bar with description, count, elapsed time and time left."""
    return Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not is_rank_zero() or not console.is_terminal,
    )


def track(
    items: Sequence[T] | Iterable[T], description: str, total: int | None = None
) -> Iterator[T]:
    """Iterate with a progress bar."""
    with progress_bar() as progress:
        yield from progress.track(items, description=description, total=total)
