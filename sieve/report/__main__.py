"""The dashboard: gather runs and sweeps into one page that works offline.

python -m sieve.report runs/                          # writes runs/dashboard.html
python -m sieve.report runs/ other/ --out all.html
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sieve.report.dashboard import gather, write_dashboard
from sieve.report.values import counted

log = logging.getLogger("sieve.report")
output = Console()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page, or exit with status 1 and one sentence."""
    parser = argparse.ArgumentParser(
        prog="python -m sieve.report", description="Gather runs and sweeps into one offline page."
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="folders of runs, such as runs/"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the page (dashboard.html in the first folder)"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        dashboard(options.folders, options.out or options.folders[0] / "dashboard.html")
    except (ValueError, OSError) as error:
        log.debug("failed", exc_info=True)
        log.error("%s", str(error).splitlines()[0])
        sys.exit(1)


def dashboard(folders: Sequence[Path], out: Path) -> None:
    """Gather the runs, write the page to `out`, and print where it is.

    Raises ValueError with one sentence if there is no run or the page cannot be written.
    """
    if out.is_dir():
        raise ValueError(
            f"--out is the folder {out}, expected a file, such as {out / 'dashboard.html'}."
        )
    runs = gather(folders)
    try:
        write_dashboard(runs, out)
    except OSError as error:
        reason = getattr(error.__cause__, "strerror", None) or error.strerror or error
        raise ValueError(f"{out} could not be written ({reason}); choose another --out.") from error
    message = f"{counted(len(runs), 'run')} in {out}"
    output.print(message, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
