"""Find runs: read every `result.json` under some folders.

A single run, a job of a multirun and the `result/` of a genetic search each have one. Damaged
files and files of other programs are skipped, with the reason.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from sieve.report.result import Result, read

RESULT, REPORT, SETTINGS = "result.json", "report.html", Path(".hydra") / "config.yaml"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
log = logging.getLogger("sieve.report")


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its result, and its settings, empty if they cannot be read."""

    folder: Path
    result: Result
    settings: Mapping[object, object] = field(default_factory=dict)

    @property
    def report(self) -> Path | None:
        """The report of this run, if the run has written one."""
        path = self.folder / REPORT
        return path if path.is_file() else None


def gather(folders: Sequence[Path]) -> list[Run]:
    """Read all runs under some folders, each once, by task and kept fraction.

    Raises ValueError with one sentence if a folder does not exist or there is no run.
    """
    for folder in folders:
        if not folder.is_dir():
            problem = "is a file" if folder.exists() else "does not exist"
            raise ValueError(f"{folder} {problem}, expected a folder of runs, such as runs/.")
    runs = []
    for path in _paths(folders):
        try:
            runs.append(Run(path.parent, read_result(path), read_settings(path.parent)))
        except (ValueError, OSError, RecursionError) as error:
            log.warning("skipped %s: %s.", path, _reason(error))
    if not runs:
        raise ValueError(
            f"no run was found under {', '.join(map(str, folders))}, expected a {RESULT} in some "
            "folder below; name a folder that python -m sieve.run has written to."
        )
    return sorted(runs, key=lambda r: (r.result.task, r.result.kept_fraction.prunable or 0))


def read_result(path: Path) -> Result:
    """The result in a file. Raises ValueError if it is not a result of Sieve."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict) or not all(
        isinstance(record.get(key), str) for key in ("task", "model")
    ):
        raise ValueError("is not a result of Sieve")
    result = read(record)
    if result.kept_fraction.prunable is None:
        raise ValueError("has no kept fraction")
    return result


def read_settings(folder: Path) -> Mapping[object, object]:
    """The settings of a run as Hydra has written them, or nothing if they cannot be read."""
    try:
        settings = yaml.load((folder / SETTINGS).read_text(encoding="utf-8"), Loader=_LOADER)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return settings if isinstance(settings, Mapping) else {}


def _paths(folders: Sequence[Path]) -> list[Path]:
    """Every `result.json` under the folders, each file once; hidden and linked folders are skipped.

    A folder in `folders` may itself be a link.
    """
    paths: dict[Path, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob(RESULT)):
            if not any(part.startswith(".") for part in path.relative_to(folder).parts):
                paths.setdefault(path.resolve(), path)
    return list(paths.values())


def _reason(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError):
        return "not JSON"
    if isinstance(error, OSError):
        return error.strerror or "cannot be read"
    return str(error)
