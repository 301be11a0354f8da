"""Marks and lines of figures can be seen on light ground, and on dark ground through the filter."""

import re
from importlib.resources import files

import pytest
from report.results import full_result, genetic_result

from sieve.report import figures

LEAST_CONTRAST = 3.0  # of graphical objects, WCAG 2.2
CSS = (files("sieve.report") / "templates" / "page.css").read_text(encoding="utf-8")
Color = tuple[float, ...]
# The matrix of hue-rotate(180deg), by Filter Effects Module Level 1
TURN = ((-0.574, 1.43, 0.144), (0.426, 0.43, 0.144), (0.426, 1.43, -0.856))


def channels(color: str) -> Color:
    pairs = re.findall("..", color.lstrip("#"))
    return tuple(int(pair, 16) / 255 for pair in pairs)


def filtered(color: Color) -> Color:
    """A color as the dark page shows it."""
    amount = float(re.search(r"invert\((\.\d+)\) hue-rotate\(180deg\)", CSS).group(1))
    turned = [amount + (1 - 2 * amount) * channel for channel in color]
    sums = [sum(w * c for w, c in zip(weights, turned, strict=True)) for weights in TURN]
    return tuple(min(1.0, max(0.0, total)) for total in sums)


def mixed(color: Color, ground: Color, opacity: float) -> Color:
    return tuple(opacity * c + (1 - opacity) * g for c, g in zip(color, ground, strict=True))


def luminance(color: Color) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(color: Color, ground: Color) -> float:
    light, dark = sorted((luminance(color), luminance(ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def drawn(name: str) -> list[tuple[str, str, float, float | None]]:
    """Of every mark and line with a color: its trace, the color, opacity and width of line."""
    result = full_result() if name == "line" else genetic_result()
    result["search"]["curve"][-1] |= {"margin": -0.1}
    shown = []
    for trace in figures(result)["accuracy_curve"].data:
        opacity = 1.0 if trace.opacity is None else trace.opacity
        is_open = "open" in (trace.marker.symbol or "")
        if "markers" in trace.mode and trace.marker.color:
            width = trace.marker.line.width if is_open else None
            shown.append((trace.name, trace.marker.color, opacity, width))
        if "lines" in trace.mode:
            shown.append((trace.name, trace.line.color, opacity, trace.line.width))
    return shown


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["line", "genetic"])
def test_marks_and_lines_of_the_curve_stand_out_in_both_themes(name: str, scheme: str) -> None:
    grounds = [channels(color) for color in re.findall(r"--ground: (#\w+);", CSS)]
    ground = (1.0, 1.0, 1.0) if scheme == "light" else grounds[1]
    marks = drawn(name)
    assert len(marks) > 5
    for trace, color, opacity, width in marks:
        seen = channels(color) if scheme == "light" else filtered(channels(color))
        assert contrast(mixed(seen, ground, opacity), ground) >= LEAST_CONTRAST, trace
        assert width is None or width >= 1.5, trace
