"""`inspect=true`: a table of a model's matrices, from its configuration alone.

Takes seconds for any size, and downloads nothing but `config.json`.
"""

import re
from dataclasses import asdict
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch._subclasses.fake_tensor import FakeTensorMode

from sieve.bank.genome import Sizing
from sieve.config import Config
from sieve.costs.shape import build_without_weights, known_config
from sieve.costs.table import Record, short
from sieve.model.backbone import count_parameters
from sieve.model.matrices import Matrix, find_matrices, unsupported
from sieve.runtime.artifacts import write_json_atomic

NAME = "matrices.json"
MAX_UNSUPPORTED = 8  # shown in the table
FUSED = ("qkv", "gate_up", "expert_gate_up")


def inspect(config: Config, run_dir: Path) -> RenderableType:
    """Write `matrices.json` to a run's directory; returns the table to show.

    Raises ValueError if the model has no configuration, cannot be built, or has nothing to prune.
    """
    with FakeTensorMode():
        model = build_without_weights(config)
        matrices = find_matrices(model, config.projection.prune_head)
        reasons = unsupported(model)
    sizing = Sizing(config.projection.storage, config.projection.rank_multiple)
    record = {
        "model": config.model.label,
        "shapes": known_config(config.model)[1],
        "parameters": count_parameters(model),
        "prunable": sum(matrix.size for matrix in matrices),
        "storage": config.projection.storage,
        "matrices": [_row(matrix, sizing) for matrix in matrices],
        "unsupported": reasons,
    }
    write_json_atomic(run_dir / NAME, record)
    return _table(record)


def _row(matrix: Matrix, sizing: Sizing) -> Record:
    """The record of a matrix; break_even_rank: from which factors are larger than the matrix."""
    fields = {k: v for k, v in asdict(matrix).items() if k not in ("members", "source")}
    return fields | {
        "parameters": matrix.size,
        "break_even_rank": sizing.top_rank(matrix),
        "shares_input_of": None if matrix.source == matrix.name else matrix.source,
        "fused": matrix.kind in FUSED,
    }


def _table(record: Record) -> RenderableType:
    """One row for all matrices that differ only in their block or expert."""
    groups: dict[tuple[object, ...], list[Record]] = {}
    for matrix in record["matrices"]:
        pattern = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", matrix["name"])
        shape = matrix["d_out"], matrix["d_in"], matrix["has_bias"], matrix["tied"]
        groups.setdefault((pattern, *shape), []).append(matrix)
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for name in ("matrix", "kind", "shape", "number", "params", "break-even"):
        table.add_column(name, justify="left" if name in ("matrix", "kind") else "right")
        table.columns[-1].no_wrap = True
    table.add_column("", overflow="fold")
    for key, same in groups.items():
        table.add_row(*_cells(str(key[0]), same))
    share = record["prunable"] / record["parameters"]
    total = (
        f"\n{record['model']}: {short(record['prunable'])} of {short(record['parameters'])} "
        f"parameters ({share:.1%}) are prunable, in {len(record['matrices']):,} matrices."
    )
    legend = (
        f"break-even: the largest rank whose {record['storage']} factors are no larger than the "
        f"dense matrix; with: reads the same input as. Shapes: {record['shapes']}. {NAME} lists "
        "every matrix."
    )
    warnings = [
        Text(f"{name} cannot be factorized: {reason}.", style="yellow")
        for name, reason in list(record["unsupported"].items())[:MAX_UNSUPPORTED]
    ]
    return Group(table, Text(total, style="bold"), Text(legend, style="dim"), *warnings)


def _cells(pattern: str, matrices: list[Record]) -> tuple[str, ...]:
    first = matrices[0]
    marks = {"tied": first["tied"], "fused": first["fused"], "bias": first["has_bias"]}
    if shared := first["shares_input_of"]:
        marks[f"with {shared.rpartition('.')[2]}"] = True
    return (
        pattern.partition("*.")[2] or pattern,
        first["kind"],
        f"{first['d_out']}×{first['d_in']}",
        f"{len(matrices):,}",
        short(sum(matrix["parameters"] for matrix in matrices)),
        f"{first['break_even_rank']:,}",
        ", ".join(mark for mark, applies in marks.items() if applies),
    )
