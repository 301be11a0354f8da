"""The documentation in Chromium: settings are found by name, and nothing is cut."""

from pathlib import Path
from typing import Any

import pytest
from browsing import SCHEMES, SIZES, cut_texts, opened

pytestmark = pytest.mark.slow
PAGES = ("index", "cookbook", "settings", "settings/task", "settings/recovery", "results")
TALLEST = 12_000  # pixels of a page of settings at 1,280; all on one page had 31,000
# Commands whose end is out of view.
BEYOND = """[...document.querySelectorAll(".language-sh pre > code, .language-bash pre > code")]
  .filter((code) => code.scrollWidth > code.clientWidth + 1).map((code) => code.innerText)"""


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", SIZES)
def test_nothing_is_cut(browser: Any, site: Path, width: int, scheme: str) -> None:
    for name in PAGES:
        with opened(browser, site / f"{name}.html", width, scheme) as page:
            assert cut_texts(page, ".md-content") == [], name
            assert page.evaluate(BEYOND) == [], name
            if name.startswith("settings") and width == max(SIZES):
                assert page.evaluate("document.documentElement.scrollHeight") < TALLEST, name


@pytest.mark.parametrize("width", SIZES)
def test_the_search_finds_a_setting_by_its_name(browser: Any, site: Path, width: int) -> None:
    with opened(browser, site / "index.html", width) as page:
        if width < 960:
            page.click("label.md-header__button[for=__search]")
        page.focus(".md-search__input")  # It then reads the index; words typed before are lost.
        ready = page.locator(".md-search-result__meta", has_text="Type to start searching")
        ready.wait_for()
        page.locator(".md-search__input").press_sequentially("recovery.steps")
        found = page.locator("a.md-search-result__link[href*='#recovery.steps']").first
        found.click()
        heading = page.locator("h2[id='recovery.steps']")
        heading.wait_for()
        assert page.url.partition("?")[0].endswith("settings/recovery.html")
        assert "recovery.steps" in heading.inner_text()
