"""Gather runs and sweeps into one page: `python -m sieve.report runs/`.

Every folder is looked through for `result.json`; the page, `dashboard.html` in the first of them
unless --out says otherwise, shows them all, needs no network, and is written anew by each call.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sieve.report.dashboard import gather, write_dashboard
from sieve.report.dashboard.gather import named

log = logging.getLogger("sieve.report")
output = Console()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; argparse itself says what is wrong with it."""
    parser = argparse.ArgumentParser(
        prog="python -m sieve.report", description="Gather runs and sweeps into one page."
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER",
                        help="looked through for runs, as runs/")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="the page to write (dashboard.html in the first folder)")  # fmt: skip
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page; status 1 and one sentence where that cannot be."""
    asked = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        dashboard(asked.folders, asked.out or asked.folders[0] / "dashboard.html")
    except (ValueError, OSError) as error:
        log.debug("failed", exc_info=True)
        log.error("%s", str(error).splitlines()[0])
        sys.exit(1)


def dashboard(folders: Sequence[Path], out: Path) -> None:
    """Gather, write, and say where.

    Raises ValueError or OSError with one sentence where there is nothing, or it cannot be written.
    """
    if out.is_dir():
        raise ValueError(f"--out is {out}, a folder, expected a file, as {out / 'dashboard.html'}.")
    found = gather(folders)
    if found.skipped:
        files = "1 file" if len(found.skipped) == 1 else f"{len(found.skipped)} files"
        log.warning("skipped %s: %s.", files, named(found.skipped))
    try:
        write_dashboard(found.runs, out)
    except OSError as error:
        reason = getattr(error.__cause__, "strerror", None) or error.strerror or error
        raise ValueError(f"{out} could not be written ({reason}); choose another --out.") from error
    runs = "1 run" if len(found.runs) == 1 else f"{len(found.runs)} runs"
    output.print(f"{runs} in {out}", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
