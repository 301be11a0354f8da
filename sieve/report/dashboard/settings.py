"""The settings of runs that are not the same in all of them: what a comparison has to tell."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sieve.report.dashboard.gather import Run
from sieve.report.values import look

# What says nothing of how a run was made: where it ran, and what it told.
_BESIDE = ("hydra", "paths", "logger", "inspect", "search.job", "search.shard", "search.ledger")
# From the result, for runs without their settings beside them.
_STATED = {
    "tolerance": "tolerance",
    "guarantee": "guarantee",
    "seed": "seed",
    "projection.name": "projection",
    "projection.storage": "storage",
    "search.method": "search.method",
    "recovery.method": "recovery.method",
    "quantization.method": "quantization.method",
    "export.format": "export.format",
    "device": "device",
    "sieve": "sieve_version",
}
_LONGEST = 200  # characters of one setting
ABSENT = "none"


def varying_settings(runs: Sequence[Run]) -> list[dict[str, str]]:
    """For each run its settings as text, without those that are alike in all runs."""
    all_settings = [_settings(run) for run in runs]
    names = list(dict.fromkeys(name for found in all_settings for name in found))
    differing = [
        name for name in names if len({found.get(name, ABSENT) for found in all_settings}) > 1
    ]
    return [{name: found.get(name, ABSENT) for name in differing} for found in all_settings]


def _settings(run: Run) -> dict[str, str]:
    written = dict(_flat(run.config))
    stated = {name: _text(look(run.result, path)) for name, path in _STATED.items()}
    versions = look(run.result, "versions")
    if isinstance(versions, Mapping):
        stated |= {f"version of {name}": _text(value) for name, value in versions.items()}
    return {**stated, **written}


def _flat(config: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The settings under dotted names, lists as one text."""
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name in _BESIDE:
            continue
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, _text(value)


def _text(value: Any) -> str:
    """One setting as YAML would have it, on one line and not too long."""
    if value in (None, "", {}, []):
        return ABSENT
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        value = f"[{', '.join(_text(item) for item in value)}]"
    line = str(value).replace("\n", "⏎")
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
