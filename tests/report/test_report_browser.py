"""The report in Chromium: the answer is on the first screen, and nothing is cut."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from browsing import HEIGHT, SCHEMES, SIZES, broken_headings, cut_texts, opened, scrolled_tables
from report.results import full_result, genetic_result

from sieve.report import write_report

pytestmark = pytest.mark.slow
LONG = "Review: " + "an-endless-word" * 20 + "\nSentiment:"
# Do two tick labels of an axis touch?
TOUCHING = """selector => [...document.querySelectorAll(selector)].some((axis) => {
  const boxes = [...axis.querySelectorAll("text")].map((text) => text.getBoundingClientRect());
  return boxes.some((a, i) => boxes.slice(i + 1).some((b) =>
    a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom));
})"""

# Colors of each text and of the ground behind it.
COLORS = """() => {
  const texts = document.querySelectorAll("h1, h2, .badge, .verdict, .note, dt, summary, td, pre");
  return [...texts].map((text) => {
    let ground = text;
    while (/, 0\\)$/.test(getComputedStyle(ground).backgroundColor)) ground = ground.parentElement;
    return [getComputedStyle(text).color, getComputedStyle(ground).backgroundColor];
  });
}"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of a line search and one of a genetic search, with rows that flipped."""
    root = tmp_path_factory.mktemp("reports")
    for name, result in (("line", full_result()), ("genetic", genetic_result())):
        folder = root / name
        folder.mkdir()
        result["flips"] = {"rows": 1, "lost": 1, "won": 0, "changed": 0}
        result["export"] = {"format": "factorized", "server": "sieve.serve"}
        score = {"rows": 900, "dense": 0.8, "lost": 50, "won": 9}
        result["classes"] = [score | {"answer": w, "pruned": 0.75} for w in ("no", "yes")]
        flip = {"row": 7, "outcome": "lost", "prompt": LONG, "right": "yes", "dense": "yes"}
        flip |= {"pruned": "no", "dense_score": 1.0, "pruned_score": 0.0}
        (folder / "flips.jsonl").write_text(json.dumps(flip) + "\n")
        for step, genome in enumerate(result["search"]["curve"]):
            genome["divergence"] = 10.0**-step  # over many decades
        write_report(result, folder / "report.html")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", SIZES)
@pytest.mark.parametrize("name", ["line", "genetic"])
def test_the_answer_is_on_the_first_screen_and_nothing_is_cut(
    browser: Any, reports: Path, name: str, width: int, scheme: str
) -> None:
    with opened(browser, reports / name / "report.html", width, scheme) as page:
        page.wait_for_selector(".js-plotly-plot .main-svg")
        for selector in (".figure", ".badge", "h1"):
            box = page.locator(selector).bounding_box()
            assert box["y"] + box["height"] < HEIGHT
        assert page.locator(".figure").inner_text().replace("\u00a0", " ") == "35.0 % kept"
        for details in page.locator("summary").all():
            details.click()
        assert cut_texts(page) == [] and broken_headings(page) == []
        # The table of generations has eight columns and scrolls on a phone.
        assert all("that genomes keep" in table for table in scrolled_tables(page))
        row = page.locator(".flips tbody tr")
        assert row.is_visible() and "an-endless-word" in row.inner_text()
        assert page.locator(".steps pre").count() == 3
        for axis in ("divergence-front .yaxislayer-above", "bottlenecks .xaxislayer-above"):
            assert not page.evaluate(TOUCHING, f"#figure-{axis}"), axis


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_texts_can_be_read_on_light_and_dark_ground(
    browser: Any, reports: Path, scheme: str
) -> None:
    with opened(browser, reports / "line" / "report.html", 1280, scheme) as page:
        colors = {(luminance(text), luminance(ground)) for text, ground in page.evaluate(COLORS)}
        figure = page.locator(".js-plotly-plot").first
        turned = "invert" in figure.evaluate("figure => getComputedStyle(figure).filter")
        body = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for text, ground in colors:
        contrast = (max(text, ground) + 0.05) / (min(text, ground) + 0.05)
        assert contrast >= 4.5, (text, ground)  # WCAG 2.2, level AA
    assert (luminance(body) < 0.05) == turned == (scheme == "dark")


def luminance(color: str) -> float:
    """Relative luminance, 0 to 1, of "rgb(r, g, b)" (WCAG 2.2)."""
    channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
