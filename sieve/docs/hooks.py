"""What mkdocs calls while it builds the site: pages and figures that are made from the code."""

import re
from html import escape
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from sieve.docs import included, settings
from sieve.docs.figures import FIGURES, render

_FIGURE = re.compile(r"^<!-- figure: (\w+) -->$", re.MULTILINE)
_CODE = re.compile(r"<(a|pre|h\d)\b.*?</\1>|<code>([\w.]+)(=[^<]*)?</code>", re.DOTALL)
_drawn: dict[str, str] = {}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made, and the files that they show."""
    pages = {"settings.md": settings.page()}
    held: dict[str, Path] = {"files/report.png": included.ROOT / ".github/report.png"}
    for source, name in included.PAGES.items():
        one = included.include(source)
        pages[name] = one.text
        held |= one.files
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for name, path in held.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    if not _drawn:  # Once, where the site is served and built again and again.
        _drawn.update(render())
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Put figures, and the answer of the README, where a page asks for them."""
    markdown = markdown.replace("<!-- answer -->", included.answer())
    return _FIGURE.sub(lambda match: _figure(match[1]), markdown)


def _figure(name: str) -> str:
    if name not in FIGURES:
        raise ValueError(f"a page asks for the figure {name!r}, expected one of {list(FIGURES)}.")
    one = FIGURES[name]
    svg = _drawn[name].replace("<svg ", f'<svg role="img" aria-label="{escape(one.alt)}" ', 1)
    caption = f"<figcaption>{settings.as_html(one.caption)}</figcaption>"
    return f'<figure class="drawn" id="figure-{name}">\n{svg}\n{caption}\n</figure>\n'


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Let the names of settings lead to what is said of them."""
    if page.file.src_uri == "settings.md":
        return html
    known, up = settings.keys(), "../" * page.file.src_uri.count("/")

    def linked(match: re.Match[str]) -> str:
        if match[2] not in known or "." not in match[2] + ("." if match[3] else ""):
            return match[0]
        code = f"<code>{match[2]}{match[3] or ''}</code>"
        return f'<a class="key" href="{up}settings.html#{match[2]}">{code}</a>'

    return _CODE.sub(linked, html)
