"""The table of `dry_run=true`: a row per stage, the sum, the verdict and the assumptions."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sieve.costs.dry_run import HOUR, Record
from sieve.report.values import count, duration


def dry_run_table(record: Record) -> RenderableType:
    """The record of a dry run for a terminal."""
    total, device = record["total"], f"{record['devices']} × {record['device']['name']}"
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("stage", no_wrap=True)
    for name in ("time", "peak GiB", "genomes"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("parts of the peak in GiB; remarks", overflow="fold")
    for row in record["stages"]:
        genomes = " to ".join(dict.fromkeys(f"{number:,.0f}" for number in row["genomes"] or ()))
        parts = [f"{name} {size(gib)}" for name, gib in row["parts_gib"].items()]
        remarks = ", ".join([*parts, *[row["remark"]] * bool(row["remark"])])
        table.add_row(row["stage"], *_figures(row), genomes, remarks)
    disk = f"on disk: cache {size(total['cache_gib'])}, export {size(total['export_gib'])}"
    disk += f"; host memory {size(total['host_gib'])}" if total["host_gib"] else ""
    table.add_row("total", *_figures(total), "", disk, style="bold")
    title = (
        f"{record['model']} on {record['task']['name']}: {count(record['parameters'])} parameters, "
        f"{count(record['prunable'])} prunable, on {device}\n"
    )
    hours = f"\n{_time(total, 'hours')} expected, {_time(total, 'hours_at_most')} at most"
    return Group(
        Text(title, style="bold"),
        table,
        Text(f"{hours}, on {device}.", style="bold"),
        Text(record["verdict"] + "\n", style="green" if record["fits"] else "yellow"),
        Text("\n".join(record["assumptions"]), style="dim"),
    )


def _figures(row: Record) -> tuple[str, str]:
    return _time(row, "hours"), size(row["peak_gib"])


def _time(row: Record, key: str) -> str:
    return duration(row[key] * HOUR)


def size(gib: float) -> str:
    """GiB with the digits that matter."""
    return f"{gib:,.0f}" if gib >= 100 else f"{gib:.1f}" if gib >= 1 else f"{gib:.2g}"
