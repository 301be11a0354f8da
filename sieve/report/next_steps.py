"""What to type next: how to load the export of a run, serve it, and answer a file of rows."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from sieve.report.result import Result


@dataclass(frozen=True)
class Step:
    """A purpose and what to type for it."""

    title: str
    command: str


def next_steps(result: Result, folder: Path | None) -> list[Step]:
    """Three commands with the paths of a run; one or none without an export.

    folder: of the run.
    """
    form = result.export.format
    if folder is None or not form:
        return []
    if form == "none":
        again = f"{result.command} export=factorized" if result.command else "export=factorized"
        return [Step("Write the model: repeat the command with an export", again)]
    export = _shown(folder / "export")
    load = f'import sieve\n\nmodel, tokenizer = sieve.load("{export}")'
    steps = [Step("Load it in Python", load.replace("\\", "\\\\"))]
    quoted = shlex.quote(export)
    if result.export.server == "sieve.serve":
        steps.append(Step("Serve it, with a page to try it", f"python -m sieve.serve {quoted}"))
        steps.append(Step("Answer a file of rows", f"python -m sieve.predict {quoted} rows.csv"))
    elif result.export.server:
        serve = f"python -m {result.export.server} {quoted} --trust-remote-code"
        steps.append(Step("Serve it by OpenAI's protocol", serve))
    return steps


def _shown(path: Path) -> str:
    """A path from the current folder if it is in it, else from the root."""
    path, here = path.resolve(), Path.cwd()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else str(path)
