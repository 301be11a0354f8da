"""Where the parameters stayed: kept fraction per layer and kind of matrix."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from sieve.report.result import Matrix, Result
from sieve.report.style import base_figure, label, sequential_scale

KIND_ORDER = "q k v qkv o gate up gate_up down expert_gate_up expert_up expert_down".split()
NO_LAYER = "none"
_SPARSE_CELLS = 40  # rows that still leave room for numbers
_ENDS = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)  # times a power of ten: ends of a color scale
_GAP = 0.05  # between two heat maps, as a share of the width


def kept_heatmap(result: Result) -> go.Figure | None:
    """Kept parameters (percent) per layer (row, the first on top) and kind of matrix (column).

    A cell with several matrices (experts) shows their mean, weighted by parameters. Cells show
    their numbers if the layers are few enough.
    """
    title = "Parameters kept per layer and kind of matrix"
    return heatmaps(title, {"": result.matrices})


def heatmaps(title: str, maps: Mapping[str, Sequence[Matrix]]) -> go.Figure | None:
    """Heat maps side by side, by heading, with the same layers and kinds of matrices."""
    cells = {heading: kept_by_cell(rows) for heading, rows in maps.items()}
    places = {place for fractions in cells.values() for place in fractions}
    if not places:
        return None
    layers = sorted({layer for layer, _ in places}, key=layer_key)
    kinds = sorted({kind for _, kind in places}, key=kind_key)
    roomy = len(layers) <= _SPARSE_CELLS
    figure = base_figure(title, height=160 + len(layers) * (26 if roomy else 12))
    figure.set_subplots(
        cols=len(cells), shared_yaxes=True, horizontal_spacing=_GAP, subplot_titles=[*cells]
    )
    figure.update_layout(margin_b=100)
    end = scale_end(max(max(fractions.values(), default=0.0) for fractions in cells.values()))
    for column, fractions in enumerate(cells.values(), 1):
        table = [[fractions.get((layer, kind)) for kind in kinds] for layer in layers]
        trace = _heatmap([label(kind) for kind in kinds], layers, table, roomy, end)
        figure.add_trace(trace.update(showscale=column == 1), row=1, col=column)
    plain = {"showgrid": False, "showline": False}
    figure.update_annotations(font_size=13)
    angle = 0 if len(cells) == 1 else None  # None turns labels that would touch
    figure.update_xaxes(type="category", title_text="Kind of matrix", tickangle=angle, **plain)
    figure.update_yaxes(type="category", autorange="reversed", **plain)
    figure.update_yaxes(title_text="Layer", col=1)
    return figure


def _heatmap(
    kinds: Sequence[str],
    layers: Sequence[str],
    table: Sequence[Sequence[float | None]],
    roomy: bool,
    end: float,
) -> go.Heatmap:
    return go.Heatmap(
        x=kinds,
        y=layers,
        z=table,
        text=[[_cell_text(value) for value in row] for row in table],
        texttemplate="%{text}" if roomy else None,
        hovertemplate="layer %{y}, %{x}: %{text} % kept<extra></extra>",
        hoverongaps=False,
        zmin=0,
        zmax=end,
        colorscale=sequential_scale(),
        colorbar={
            "orientation": "h",
            "thickness": 10,
            "len": 220,
            "lenmode": "pixels",
            "x": 0,
            "xanchor": "left",
            "y": 0,
            "yref": "container",
            "yanchor": "bottom",
            "tickvals": [0, end / 4, end / 2, end],
            "ticktext": ["0", f"{end / 4:g}", f"{end / 2:g}", f"{end:g} % kept"],
            "outlinewidth": 0,
        },
        xgap=2,
        ygap=2 if roomy else 1,
    )


def scale_end(largest: float) -> float:
    """The round percent at which a color scale ends: the first at or above the largest value."""
    if not 0 < largest < 100:
        return 100.0
    decade = 10.0 ** math.floor(math.log10(largest))
    return min(100.0, next(end * decade for end in _ENDS if end * decade >= largest - 1e-9))


def kept_by_cell(matrices: Sequence[Matrix]) -> dict[tuple[str, str], float]:
    """Kept percent by (layer, kind), weighted by the matrices' dense parameters."""
    kept: dict[tuple[str, str], float] = defaultdict(float)
    dense: dict[tuple[str, str], float] = defaultdict(float)
    for matrix in matrices:
        if matrix.kept_fraction is None:
            continue
        cell = (NO_LAYER if matrix.layer is None else str(matrix.layer), matrix.kind or "other")
        size = (matrix.d_out or 1.0) * (matrix.d_in or 1.0)
        kept[cell] += 100 * matrix.kept_fraction * size
        dense[cell] += size
    return {cell: kept[cell] / dense[cell] for cell in kept}


def _cell_text(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 9.95 or value == 0 else f"{value:.1f}"


def layer_key(layer: str) -> tuple[int, int, str]:
    """Sort key: numbered layers first, in order."""
    return (0, int(layer), "") if layer.isdigit() else (1, 0, layer)


def kind_key(kind: str) -> tuple[int, int, str]:
    """Sort key: the order of computation in a block; "q+k+v", a shared factor, comes after "v"."""
    last = kind.rpartition("+")[2]
    position = KIND_ORDER.index(last) if last in KIND_ORDER else len(KIND_ORDER)
    return (position, kind.count("+"), kind)
