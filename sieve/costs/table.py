"""What `dry_run=true` shows: a row per stage, the sum, what was assumed, and the verdict."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

SHOWN = 0.005  # share of a stage's memory below which a part is not named


def dry_run_table(record: Mapping[str, Any]) -> RenderableType:
    """The record of a dry run for a terminal."""
    total, device = record["total"], record["device"]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("stage", no_wrap=True)
    for name in ("PFLOP", "time", "GiB", "tokens", "genomes"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("of which", overflow="fold")
    for row in record["stages"]:
        table.add_row(*_cells(row))
    table.add_row(
        "total", quantity(total["flops"] / 1e15), duration(total["hours"]),
        size(total["peak_gib"]), "", "", _beside(total), style="bold",
    )  # fmt: skip
    count = record["devices"]
    head = Text(
        f"{record['model']} on {record['task']['name']}: {quantity(record['parameters'] / 1e9)} B "
        f"parameters, {quantity(record['prunable'] / 1e9)} B prunable, on {count} × "
        f"{device['name']}\n",
        style="bold",
    )
    most = total["hours_at_most"]
    spent = f"\n{duration(total['hours'])} expected, {duration(most)} at most"
    spent += f"; {duration(total['device_hours'])} of devices in all" if count > 1 else ""
    notes = [Text(line, style="dim") for line in record["assumptions"]]
    style = "green" if record["fits"] else "yellow"
    return Group(
        head, table, Text(f"{spent}.", style="bold"), Text(record["verdict"], style=style),
        Text(""), *notes,
    )  # fmt: skip


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    found = row["evaluations"]
    genomes = "" if found is None else f"{found['expected']:,.0f}"
    if found is not None and found["at_most"] > found["expected"]:
        genomes += f" (≤ {found['at_most']:,.0f})"
    least = SHOWN * max(1e-9, sum(row["parts_gib"].values()))
    parts = [f"{name} {size(gib)}" for name, gib in row["parts_gib"].items() if gib > least]
    remark = [row["remark"]] if row["remark"] else []
    return (
        row["stage"], quantity(row["flops"] / 1e15), duration(row["hours"]),
        size(row["peak_gib"]), count(row["tokens"]), genomes, ", ".join([*parts, *remark]),
    )  # fmt: skip


def _beside(total: Mapping[str, Any]) -> str:
    told = f"on disk: cache {size(total['cache_gib'])}, export {size(total['export_gib'])}"
    host = total["host_gib"]
    return told + (f"; memory beside the device {size(host)}" if host else "")


def duration(hours: float) -> str:
    """Hours in a unit that reads well: "12 s", "3.5 min", "2.1 h", "41 d"."""
    seconds = hours * 3600
    for unit, length, limit in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 3600 * 96)):
        if seconds < limit:
            return f"{quantity(seconds / length)} {unit}"
    return f"{quantity(hours / 24)} d"


def size(gib: float) -> str:
    """GiB with as many digits as say something."""
    return f"{gib:,.0f}" if gib >= 100 else f"{gib:.1f}" if gib >= 1 else f"{gib:.2g}"


def quantity(value: float) -> str:
    """A number of three digits or all of its whole ones."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def count(value: float) -> str:
    """A count of tokens: "1.2 M"."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f}" if value else ""
