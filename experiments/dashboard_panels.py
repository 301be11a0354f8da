"""Short constructors for W&B panels, run sets and columns.

Only this module imports `wandb-workspaces`, which Sieve itself does not need.
"""

import warnings
from collections.abc import Sequence
from typing import Any

from experiments import dashboard_keys as keys

with warnings.catch_warnings():
    # It still uses a deprecated pydantic interface.
    warnings.simplefilter("ignore", DeprecationWarning)
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

__all__ = [
    "FINISHED",
    "arranged",
    "bars",
    "columns",
    "config_column",
    "lines",
    "media",
    "parallel",
    "runset",
    "scatter",
    "table",
    "wr",
    "ws",
]
FINISHED = "Metric('State') == 'finished'"
WIDTH, HEIGHT = 24, 9  # of a report's grid, of a panel


def scatter(title: str, x: str, y: str, **options: Any) -> wr.ScatterPlot:
    """A point per run."""
    return wr.ScatterPlot(title=title, x=wr.SummaryMetric(x), y=wr.SummaryMetric(y), **options)


def lines(title: str, x: str, y: Sequence[str], **options: Any) -> wr.LinePlot:
    """One line per run and key, over the step of the series."""
    return wr.LinePlot(
        title=title,
        x=x,
        y=list(y),
        smoothing_factor=0,
        smoothing_type="none",
        max_runs_to_show=100,
        **options,
    )


def bars(title: str, metrics: Sequence[str], by: str | None = None) -> wr.BarPlot:
    """One bar per run; with the setting `by`, one bar per value: the mean, with the range."""
    grouped: dict[str, Any] = {}
    if by:
        grouped = {
            "groupby": wr.Config(by),
            "groupby_aggfunc": "mean",
            "groupby_rangefunc": "minmax",
        }
    return wr.BarPlot(title=title, metrics=list(metrics), max_bars_to_show=100, **grouped)


def media(title: str, *names: str) -> wr.MediaBrowser:
    """The figures that runs log."""
    return wr.MediaBrowser(title=title, media_keys=list(names), num_columns=1)


def table(name: str) -> wr.WeavePanelSummaryTable:
    """The table that runs log."""
    return wr.WeavePanelSummaryTable(table_name=name)


def parallel() -> wr.ParallelCoordinatesPlot:
    """A parallel-coordinates plot of settings and results."""
    settings = (keys.TASK, keys.PROJECTION, keys.SEARCH, keys.RECOVERY)
    found = ((keys.KEPT, "kept"), (keys.DROP, "drop"), (keys.ACCURACY, "accuracy"))
    return wr.ParallelCoordinatesPlot(
        title="What was set, and what came of it",
        columns=[
            *(_coordinate(wr.Config(key), key.split(".")[0]) for key in settings),
            *(_coordinate(wr.SummaryMetric(key), name) for key, name in found),
        ],
    )


def runset(name: str, groups: Sequence[str], by: Sequence[str] = ()) -> wr.Runset:
    """The finished runs of some `logger.group`s, sorted by kept fraction, grouped by settings."""
    members = " or ".join(f"Metric('Group') == '{group}'" for group in groups)
    shown = columns()
    return wr.Runset(
        name=name,
        filters=f"({members}) and {FINISHED}",
        groupby=[f"config.{key}" for key in by],
        order=[wr.OrderBy(wr.SummaryMetric(keys.KEPT), ascending=True)],
        pinned_columns=["run:displayName"],
        visible_columns=shown,
        column_order=["run:displayName", *shown],
        lock_columns=True,
    )


def columns() -> list[str]:
    """The columns of the run table: settings, kept fraction, drop and cost."""
    settings = (
        keys.TASK,
        keys.MODEL,
        keys.PROJECTION,
        keys.SEARCH,
        keys.RECOVERY,
        keys.QUANTIZATION,
        keys.TOLERANCE,
        keys.SEED,
    )
    found = (
        keys.KEPT,
        keys.KEPT_OF_MODEL,
        keys.BYTES,
        keys.DENSE_ACCURACY,
        keys.ACCURACY,
        keys.DROP,
        keys.DROP_LOW,
        keys.DROP_HIGH,
        keys.EVALUATIONS,
        keys.STAGE_SECONDS,
        keys.MEMORY,
    )
    return [*map(config_column, settings), *(f"summary:{key}" for key in found)]


def config_column(key: str) -> str:
    """A setting as a column. W&B stores each top-level setting under a key named `value`."""
    first, *rest = key.split(".")
    return ".".join([f"config:{first}", "value", *rest])


def arranged(panels: Sequence[Any], a_row: int = 2) -> list[Any]:
    """Arrange panels in rows on a report's grid."""
    width = WIDTH // a_row
    for place, panel in enumerate(panels):
        row, column = divmod(place, a_row)
        panel.layout = wr.Layout(x=width * column, y=HEIGHT * row, w=width, h=HEIGHT)
    return list(panels)


def _coordinate(metric: Any, name: str) -> wr.ParallelCoordinatesPlotColumn:
    return wr.ParallelCoordinatesPlotColumn(metric=metric, display_name=name)
