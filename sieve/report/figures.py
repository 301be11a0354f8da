"""Plotly figures of a result. `figures` returns all that have something to show, by name."""

import math
from collections.abc import Mapping

import plotly.graph_objects as go

from sieve.report.curve import accuracy_curve
from sieve.report.evolution import bottleneck_map, generations
from sieve.report.genomes import is_line
from sieve.report.heatmap import kept_heatmap, kind_key
from sieve.report.pareto import accuracy_front, divergence_front
from sieve.report.result import Result, read
from sieve.report.style import ACCENT, DASHES, MUTED, PALETTE, base_figure, label
from sieve.report.values import percent, ratio

__all__ = ["accuracy_curve", "figures", "kept_heatmap", "sizes_and_speeds", "spectrum"]

_ENERGY_FLOOR_PERCENT = 1e-4  # below this a spectrum shows rounding errors


def figures(record: Mapping[str, object]) -> dict[str, go.Figure]:
    """Every figure of a `result.json` with something to show, by name."""
    result = read(record)
    line = is_line(result)
    candidates = {
        "accuracy_curve": accuracy_curve(result) if line else None,
        "accuracy_front": None if line else accuracy_front(result),
        "divergence_front": None if line else divergence_front(result),
        "generations": generations(result),
        "kept_heatmap": kept_heatmap(result),
        "bottlenecks": bottleneck_map(result),
        "spectrum": spectrum(result),
        "sizes_and_speeds": sizes_and_speeds(result),
    }
    return {
        name: figure for name, figure in candidates.items() if figure is not None and figure.data
    }


def spectrum(result: Result) -> go.Figure | None:
    """Output energy left out (percent, log) against kept rank (percent), a line per kind."""
    title = "Output energy lost at each rank, mean over layers"
    spectra = _spectra(result)
    if not spectra:
        return None
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


def _spectra(result: Result) -> dict[str, tuple[list[float], list[float]]]:
    """By kind, ranks and energies in percent that a logarithmic axis can show."""
    spectra = {}
    for kind in sorted(result.spectrum, key=kind_key):
        recorded = result.spectrum[kind]
        shown = [
            (100 * rank, 100 * energy)
            for rank, energy in zip(recorded.rank_fraction, recorded.energy_left, strict=False)
            if rank is not None and energy is not None and 100 * energy >= _ENERGY_FLOOR_PERCENT
        ]
        if shown:
            spectra[kind] = ([r for r, _ in shown], [e for _, e in shown])
    return spectra


def sizes_and_speeds(result: Result) -> go.Figure | None:
    """The pruned model in percent of the dense one: sizes (less is better), speeds (more is)."""
    title = "The pruned model against the dense one"
    bars = _ratios(result)
    if not bars:
        return None
    figure = base_figure(title, height=110 + 44 * len(bars))
    longest = max(1.0, *(value for _, value, _ in bars))
    for name, is_size, color in (
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
                    marker={"color": color},
                    hovertemplate="%{y}: %{text} of the dense model<extra></extra>",
                )
            )
    figure.add_vline(x=100, line={"color": MUTED, "dash": "dash", "width": 1.5})
    figure.update_xaxes(title_text="% of the dense model", range=[0, 130 * longest])
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    figure.update_layout(bargap=0.35)
    return figure


def _ratios(result: Result) -> list[tuple[str, float, bool]]:
    """(name, pruned over dense, is a size) of every measured ratio."""
    ratios = [
        ("Prunable parameters", result.kept_fraction.prunable, True),
        ("All parameters", result.kept_fraction.model, True),
        ("Bytes on disk", ratio(result.bytes.pruned, result.bytes.dense), True),
        ("Prefill speed", result.speed.prefill_ratio, False),
        ("Decode speed", result.speed.decode_ratio, False),
    ]
    return [(name, value, is_size) for name, value, is_size in ratios if value is not None]
