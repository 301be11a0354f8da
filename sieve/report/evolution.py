"""Figures of a genetic search: sizes over the generations, and the bottleneck map."""

from collections.abc import Iterable
from dataclasses import replace

import plotly.graph_objects as go

from sieve.report.building import build
from sieve.report.heatmap import heatmaps
from sieve.report.result import Generation, Matrix, Result
from sieve.report.style import ACCENT, MUTED, base_figure


def generations(result: Result) -> go.Figure | None:
    """Kept prunable parameters (percent) by generation: the smallest so far, and the spread."""
    title = "Size by generation"
    rows = result.search.generations
    if not rows:
        return None
    figure = base_figure(title, height=340)
    for key, fill in (("high", None), ("low", "tonexty")):
        band = _line(rows, key, "middle 80 % of the genomes", mode="lines", hoverinfo="skip")
        band.update(line={"width": 0}, fill=fill, fillcolor="rgba(0,114,178,0.15)")
        figure.add_trace(band.update(showlegend=fill is not None))
    for key, name, color, dash in (
        ("median", "median", MUTED, "dot"),
        ("best", "smallest feasible so far", ACCENT, "solid"),
    ):
        line = _line(rows, key, name, mode="lines+markers", line={"color": color, "dash": dash})
        hover = "generation %{x}: %{y:.2f} %<extra></extra>"
        figure.add_trace(line.update(hovertemplate=hover))
    figure.update_xaxes(title_text="Generation", dtick=1 if len(rows) <= 12 else None)
    figure.update_yaxes(title_text="Prunable parameters kept, %", rangemode="nonnegative")
    return figure


def _line(rows: list[Generation], key: str, name: str, **style: object) -> go.Scatter:
    fractions = [getattr(row, key) for row in rows]
    return go.Scatter(
        x=[row.generation for row in rows],
        y=[None if fraction is None else 100 * fraction for fraction in fractions],
        name=name,
        **style,
    )


def bottleneck_map(result: Result) -> go.Figure | None:
    """The least (percent) that each matrix alone can keep, and what the search left of it.

    All other matrices are dense in the first map. The second shows the mean level in the smallest
    tenth of the feasible genomes. A map without values is left out.
    """
    least = {
        row.name: 0.0 if row.level == 0 else row.kept_fraction for row in result.search.bottlenecks
    }
    high = result.search.kept_high
    matrices = _matrices(result, [*least, *high])
    maps = {"alone must keep, %": least, "kept by the smallest<br>feasible genomes, %": high}
    rows = {
        heading: [replace(matrices[name], kept_fraction=kept) for name, kept in fractions.items()]
        for heading, fractions in maps.items()
        if fractions
    }
    return heatmaps("The bottleneck map", rows)


def _matrices(result: Result, names: Iterable[str]) -> dict[str, Matrix]:
    """The matrices by name; matrices with a shared factor ("a.q_proj+k_proj") count as one.

    The neurons of an MLP ("a.down_proj.neurons") have the place of its last matrix.
    """
    matrices = {matrix.name: matrix for matrix in result.matrices}
    unknown = build(Matrix, {})
    combined = {}
    for name in names:
        first, *others = name.removesuffix(".neurons").split("+")
        parent = first.rpartition(".")[0]
        members = [matrices.get(n, unknown) for n in (first, *(f"{parent}.{n}" for n in others))]
        kind = "+".join(member.kind or "other" for member in members)
        kind = "neurons" if name.endswith(".neurons") else kind
        d_out = sum(member.d_out or 0 for member in members)
        combined[name] = replace(members[0], kind=kind, d_out=d_out)
    return combined
