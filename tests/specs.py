"""The metrics and settings that a W&B workspace or report refers to, read from its JSON."""

import re
from collections.abc import Iterator

from logged import Page

# What a spec can refer to: a key of a logged row, a summary value, a setting.
ROW, SUMMARY, SETTING = "history", "summary", "settings"
OWN = {"state", "displayName", "group"}  # fields that every W&B run has


def used(value: object) -> Iterator[tuple[str, str]]:
    """(place, name) of every reference to a run in a spec."""
    if isinstance(value, list):
        for one in value:
            yield from used(one)
    if not isinstance(value, dict):
        return
    if value.get("viewType") == "Weave":
        yield from (("media", name) for name in picked(value))
    if "section" in value and "name" in value:
        yield PLACES[value["section"]], value["name"]
    for key, inner in value.items():
        if key in ("xAxis", "yAxis", "zAxis") and isinstance(inner, str):
            yield _split(inner, ROW)
        elif key == "accessor":
            yield _split(inner, SUMMARY)
        elif key in ("metrics", "mediaKeys"):
            yield from ((ROW if key == "metrics" else "media", name) for name in inner)
        elif key == "groupBy":
            yield SETTING, inner
        elif key in ("columnOrder", "columnPinned", "columnVisible"):
            yield from (_split(name, "run") for name in inner)
        else:
            yield from used(inner)


def picked(value: object) -> Iterator[str]:
    """The summary values that a table's panel shows: constants named `key`."""
    if isinstance(value, list | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from picked(one)
    if isinstance(value, dict) and isinstance(key := value.get("key"), dict) and "val" in key:
        yield key["val"]


PLACES = {"run": "run", "summary": SUMMARY, "config": SETTING}


def _split(name: str, default: str) -> tuple[str, str]:
    section, colon, rest = name.partition(":")
    return (PLACES[section], rest) if colon else (default, name)


def missing(spec: object, pages: list[Page]) -> set[tuple[str, str]]:
    """References of a spec that no page has."""
    rows = {key for one in pages for key in one.history}
    held = {
        ROW: rows,
        SUMMARY: rows | {key for one in pages for key in one.summary},
        SETTING: {re.sub(r"^([^.]+)", r"\1.value", k) for one in pages for k in one.settings},
        "media": {key for one in pages for key in one.media},
        "run": OWN,
    }
    return {(place, name) for place, name in used(spec) if name not in held[place]}
