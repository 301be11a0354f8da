"""Forecasts for tests: composed settings in, the content of dry_run.json out."""

import io
import json
from pathlib import Path
from typing import Any

from hydra.types import RunMode
from omegaconf import OmegaConf
from rich.console import Console
from test_conf_groups import compose_raw

from sieve.conversion import to_config
from sieve.costs.dry_run import NAME, dry_run
from sieve.costs.table import dry_run_table

# The figures of the processor, so that tests do not measure them.
CPU = (
    "device.memory_gib=24",
    "device.bandwidth_gb=10",
    "++device.tflops={float64: .05, float32: .1}",
)


def forecast(folder: Path, *overrides: str) -> dict[str, Any]:
    """The forecast of a run by the point estimate, unless `overrides` give a confidence."""
    given = ("confidence=null", *overrides, "dry_run=true")
    raw = compose_raw(*given, return_hydra_config=True)
    assert raw.hydra.mode != RunMode.MULTIRUN
    sweeper = OmegaConf.to_container(raw.hydra.sweeper, resolve=True)
    OmegaConf.set_struct(raw, False)
    del raw["hydra"]
    record = dry_run(to_config(raw), folder, sweeper)
    assert json.loads((folder / NAME).read_text()) == json.loads(json.dumps(record))
    return record


def stage(record: dict[str, Any], name: str) -> dict[str, Any]:
    """The stage of this name."""
    return next(row for row in record["stages"] if row["name"] == name)


def text_of(record: dict[str, Any], width: int = 100) -> str:
    """The table that a user sees."""
    console = Console(width=width, file=io.StringIO())
    console.print(dry_run_table(record))
    return console.file.getvalue()
