"""The result of `make demo`, which README shows."""

import io
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from experiments import figures
from experiments.jobs import Job

CLAIM = "demo"
WIDTH = 80
SHOWN = tuple(
    """
    task model metric relative tolerance confidence seed baseline pruned examples drop
    kept_fraction parameters bytes speed certificate
    """.split()
)


def jobs() -> list[Job]:
    """The demo run."""
    return [Job(CLAIM, (), extra=("export=factorized",))]


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of the run, and its closing screen."""
    [result] = results.values()
    shown = {key: result[key] for key in SHOWN}
    return {
        "kept": figures.kept(result),
        "drop": figures.drop(result["drop"]),
        "prefill": figures.timed(result["speed"]["prefill_ratio"]),
        "decode": figures.timed(result["speed"]["decode_ratio"]),
        "seconds": figures.timed(sum(result["seconds"].values())),
        "result": shown,
    }


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """The closing screen as a code block."""
    from sieve.report import closing_table

    screen = io.StringIO()
    Console(file=screen, width=WIDTH, force_terminal=False).print(
        closing_table(summary["result"], {})
    )
    lines = [f"    {line}".rstrip() for line in screen.getvalue().splitlines()]
    return {CLAIM: "\n".join(lines).strip("\n")}
