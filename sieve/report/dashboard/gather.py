"""Find the runs under some folders: every `result.json`, whoever's job wrote it.

Single runs, jobs of a multirun and the `result/` of a genetic sweep have one; shards and the
preparing job of a sweep have none. Damaged and foreign files are skipped, with the reason.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sieve.report.values import look, number

RESULT, REPORT, SETTINGS = "result.json", "report.html", Path(".hydra") / "config.yaml"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# What must be there, and what must have its type where it is.
_MAPPINGS = ("baseline", "pruned", "drop", "kept_fraction")
_LISTS = ("matrices", "search.curve")


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, what its `result.json` holds, and its settings where known."""

    folder: Path
    result: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def report(self) -> Path | None:
        """The run's own page, where there is one."""
        path = self.folder / REPORT
        return path if path.is_file() else None


@dataclass(frozen=True)
class Gathered:
    """The runs in the order of their folders, and the files that are none, with the reason."""

    runs: list[Run]
    skipped: list[tuple[Path, str]]


def gather(folders: Sequence[Path]) -> Gathered:
    """Read all runs under some folders, each once.

    Raises ValueError with one sentence where a folder is missing, or none of them has a run.
    """
    for folder in folders:
        if not folder.is_dir():
            what = "a file" if folder.exists() else "not there"
            raise ValueError(f"{folder} is {what}, expected a folder of runs, as runs/.")
    runs, skipped = list[Run](), list[tuple[Path, str]]()
    for path in _paths(folders):
        try:
            runs.append(Run(path.parent, read_result(path), read_settings(path.parent)))
        except (ValueError, OSError, RecursionError) as error:
            skipped.append((path, _reason(error)))
    if not runs:
        raise ValueError(_nothing(folders, skipped))
    return Gathered(runs, skipped)


def read_result(path: Path) -> Mapping[str, Any]:
    """What a `result.json` holds; ValueError where it is none of Sieve's."""
    result = json.loads(path.read_text(encoding="utf-8"))
    named = all(isinstance(look(result, key), str) for key in ("task", "model"))
    if not named or not all(isinstance(look(result, key), Mapping) for key in _MAPPINGS):
        raise ValueError("not a result of Sieve")
    if number(look(result, "kept_fraction.prunable")) is None:
        raise ValueError("a result without a kept fraction")
    for key in _LISTS:
        rows = look(result, key) or []
        if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
            raise ValueError(f"a result whose {key} is no list of rows")
    return result


def read_settings(folder: Path) -> Mapping[str, Any]:
    """What Hydra wrote of a run's settings; empty where there is nothing that can be read."""
    try:
        config = yaml.load((folder / SETTINGS).read_text(encoding="utf-8"), Loader=_LOADER)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return config if isinstance(config, Mapping) else {}


def _paths(folders: Sequence[Path]) -> list[Path]:
    """Every `result.json`, in the order of the folders and their names; each file once."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(_walk(folder)):
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def _walk(folder: Path) -> Iterator[Path]:
    """All results below a folder; links are followed, hidden folders and loops are not."""
    seen = set[str]()
    for place, below, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        below[:] = [] if real in seen else [name for name in below if not name.startswith(".")]
        seen.add(real)
        if RESULT in names:
            yield Path(place) / RESULT


def _reason(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError):
        return "not JSON"
    if isinstance(error, OSError):
        return error.strerror or "cannot be read"
    return str(error)


def _nothing(folders: Sequence[Path], skipped: Sequence[tuple[Path, str]]) -> str:
    where = ", ".join(map(str, folders))
    but = f" ({named(skipped)})" if skipped else ""
    return (
        f"no run was found under {where}{but}, expected a {RESULT} in some folder below; "
        "name a folder that python -m sieve.run has written to."
    )


def named(skipped: Sequence[tuple[Path, str]], most: int = 20) -> str:
    """The skipped files with their reasons, in one phrase."""
    shown = "; ".join(f"{path}: {reason}" for path, reason in skipped[:most])
    rest = len(skipped) - most
    return f"{shown}; and {rest} more" if rest > 0 else shown
