"""What a workspace or report of W&B names of its runs, read out of the JSON that it is sent as."""

import re
from collections.abc import Iterator
from typing import Any

from logged import Page

# What a place of a spec names: a key of a logged row, a closing figure, a setting, or a group.
ROW, CLOSING, SETTING = "history", "summary", "settings"
OWN = {"state", "displayName", "group"}  # of a run, W&B's own


def used(value: Any) -> Iterator[tuple[str, str]]:
    """(place, name) of everything in a spec that names something of a run."""
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
            yield _split(inner, CLOSING)
        elif key in ("metrics", "mediaKeys"):
            yield from ((ROW if key == "metrics" else "media", name) for name in inner)
        elif key == "groupBy":
            yield SETTING, inner
        elif key in ("columnOrder", "columnPinned", "columnVisible"):
            yield from (_split(name, "run") for name in inner)
        else:
            yield from used(inner)


def picked(value: Any) -> Iterator[str]:
    """What a table's panel picks out of a run's closing figures: constants named `key`."""
    if isinstance(value, list | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from picked(one)
    if isinstance(value, dict) and isinstance(key := value.get("key"), dict) and "val" in key:
        yield key["val"]


PLACES = {"run": "run", "summary": CLOSING, "config": SETTING}


def _split(name: str, default: str) -> tuple[str, str]:
    section, colon, rest = name.partition(":")
    return (PLACES[section], rest) if colon else (default, name)


def missing(spec: Any, pages: list[Page]) -> set[tuple[str, str]]:
    """What a spec uses and no page has."""
    rows = {key for one in pages for key in one.history}
    held = {
        ROW: rows,
        CLOSING: rows | {key for one in pages for key in one.summary},
        SETTING: {re.sub(r"^([^.]+)", r"\1.value", k) for one in pages for k in one.settings},
        "media": {key for one in pages for key in one.media},
        "run": OWN,
    }
    return {(place, name) for place, name in used(spec) if name not in held[place]}
