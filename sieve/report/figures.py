"""Plotly figures of a result. `figures` returns the figures that have data, by name."""

import math
from collections.abc import Mapping

import plotly.graph_objects as go

from sieve.report.curve import accuracy_curve, divergence_front, trained_sizes
from sieve.report.evolution import bottleneck_map, generations
from sieve.report.heatmap import kept_heatmap, kind_key
from sieve.report.result import Result, read
from sieve.report.style import DASHES, PALETTE, base_figure, label

_ENERGY_FLOOR_PERCENT = 1e-4  # below this a spectrum shows rounding errors


def figures(record: Mapping[str, object]) -> dict[str, go.Figure]:
    """The figures that the data of a `result.json` fill, by name."""
    result = read(record)
    candidates = {
        "accuracy_curve": accuracy_curve(result),
        "trained_sizes": trained_sizes(result),
        "divergence_front": divergence_front(result),
        "generations": generations(result),
        "kept_heatmap": kept_heatmap(result),
        "bottlenecks": bottleneck_map(result),
        "spectrum": spectrum(result),
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
