"""Pages in Chromium through playwright: opened at a width, in light or dark, and looked over."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SIZES = (1280, 390)  # a laptop and a phone
SCHEMES = ("light", "dark")
HEIGHT = 800

# Texts that reach beyond the window and are in no box that scrolls. `area` selects where to look.
CUT = """area => {
  const scrolls = (node) => ["auto", "scroll"].includes(getComputedStyle(node).overflowX);
  const inBox = (node) =>
    node && node !== document.body && (scrolls(node) || inBox(node.parentElement));
  const cut = [];
  for (const root of document.querySelectorAll(area)) {
    const texts = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const text = texts.currentNode, parent = text.parentElement;
      if (!text.data.trim() || parent.closest("script, style, svg, .unseen")) continue;
      if (inBox(parent)) continue;
      const range = document.createRange();
      range.selectNodeContents(text);
      const { left, right, width } = range.getBoundingClientRect();
      const end = document.documentElement.clientWidth;
      if (width && (left < -1 || right > end + 1)) cut.push(text.data.trim());
    }
  }
  return cut;
}"""

# The first words of the tables that are wider than their box, so that a reader must scroll it.
SCROLLED = """() => [...document.querySelectorAll("table")].filter((table) => {
  const box = table.parentElement;
  return table.getBoundingClientRect().width > box.clientWidth + 1;
}).map((table) => table.innerText.trim().split("\\n")[0])"""

# The words of tables' headings that go on in the next line.
BROKEN = """() => {
  const broken = [];
  for (const head of document.querySelectorAll("thead th")) {
    const texts = document.createTreeWalker(head, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      for (const word of texts.currentNode.data.matchAll(/[^\\s-]+/g)) {
        const range = document.createRange();
        range.setStart(texts.currentNode, word.index);
        range.setEnd(texts.currentNode, word.index + word[0].length);
        const lines = new Set([...range.getClientRects()].map((line) => Math.round(line.top)));
        if (lines.size > 1) broken.push(word[0]);
      }
    }
  }
  return broken;
}"""


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; the test skips if it or playwright is not installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed; on Debian: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, path: Path, width: int, scheme: str = "light") -> Iterator[Any]:
    """A page. The test fails if it says or asks for anything, or is wider than `width`."""
    context = browser.new_context(viewport={"width": width, "height": HEIGHT}, color_scheme=scheme)
    page, problems = context.new_page(), list[str]()
    page.set_default_timeout(60000)
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda asked: problems.extend([asked.url] * asked.url.startswith("http")))
    page.goto(path.as_uri())
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not problems
    context.close()


def cut_texts(page: Any, area: str = "body") -> list[str]:
    """The texts in `area` that a reader cannot bring into view.

    A text in a box that scrolls is not cut, though a reader may not see that the box does: for
    tables ask `scrolled_tables` as well.
    """
    return page.evaluate(CUT, area)


def scrolled_tables(page: Any) -> list[str]:
    """The first line of each table of which a part is out of view until a reader scrolls."""
    return page.evaluate(SCROLLED)


def broken_headings(page: Any) -> list[str]:
    """The words in headings of tables that do not fit into their column."""
    return page.evaluate(BROKEN)
