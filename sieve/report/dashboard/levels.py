"""What each matrix of each run kept, small enough for a page of many runs.

Runs of one model share the names and places of their matrices. Matrices that stand in one layer
under one kind (experts) are one cell, their mean weighted by their parameters.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sieve.report.dashboard.gather import Run
from sieve.report.heatmap import NO_LAYER, kind_key, layer_key
from sieve.report.values import look, number

Cell = tuple[str, str]  # layer, kind


def kept_by_layout(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[tuple[int, list[Any]]]]:
    """The layouts of matrices, and for each run which is its own and what its cells kept, percent.

    A layout has `layers` and `kinds` in their order, and for each cell `names`, `rows`, `columns`
    (their indices) and `sizes` (parameters). A run without matrices has layout -1.
    """
    layouts: dict[tuple[Any, ...], int] = {}
    found: list[dict[str, Any]] = []
    kept: list[tuple[int, list[Any]]] = []
    for run in runs:
        cells = _cells(look(run.result, "matrices") or [])
        if not cells:
            kept.append((-1, []))
            continue
        key = tuple((cell, name, weight) for cell, (name, weight, _) in cells.items())
        if key not in layouts:
            layouts[key] = len(found)
            found.append(_layout(cells))
        kept.append((layouts[key], [round(100 * share, 2) for _, _, share in cells.values()]))
    return found, kept


def _cells(matrices: Sequence[Mapping[str, Any]]) -> dict[Cell, tuple[str, int, float]]:
    """Name, dense parameters and kept fraction by cell."""
    members: dict[Cell, list[Mapping[str, Any]]] = defaultdict(list)
    for matrix in matrices:
        if number(matrix.get("kept_fraction")) is not None:
            layer, kind = matrix.get("layer"), matrix.get("kind")
            cell = (NO_LAYER if layer is None else str(layer), str(kind or "other"))
            members[cell].append(matrix)
    return {cell: _together(cell, rows) for cell, rows in members.items()}


def _together(cell: Cell, rows: Sequence[Mapping[str, Any]]) -> tuple[str, int, float]:
    weights = [(number(m.get("d_out")) or 1) * (number(m.get("d_in")) or 1) for m in rows]
    weighted = [weight * row["kept_fraction"] for weight, row in zip(weights, rows, strict=True)]
    name = str(rows[0].get("name")) if len(rows) == 1 else f"layer {cell[0]}, {len(rows)} {cell[1]}"
    return name, round(sum(weights)), sum(weighted) / sum(weights)


def _layout(cells: Mapping[Cell, tuple[str, int, float]]) -> dict[str, Any]:
    layers = sorted({layer for layer, _ in cells}, key=layer_key)
    kinds = sorted({kind for _, kind in cells}, key=kind_key)
    return {
        "layers": layers,
        "kinds": kinds,
        "names": [name for name, _, _ in cells.values()],
        "sizes": [weight for _, weight, _ in cells.values()],
        "rows": [layers.index(layer) for layer, _ in cells],
        "columns": [kinds.index(kind) for _, kind in cells],
    }
