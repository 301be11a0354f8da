"""Figures of a result: pure functions from the dictionary of `result.json` to plotly figures.

`figures(result)` gives all that have something to show, by name; each works on a result with
missing parts and never invents a value.
"""

import math
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from sieve.report.curve import accuracy_curve
from sieve.report.evolution import bottleneck_map, generations
from sieve.report.genomes import genomes, walks_a_line
from sieve.report.heatmap import kept_heatmap, kind_key
from sieve.report.pareto import accuracy_front, divergence_front
from sieve.report.style import ACCENT, DASHES, MUTED, PALETTE, base_figure, empty_figure, label
from sieve.report.values import look, measure, number, percent, ratio

__all__ = ["accuracy_curve", "figures", "kept_heatmap", "sizes_and_speeds", "spectrum"]

_ENERGY_FLOOR_PERCENT = 1e-4  # below this a spectrum shows rounding, not the model


def figures(result: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Every figure with something to show, by name."""
    line, known = walks_a_line(result), genomes(result)
    distances = [point for point in genomes(result, "divergence") if point["divergence"] > 0]
    made = {
        "accuracy_curve": accuracy_curve(result) if known and line else None,
        "accuracy_front": accuracy_front(result) if known and not line else None,
        "divergence_front": divergence_front(result) if distances and not line else None,
        "generations": generations(result) if look(result, "search.generations") else None,
        "kept_heatmap": kept_heatmap(result) if look(result, "matrices") else None,
        "bottlenecks": bottleneck_map(result) if _is_mapped(result) else None,
        "spectrum": spectrum(result) if _spectra(result) else None,
        "sizes_and_speeds": sizes_and_speeds(result) if _ratios(result) else None,
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def _is_mapped(result: Mapping[str, Any]) -> bool:
    return bool(look(result, "search.bottlenecks") or look(result, "search.kept_high"))


def spectrum(result: Mapping[str, Any]) -> go.Figure:
    """Output energy left out (percent, log) against kept rank (percent), a line per kind."""
    title = "Output energy lost at each rank, mean over layers"
    spectra = _spectra(result)
    if not spectra:
        return empty_figure(title, "No spectrum was recorded.")
    figure = base_figure(title, height=400)
    for index, (kind, (ranks, energies)) in enumerate(spectra.items()):
        figure.add_trace(
            go.Scatter(
                x=ranks,
                y=energies,
                mode="lines",
                name=label(kind),
                line={
                    "color": PALETTE[index % len(PALETTE)],
                    "dash": DASHES[index % len(DASHES)],
                    "width": 2,
                },
                hovertemplate="%{x:.1f} % of rank: %{y:.3g} % lost",
            )
        )
    figure.update_xaxes(title_text="Rank kept, % of full rank", range=[0, 100])
    lowest = min(energy for _, energies in spectra.values() for energy in energies)
    decades = range(math.floor(math.log10(lowest)), 3)
    figure.update_yaxes(
        title_text="Output energy lost, %<br>(logarithmic)",
        type="log",
        range=[decades[0], 2.05],
        tickvals=[10.0**decade for decade in decades],
        ticktext=[f"{10.0**decade:g}" for decade in decades],
    )
    return figure


def _spectra(result: Mapping[str, Any]) -> dict[str, tuple[list[float], list[float]]]:
    """Per kind (rank percent, energy percent), without the points a logarithm cannot show."""
    spectra = {}
    recorded = look(result, "spectrum") or {}
    for kind in sorted(recorded, key=kind_key):
        ranks = look(recorded[kind], "rank_fraction") or []
        energies = look(recorded[kind], "energy_left") or []
        pairs = [(number(r), number(e)) for r, e in zip(ranks, energies, strict=False)]
        shown = [
            (100 * r, 100 * e)
            for r, e in pairs
            if r is not None and e is not None and 100 * e >= _ENERGY_FLOOR_PERCENT
        ]
        if shown:
            spectra[kind] = ([r for r, _ in shown], [e for _, e in shown])
    return spectra


def sizes_and_speeds(result: Mapping[str, Any]) -> go.Figure:
    """The pruned model in percent of the dense one: sizes (less is better), speeds (more is)."""
    title = "The pruned model against the dense one"
    bars = _ratios(result)
    if not bars:
        return empty_figure(title, "Neither sizes nor speeds were measured.")
    figure = base_figure(title, height=110 + 44 * len(bars))
    longest = max(1.0, *(value for _, value, _ in bars))
    for name, is_size, colour in (
        ("size: less is better", True, ACCENT),
        ("speed: more is better", False, PALETTE[2]),
    ):
        group = [(text, value) for text, value, sized in bars if sized is is_size]
        if group:
            figure.add_trace(
                go.Bar(
                    x=[100 * value for _, value in group],
                    y=[text for text, _ in group],
                    orientation="h",
                    name=name,
                    text=[percent(value) for _, value in group],
                    textposition=["inside" if v > 0.45 * longest else "outside" for _, v in group],
                    insidetextanchor="end",
                    insidetextfont={"color": "white"},
                    constraintext="none",
                    cliponaxis=False,
                    marker={"color": colour},
                    hovertemplate="%{y}: %{text} of the dense model<extra></extra>",
                )
            )
    figure.add_vline(x=100, line={"color": MUTED, "dash": "dash", "width": 1.5})
    figure.update_xaxes(title_text="% of the dense model", range=[0, 130 * longest])
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    figure.update_layout(bargap=0.35)
    return figure


def _ratios(result: Mapping[str, Any]) -> list[tuple[str, float, bool]]:
    """(name, pruned over dense, is a size) of everything that was measured."""
    n_bytes = ratio(measure(result, "bytes.pruned"), measure(result, "bytes.dense"))
    found = [
        ("Prunable parameters", measure(result, "kept_fraction.prunable"), True),
        ("All parameters", measure(result, "kept_fraction.model"), True),
        ("Bytes on disk", n_bytes, True),
        ("Prefill speed", measure(result, "speed.prefill_ratio"), False),
        ("Decode speed", measure(result, "speed.decode_ratio"), False),
    ]
    return [(name, value, is_size) for name, value, is_size in found if value is not None]
