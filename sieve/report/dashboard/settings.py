"""The settings in which the runs differ."""

from collections.abc import Iterator, Mapping, Sequence

from sieve.report.dashboard.gather import Run

# Settings that do not change what a run computes.
_IGNORED = ("hydra", "paths", "logger", "inspect", "sweep")
_LONGEST = 200  # characters of one setting
ABSENT = "none"


def varying_settings(runs: Sequence[Run]) -> list[dict[str, str]]:
    """For each run, the text of every setting that is not the same in all runs."""
    settings = [
        {"device": _text(run.result.device), "sieve": _text(run.result.sieve_version)}
        | {f"version of {name}": version for name, version in run.result.versions.items()}
        | dict(_flat(run.settings))
        for run in runs
    ]
    names = dict.fromkeys(name for found in settings for name in found)
    varying = [n for n in names if len({found.get(n, ABSENT) for found in settings}) > 1]
    return [{name: found.get(name, ABSENT) for name in varying} for found in settings]


def _flat(settings: Mapping[object, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings under dotted names; a list is one text."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if name in _IGNORED:
            continue
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, _text(value)


def _text(value: object) -> str:
    """A setting as YAML writes it, on one line and not too long."""
    if value in (None, "", {}, []):
        return ABSENT
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        value = f"[{', '.join(map(_text, value))}]"
    line = str(value).replace("\n", "⏎")
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
