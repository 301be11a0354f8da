"""A genetic search in figures: sizes over the generations, and the bottleneck map."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from sieve.report.heatmap import kept_heatmap
from sieve.report.style import ACCENT, MUTED, base_figure, empty_figure
from sieve.report.values import look, number


def generations(result: Mapping[str, Any]) -> go.Figure:
    """Kept prunable parameters (percent) by generation: the best so far, and where most lie."""
    title = "Size by generation"
    rows = look(result, "search.generations") or []
    if not rows:
        return empty_figure(title, "The search had no generations.")
    figure = base_figure(title, height=340)
    x = [row.get("generation") for row in rows]
    for key, fill in (("high", None), ("low", "tonexty")):
        figure.add_trace(
            go.Scatter(
                x=x, y=[_percent(row.get(key)) for row in rows], mode="lines",
                line={"width": 0}, fill=fill, fillcolor="rgba(0,114,178,0.15)",
                name="middle 80 % of the genomes", showlegend=fill is not None, hoverinfo="skip",
            )
        )  # fmt: skip
    for key, name, colour, dash in (
        ("median", "median", MUTED, "dot"),
        ("best", "smallest feasible so far", ACCENT, "solid"),
    ):
        figure.add_trace(
            go.Scatter(
                x=x, y=[_percent(row.get(key)) for row in rows], mode="lines+markers",
                line={"color": colour, "dash": dash}, name=name,
                hovertemplate="generation %{x}: %{y:.2f} %<extra></extra>",
            )
        )  # fmt: skip
    figure.update_xaxes(title_text="Generation")
    figure.update_yaxes(title_text="Prunable parameters kept, %", rangemode="tozero")
    return figure


def bottleneck_map(result: Mapping[str, Any]) -> go.Figure:
    """How little (percent) each matrix alone can keep, the rest dense, per layer and kind."""
    places = {matrix.get("name"): matrix for matrix in look(result, "matrices") or []}
    rows = [
        dict(places[row["name"]]) | {"kept_fraction": row["kept_fraction"]}
        for row in look(result, "search.bottlenecks") or []
        if row.get("name") in places
    ]
    figure = kept_heatmap({"matrices": rows})
    figure.update_layout(title_text="What each matrix alone must keep")
    return figure


def _percent(value: Any) -> float | None:
    found = number(value)
    return None if found is None else 100 * found
