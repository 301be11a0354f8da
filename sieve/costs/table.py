"""The table of `dry_run=true`: a row per stage, the sum, the verdict and the assumptions."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Record = dict[str, Any]  # a JSON object
THRIFTY = "calibration.layers_at_once=1 calibration.checkpointing=true"


def dry_run_table(record: Record) -> RenderableType:
    """The record of a dry run for a terminal."""
    total, count = record["total"], record["devices"]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("stage", no_wrap=True)
    for name in ("PFLOP", "time", "peak GiB", "tokens", "genomes"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("parts of the peak in GiB; remarks", overflow="fold")
    for row in record["stages"]:
        table.add_row(*_cells(row))
    disk = f"on disk: cache {size(total['cache_gib'])}, export {size(total['export_gib'])}"
    disk += f"; host memory {size(total['host_gib'])}" if total["host_gib"] else ""
    table.add_row("total", *_figures(total), "", "", disk, style="bold")
    title = (
        f"{record['model']} on {record['task']['name']}: {short(record['parameters'])} parameters, "
        f"{short(record['prunable'])} prunable, on {count} × {record['device']['name']}"
    )
    hours = f"{duration(total['hours'])} expected, {duration(total['hours_at_most'])} at most"
    hours += f"; {duration(total['device_hours'])} over all devices" if count > 1 else ""
    return Group(
        Text(f"{title}\n", style="bold"),
        table,
        Text(f"\n{hours}.", style="bold"),
        Text(record["verdict"] + "\n", style="green" if record["fits"] else "yellow"),
        Text("\n".join(record["assumptions"]), style="dim"),
    )


def verdict(record: Record) -> str:
    """Whether the run fits, and which settings and how many devices make it fit."""
    total, device, ranks = record["total"], record["device"], record["shards"]
    stage = max(record["stages"], key=lambda row: row["peak_gib"])["stage"]
    where = f"{'one' if ranks == 1 else f'{ranks:,}'} {device['name']}"
    fits = "fits" if record["fits"] else "does not fit"
    peak = (
        f"{record['model']} {fits} on {where}: the peak, in {stage}, takes "
        f"{size(total['peak_gib'])} GiB of a device; it has {device['memory_gib']:,.0f} GiB."
    )
    if record["fits"]:
        return peak
    count, fewer = record["needed"], record["needed_thrifty"]
    fsdp = " ".join(["trainer=fsdp", *record["asks"]])
    if fewer is None:
        return f"{peak} No number of devices is enough; lower batch_tokens or leave stages out."
    if fewer <= ranks:
        return f"{peak} It fits with {THRIFTY}."
    if count is None:
        return f"{peak} It needs {fewer:,} devices with {fsdp} {THRIFTY}."
    more = f", or {fewer:,} with {THRIFTY} too" if fewer < count else ""
    return f"{peak} It needs {count:,} devices with {fsdp}{more}."


def _cells(row: Record) -> tuple[str, ...]:
    evaluations, genomes = row["evaluations"], ""
    if evaluations:
        genomes = f"{evaluations['expected']:,.0f}"
        if evaluations["at_most"] > evaluations["expected"]:
            genomes += f" (≤ {evaluations['at_most']:,.0f})"
    remarks = [f"{name} {size(gib)}" for name, gib in row["parts_gib"].items()]
    remarks += [row["remark"]] * bool(row["remark"])
    tokens = short(row["tokens"]) if row["tokens"] else ""
    return row["stage"], *_figures(row), tokens, genomes, ", ".join(remarks)


def _figures(row: Record) -> tuple[str, str, str]:
    return quantity(row["flops"] / 1e15), duration(row["hours"]), size(row["peak_gib"])


def duration(hours: float) -> str:
    """Hours in a unit that reads well: "12 s", "3.5 min", "2.1 h", "41 d"."""
    units = {"s": 1 / 40, "min": 1.5, "h": 96}  # each up to so many hours
    unit = next((unit for unit, limit in units.items() if hours < limit), "d")
    length = {"s": 1 / 3600, "min": 1 / 60, "h": 1, "d": 24}[unit]
    return f"{quantity(hours / length)} {unit}"


def size(gib: float) -> str:
    """GiB with the digits that matter."""
    return f"{gib:,.0f}" if gib >= 100 else f"{gib:.1f}" if gib >= 1 else f"{gib:.2g}"


def quantity(value: float) -> str:
    """A number with two digits, or all digits before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def short(count: float) -> str:
    """A large count: "1.06 M"."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f}"
