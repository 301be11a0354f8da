"""Objects of dataclasses from the values of a JSON file, where any key may be missing."""

import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import TypeVar, get_args, get_origin, get_type_hints

Number = float | None  # None: not measured
T = TypeVar("T")


def build(kind: type[T], record: Mapping[str, object]) -> T:
    """An object of a dataclass from a part of `result.json`."""
    hints = get_type_hints(kind)
    keys = {name: "from" if name == "taken_from" else name for name in hints}
    values = {name: _convert(hints[name], record.get(key)) for name, key in keys.items()}
    return kind(**values)


def _convert(kind: object, value: object) -> object:
    """The value as `kind`, or what stands for a missing value of that kind."""
    if isinstance(kind, UnionType):
        [kind] = (option for option in get_args(kind) if option is not NoneType)
        needed = Mapping if is_dataclass(kind) else bool if kind is bool else object
        if not isinstance(value, needed):
            return None
    if isinstance(kind, type) and is_dataclass(kind):
        return build(kind, value if isinstance(value, Mapping) else {})
    if get_origin(kind) is list:
        return [_convert(get_args(kind)[0], v) for v in value] if isinstance(value, list) else []
    if get_origin(kind) is dict:
        items = value.items() if isinstance(value, Mapping) else ()
        return {str(key): _convert(get_args(kind)[1], item) for key, item in items}
    if kind is bool:
        return value is True
    if kind is str:
        return "" if value is None else str(value)
    return value if kind is object else _finite(kind, value)


def _finite(kind: object, value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if kind is int else float(value)
