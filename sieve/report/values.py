"""Reading a result and writing its numbers: one place for units, signs and missing values.

A result is the nested dictionary of `result.json`. Fractions are printed as percent with one
decimal, drops as percentage points, sizes in decimal bytes; what was not measured prints as "–".
"""

import math
from collections.abc import Mapping
from typing import Any

NOT_MEASURED = "–"
MINUS = "\N{MINUS SIGN}"


def look(result: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path (`"drop.point"`), None where any step of it is missing."""
    value: Any = result
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def number(value: Any) -> float | None:
    """The value as a finite float; None for anything else (null, NaN, text, a truth value)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def measure(result: Mapping[str, Any], path: str) -> float | None:
    """The finite number at a dotted path, or None."""
    return number(look(result, path))


def ratio(part: float | None, whole: float | None) -> float | None:
    """part / whole; None where either is missing or the whole is zero."""
    return None if part is None or not whole else part / whole


def decimal(value: float, digits: int = 1) -> str:
    """Fixed decimals with thousands separators, a true minus sign and no negative zero."""
    text = f"{abs(value):,.{digits}f}"
    is_zero = not text.strip("0.,")
    return MINUS + text if value < 0 and not is_zero else text


def percent(fraction: Any) -> str:
    """A fraction as percent, one decimal: 0.35 → "35.0 %"; never rounds a part to none or all."""
    value = number(fraction)
    if value is None:
        return NOT_MEASURED
    if 0 < value < 0.0005:
        return "under 0.1 %"
    if 0.9995 <= value < 1:
        return "over 99.9 %"
    return f"{decimal(100 * value)} %"


def points(difference: Any) -> str:
    """A difference of two fractions in percentage points, without the unit: 0.006 → "0.6"."""
    value = number(difference)
    return NOT_MEASURED if value is None else decimal(100 * value)


def count(value: Any) -> str:
    """A whole number with thousands separators."""
    found = number(value)
    return NOT_MEASURED if found is None else decimal(found, 0)


def size(n_bytes: Any) -> str:
    """Bytes in decimal units: 12906872 → "12.9 MB"."""
    value = number(n_bytes)
    if value is None:
        return NOT_MEASURED
    if value < 1000:
        return f"{decimal(value, 0)} bytes"
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if value >= scale:
            return f"{decimal(value / scale)} {unit}"
    return f"{decimal(value / 1e3)} kB"


def memory(mib: Any) -> str:
    """Mebibytes as decimal bytes, so that sizes on one page share their units."""
    value = number(mib)
    return NOT_MEASURED if value is None else size(value * 2**20)


def rate(tokens_per_second: Any) -> str:
    """Tokens per second, without the unit; one decimal below a hundred."""
    value = number(tokens_per_second)
    if value is None:
        return NOT_MEASURED
    return decimal(value, 1 if value < 100 else 0)


def times(factor: Any) -> str:
    """A ratio, pruned over dense: 1.2 → "1.20 ×"."""
    value = number(factor)
    return NOT_MEASURED if value is None else f"{decimal(value, 2)} ×"


def duration(seconds: Any) -> str:
    """Seconds in the two units a reader wants: "0.4 s", "2 min 5 s", "1 h 3 min"."""
    value = number(seconds)
    if value is None:
        return NOT_MEASURED
    if value < 60:
        return f"{decimal(value)} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def probability(value: Any) -> str:
    """A p-value: three decimals, "under 0.001" below that."""
    found = number(value)
    if found is None:
        return NOT_MEASURED
    return "under 0.001" if found < 0.001 else decimal(found, 3)


def short_name(path: Any) -> str:
    """The last part of a model's name or path: "owner/name" → "name"."""
    text = str(path) if path else "the model"
    return text.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or text
