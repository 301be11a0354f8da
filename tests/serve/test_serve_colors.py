"""The page of a served export has the colors of the report, on light and on dark ground."""

import re
from importlib.resources import files
from itertools import product

import pytest

PAGE = files("sieve.serve").joinpath("page.html").read_text(encoding="utf-8")
REPORT = files("sieve.report").joinpath("templates", "page.css").read_text(encoding="utf-8")


def palettes(css: str) -> list[dict[str, str]]:
    """The colors of light and dark ground, by name."""
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    return [dict(re.findall(r"--(\w+): (#\w+);", block)) for block in blocks]


def luminance(color: str) -> float:
    digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_the_colors_are_those_of_the_report_in_both_themes() -> None:
    shown, report = palettes(PAGE), palettes(REPORT)
    assert len(shown) == len(report) == 2
    for own, others in zip(shown, report, strict=True):
        assert own and own.items() <= others.items()


def test_every_color_is_of_the_palette() -> None:
    style = PAGE.partition("<style>")[2].partition("</style>")[0]
    rules = re.sub(r":root \{.*?\}", "", style, flags=re.DOTALL)
    assert "#" not in rules
    assert set(re.findall(r"var\(--(\w+)\)", rules)) <= set(palettes(PAGE)[0])


def test_the_winning_answer_is_not_in_the_color_of_problems() -> None:
    assert ".first .bar { background: var(--accent); }" in PAGE
    assert ".problem { color: var(--warning);" in PAGE


@pytest.mark.parametrize(("palette", "ground"), list(product((0, 1), ("ground", "pale"))))
def test_texts_can_be_read(palette: int, ground: str) -> None:
    colors = palettes(PAGE)[palette]
    for text in ("ink", "muted", "accent", "warning"):
        light, dark = sorted((luminance(colors[c]) for c in (text, ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, text  # WCAG 2.2, level AA
