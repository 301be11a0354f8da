"""`inspect=true`: a table of a model's matrices, from its configuration alone.

Takes seconds for any size, and downloads nothing but `config.json`. With vocabulary=task
the rows on this machine are read too.
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
from sieve.costs.dry_run import Record
from sieve.costs.shape import build_without_weights
from sieve.costs.vocabulary import vocabulary_sentence
from sieve.model.backbone import count_parameters
from sieve.model.matrices import find_matrices, unsupported
from sieve.report.values import count, percent
from sieve.runtime.artifacts import write_json_atomic

NAME = "matrices.json"
MAX_UNSUPPORTED = 8  # shown in the table


def inspect(config: Config, run_dir: Path) -> RenderableType:
    """Write `matrices.json` to a run's directory; returns the table to show.

    Raises ValueError if the model has no configuration, cannot be built, or has nothing to prune.
    """
    with FakeTensorMode():
        model, source = build_without_weights(config.model)
        projection = config.projection
        matrices = find_matrices(model, projection.prune_head, projection.prune_embedding)
        reasons = unsupported(model)
    sizing = Sizing(config.projection.storage, config.projection.rank_multiple)
    record = {
        "model": config.model.label,
        "shapes": source,
        "parameters": count_parameters(model),
        "prunable": sum(matrix.size for matrix in matrices),
        "storage": config.projection.storage,
        "matrices": [
            asdict(matrix) | {"parameters": matrix.size, "break_even_rank": sizing.top_rank(matrix)}
            for matrix in matrices
        ],
        "unsupported": reasons,
        "vocabulary": vocabulary_sentence(config, model),
    }
    write_json_atomic(run_dir / NAME, record)
    return _table(record)


def _table(record: Record) -> RenderableType:
    """One row for all matrices that differ only in their block or expert."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for name in ("matrix", "kind", "shape", "number", "parameters", "break-even"):
        table.add_column(name, justify="left" if name in ("matrix", "kind") else "right")
    table.add_column("", overflow="fold")
    groups: dict[tuple[str, ...], list[Record]] = {}
    for matrix in record["matrices"]:
        groups.setdefault(_description(matrix), []).append(matrix)
    for (name, kind, shape, break_even, remark), same in groups.items():
        parameters = sum(matrix["parameters"] for matrix in same)
        table.add_row(name, kind, shape, count(len(same)), count(parameters), break_even, remark)
    total = (
        f"\n{record['model']}: {count(record['prunable'])} of {count(record['parameters'])} "
        f"parameters ({percent(record['prunable'] / record['parameters'])}) are prunable, in "
        f"{count(len(record['matrices']))} matrices."
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
    if record["vocabulary"]:
        total += f"\n{record['vocabulary']}"
    return Group(table, Text(total, style="bold"), Text(legend, style="dim"), *warnings)


def _description(matrix: Record) -> tuple[str, ...]:
    """The name within a block, kind, shape, break-even rank and remarks of a matrix."""
    pattern = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", matrix["name"])
    remarks = ["tied"] * matrix["tied"] + ["bias"] * matrix["has_bias"]
    if matrix["source"] != matrix["name"]:
        remarks.append(f"with {matrix['source'].rpartition('.')[2]}")
    return (
        pattern.partition("*.")[2] or pattern,
        matrix["kind"],
        f"{matrix['d_out']}×{matrix['d_in']}",
        count(matrix["break_even_rank"]),
        ", ".join(remarks),
    )
