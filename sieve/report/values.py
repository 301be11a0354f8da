"""Numbers as text, with their units and signs: fractions as percent, drops as points, bytes as MB.

A number that was not measured is None and prints as "–".
"""

import math
from datetime import datetime

NOISY = 0.2  # the largest spread of a ratio of speeds that is shown
NOT_MEASURED = "–"
MINUS = "\N{MINUS SIGN}"


def ratio(part: float | None, whole: float | None) -> float | None:
    """part / whole; None if either is missing or the whole is zero."""
    return None if part is None or not whole else part / whole


def decimal(value: float, digits: int = 1) -> str:
    """Fixed decimals with thousands separators, a true minus sign and no negative zero."""
    text = f"{abs(value):,.{digits}f}"
    is_zero = not text.strip("0.,")
    return MINUS + text if value < 0 and not is_zero else text


def percent(fraction: float | None) -> str:
    """A fraction as percent, 0.35 → "35.0 %"; only 0 and 1 print as "0.0 %" and "100.0 %"."""
    if fraction is None:
        return NOT_MEASURED
    if 0 < fraction < 0.0005:
        return "under 0.1 %"
    if 0.9995 <= fraction < 1:
        return "over 99.9 %"
    return f"{decimal(100 * fraction)} %"


def fine_percent(fraction: float | None) -> str:
    """Percent with two decimals, as candidates may differ by less than 0.1 %."""
    return NOT_MEASURED if fraction is None else f"{decimal(100 * fraction, 2)} %"


def points(difference: float | None) -> str:
    """A difference of two fractions in percentage points, without the unit: 0.006 → "0.6"."""
    return NOT_MEASURED if difference is None else decimal(100 * difference)


def rounded_up(bound: float) -> float:
    """An upper bound to a tenth of a percent, never below itself: 0.0231 → 0.024."""
    return math.ceil(round(1000 * bound, 6)) / 1000


def count(number: float | None) -> str:
    """A whole number with thousands separators."""
    return NOT_MEASURED if number is None else decimal(number, 0)


def counted(number: float, noun: str) -> str:
    """ "1 row", "2 rows"."""
    return f"{count(number)} {noun}{'s' * (number != 1)}"


def size(n_bytes: float | None) -> str:
    """Bytes in decimal units: 12906872 → "12.9 MB"."""
    if n_bytes is None:
        return NOT_MEASURED
    if n_bytes < 1000:
        return f"{decimal(n_bytes, 0)} bytes"
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= scale:
            return f"{decimal(n_bytes / scale)} {unit}"
    return f"{decimal(n_bytes / 1e3)} kB"


def memory(mib: float | None) -> str:
    """Mebibytes in the decimal units of `size`."""
    return NOT_MEASURED if mib is None else size(mib * 2**20)


def rate(tokens_per_second: float | None) -> str:
    """Tokens per second, without the unit; one decimal below a hundred."""
    if tokens_per_second is None:
        return NOT_MEASURED
    return decimal(tokens_per_second, 1 if tokens_per_second < 100 else 0)


def times(factor: float | None) -> str:
    """A ratio, pruned over dense: 1.2 → "1.20 ×"."""
    return NOT_MEASURED if factor is None else f"{decimal(factor, 2)} ×"


def speed_up(ratio: float | None, spread: float | None) -> str:
    """A ratio of speeds with its spread, unless the machine was too busy to measure it."""
    if ratio is None or not spread:
        return times(ratio)
    return "too noisy to say" if spread > NOISY else f"{times(ratio)} ± {percent(spread)}"


def duration(seconds: float | None) -> str:
    """Seconds in one or two units: "0.4 s", "2 min 5 s", "1 h 3 min"."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 60:
        return f"{decimal(seconds)} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def probability(value: float | None) -> str:
    """A p-value: three decimals, "under 0.001" below that."""
    if value is None:
        return NOT_MEASURED
    return "under 0.001" if value < 0.001 else decimal(value, 3)


def short_name(path: str) -> str:
    """The last part of a model's name or path: "owner/name" → "name"."""
    text = path or "the model"
    return text.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or text


def date(stamp: str) -> str:
    """ "2026-11-23T23:00:00Z" → "23 Nov 2026, 23:00"; text that is no date stays as it is."""
    try:
        moment = datetime.fromisoformat(stamp)
    except ValueError:
        return stamp
    return f"{moment.day} {moment:%b %Y, %H:%M}"
