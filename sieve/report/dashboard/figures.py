"""Layouts and themes of the plots, to which the page's script adds the runs.

The colors of a layout come from the template of the light or the dark theme.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence

import plotly.graph_objects as go

from sieve.report.dashboard.gather import Run
from sieve.report.result import Number, Result
from sieve.report.style import (
    ACCENT,
    GRID,
    INK,
    MUTED,
    WARNING,
    label,
    plain_layout,
    sequential_scale,
)
from sieve.report.units import axis, limit, metric_name, scale, unit, word

_LIGHT = (ACCENT, "#b36b00", "#00805d", "#b04f8a", "#c44f00", "#2f8fc4", "#6d7883")
_DARK = ("#62b5ee", "#f0b84a", "#4cc79b", "#e59bc6", "#ff8f4f", "#a6d8f7", "#98a5b2")


def themes() -> dict[str, dict[str, object]]:
    """For light and dark pages: a template, and the color scales of the level maps."""
    return {
        "light": {
            "template": _template(INK, MUTED, GRID, "#ffffff", _LIGHT),
            "kept": sequential_scale(),
            "change": [[0, "#b54a00"], [0.5, "#ffffff"], [1, ACCENT]],
        },
        "dark": {
            "template": _template("#e4e9ee", "#98a5b2", "#2b353f", "#11171d", _DARK),
            "kept": [[0, "#1a2632"], [0.25, "#53789a"], [1, "#8ccbf5"]],
            "change": [[0, "#ff9f5f"], [0.5, "#11171d"], [1, "#62b5ee"]],
        },
    }


def _template(
    ink: str, muted: str, grid: str, ground: str, colors: Sequence[str]
) -> dict[str, object]:
    layout = plain_layout(ink, muted, grid, ground)
    layout.colorway = colors
    layout.shapedefaults = {
        "line": {"color": muted, "width": 1},
        "label": {"font": {"color": muted}},
    }
    return {"layout": _layout(go.Figure(layout=layout))}


def series(run: Run) -> str:
    """The name that runs share if their metrics compare: task and metric."""
    return f"{run.result.task}, {metric_name(run.result)}"


def front_layouts(runs: Sequence[Run]) -> dict[str, dict[str, dict[str, object]]]:
    """For each series and each measure (`metric`, `drop`) the layout of its plot."""
    members = defaultdict[str, list[Result]](list)
    for run in runs:
        members[series(run)].append(run.result)
    return {name: _measures(results) for name, results in members.items()}


def _measures(results: Sequence[Result]) -> dict[str, dict[str, object]]:
    first = results[0]
    dense = _common(result.baseline.accuracy for result in results)
    tolerance = _common(result.tolerance for result in results)
    worst = None if dense is None or tolerance is None else limit(first, dense, tolerance)
    metric, drop = label(metric_name(first)).capitalize(), word(first).capitalize()
    return {
        "metric": _front(metric + axis(first), {"dense": dense, "tolerance": worst}, scale(first))
        | {"larger_is_better": not first.relative},
        "drop": _front(f"{drop}, {unit(first)}", {"dense": 0.0, "tolerance": tolerance}, 100)
        | {"larger_is_better": False},
    }


def _front(title: str, lines: dict[str, Number], factor: float) -> dict[str, object]:
    """A plot with horizontal lines; the script draws the runs and their front."""
    figure = go.Figure(layout={"template": "none", "height": 440, "hovermode": "closest"})
    figure.update_yaxes(title_text=title)
    for name, value in lines.items():
        if value is not None:
            line = {"dash": "dash", "color": WARNING} if name == "tolerance" else {"dash": "dot"}
            text = {"text": name, "textposition": "end"}
            figure.add_hline(factor * value, line=line, label=text, layer="below")
    return {"title": title, "layout": _layout(figure)}


def map_layout() -> dict[str, object]:
    """The layout of a level map; the script adds the height."""
    figure = go.Figure(layout={"template": "none"})
    figure.update_xaxes(type="category", showgrid=False, showline=False, side="top")
    figure.update_yaxes(type="category", showgrid=False, showline=False, autorange="reversed")
    return _layout(figure)


def _layout(figure: go.Figure) -> dict[str, object]:
    """The layout of a figure as plain JSON, without a template."""
    layout: dict[str, object] = json.loads(figure.to_json())["layout"]
    layout.pop("template", None)
    return layout


def _common(values: Iterable[Number]) -> Number:
    """The value that all runs share, or None."""
    distinct = {None if value is None else round(value, 6) for value in values}
    return distinct.pop() if len(distinct) == 1 else None
