"""A genetic search in figures: sizes over the generations, and the bottleneck map."""

from collections.abc import Iterable, Mapping
from typing import Any

import plotly.graph_objects as go

from sieve.report.heatmap import heatmaps
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
    figure.update_xaxes(title_text="Generation", dtick=1 if len(rows) <= 12 else None)
    figure.update_yaxes(title_text="Prunable parameters kept, %", rangemode="nonnegative")
    return figure


def bottleneck_map(result: Mapping[str, Any]) -> go.Figure:
    """How little (percent) each matrix alone can keep, and how much the search left it.

    The first with all other matrices dense; the second is the mean level among the smallest tenth
    of the feasible genomes. Per layer and kind; a map that was not made is left out.
    """
    alone = {row["name"]: _least(row) for row in look(result, "search.bottlenecks") or []}
    high = look(result, "search.kept_high") or {}
    maps = {"alone must keep, %": alone, "kept by the smallest<br>feasible genomes, %": high}
    places = _places(result, [*alone, *high])
    rows = {
        heading: [places[name] | {"kept_fraction": kept} for name, kept in found.items()]
        for heading, found in maps.items()
        if found
    }
    return heatmaps("The bottleneck map", rows)


def _least(row: Mapping[str, Any]) -> float | None:
    """Kept fraction that a matrix needs; at level 0 nothing of it, though its mean output stays."""
    return 0.0 if row.get("level") == 0 else number(row.get("kept_fraction"))


def _places(result: Mapping[str, Any], names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Layer, kind and shape by name, also of matrices that share factors ("a.q_proj+k_proj")."""
    matrices = {matrix.get("name"): matrix for matrix in look(result, "matrices") or []}
    places = {}
    for name in names:
        first, *others = name.split("+")
        parent = first.rpartition(".")[0]
        members = [matrices.get(n, {}) for n in (first, *(f"{parent}.{n}" for n in others))]
        places[name] = {
            "layer": members[0].get("layer"),
            "kind": "+".join(str(member.get("kind") or "other") for member in members),
            "d_out": sum(number(member.get("d_out")) or 0 for member in members),
            "d_in": members[0].get("d_in"),
        }
    return places


def _percent(value: Any) -> float | None:
    found = number(value)
    return None if found is None else 100 * found
