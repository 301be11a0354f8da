"""The table of `dry_run=true`: a row per stage, the sum, the verdict and the assumptions."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sieve.costs.dry_run import Record
from sieve.report.values import count, duration, size

NAMED = 0.005  # the table names parts that take a larger share of a stage's memory


def dry_run_table(record: Record) -> RenderableType:
    """The record of a dry run for a terminal."""
    total, device = record["total"], f"{record['devices']} × {record['device']['name']}"
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("stage", no_wrap=True)
    for name in ("time", "peak", "genomes"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("parts of the peak; remarks", overflow="fold")
    for row in record["stages"]:
        genomes = " to ".join(dict.fromkeys(f"{number:,.0f}" for number in row["genomes"]))
        least = NAMED * sum(row["parts_bytes"].values())
        parts = [f"{name} {size(n)}" for name, n in row["parts_bytes"].items() if n > least]
        remarks = ", ".join([*parts, *[row["remark"]] * bool(row["remark"])])
        table.add_row(row["name"], *_figures(row), genomes, remarks)
    disk = f"{size(total['written_bytes'])} on disk"
    disk += f", {size(total['host_bytes'])} of host memory" if total["host_bytes"] else ""
    table.add_row("total", *_figures(total), "", disk, style="bold")
    title = (
        f"{record['model']} on {record['task']['name']}: {count(record['parameters'])} parameters, "
        f"{count(record['prunable'])} prunable, on {device}\n"
    )
    times = (
        f"\n{duration(total['seconds'])} expected, {duration(total['most_seconds'])} at most, on "
        f"{device}."
    )
    sentences = [record["vocabulary"], record["certifiable"]]
    return Group(
        Text(title, style="bold"),
        table,
        Text(times, style="bold"),
        Text(record["verdict"] + "\n", style="green" if record["fits"] else "yellow"),
        *(Text(sentence + "\n") for sentence in sentences if sentence),
        Text("\n".join(record["assumptions"]), style="dim"),
    )


def _figures(row: Record) -> tuple[str, str]:
    return duration(row["seconds"]), size(row["peak_bytes"])
