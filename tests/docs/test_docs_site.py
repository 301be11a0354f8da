"""The documentation site works offline, and in Chromium nothing is cut.

All tests that need the site are in this file, so that it is built once.
"""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from browsing import SCHEMES, SIZES, cut_texts, opened

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PAGES = ("index", "cookbook", "settings", "settings/task", "settings/recovery", "results")
TALLEST = 12_000  # pixels of a page of settings at 1,280; all on one page had 31,000
# Commands whose end is out of view.
BEYOND = """[...document.querySelectorAll(".language-sh pre > code, .language-bash pre > code")]
  .filter((code) => code.scrollWidth > code.clientWidth + 1).map((code) => code.innerText)"""


class Links(HTMLParser):
    """The files that a page loads, the targets of its links, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values["id"]} if "id" in values else set()
        if tag == "a":
            self.links += [values["href"]] if "href" in values else []
        elif tag in ("link", "use", "image"):
            self.loaded += [v for k, v in values.items() if k in ("href", "xlink:href")]
        self.loaded += [values[key] for key in ("src", "srcset", "data", "poster") if key in values]
        self.loaded += re.findall(r"url\(['\"]?([^)'\"]+)", values.get("style", ""))


def test_every_link_within_the_site_leads_somewhere(site: Path) -> None:
    pages = {page: Links(page.read_text("utf-8")) for page in site.rglob("*.html")}
    assert len(pages) > len(list((ROOT / "sieve/docs/pages").rglob("*.md")))
    broken = []
    for page, parsed in pages.items():
        for link in parsed.links + parsed.loaded:
            if re.match(r"[a-z]+:", link) or page.name == "404.html":
                continue
            path, _, anchor = unquote(link).partition("#")
            target = (page.parent / path).resolve() if path else page
            is_file = target.is_file() and (not anchor or target.suffix != ".html")
            if not is_file and not (target in pages and anchor in {*pages[target].ids, "__top"}):
                broken.append(f"{page.name}: {link}")
    assert broken == []


def test_no_page_loads_anything_from_another_site(site: Path) -> None:
    requested = []
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        requested += [u for u in Links(text).loaded if re.match(r"(?:[a-z]+:)?//", u)]
        requested += re.findall(r"@import[^;]+;", text)
        assert "mermaid" not in text and "api.github.com" not in text
    for sheet in site.rglob("*.css"):
        inside = re.findall(r"(?:url\(|@import\s+)['\"]?([^)'\";]+)", sheet.read_text("utf-8"))
        requested += [u for u in inside if re.match(r"(?:https?:)?//", u)]
    assert requested == []


def test_the_site_has_every_figure_and_can_be_searched_offline(site: Path) -> None:
    from sieve.docs.plots import FIGURES

    text = "".join(page.read_text("utf-8") for page in site.glob("*.html"))
    assert [f for f in FIGURES if f'id="figure-{f.__name__}"' not in text] == []
    assert "<!-- figure" not in text and "<!-- answer" not in text
    entries = json.loads((site / "search/search_index.json").read_text("utf-8"))["docs"]
    assert any(entry["location"] == "settings/search.html#search.judge" for entry in entries)
    assert (site / "search/search_index.js").is_file()
    assert "assets/iframe-worker.js" in (site / "index.html").read_text("utf-8")


@pytest.mark.parametrize(("width", "scheme"), [*zip(SIZES, SCHEMES, strict=True)])
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
