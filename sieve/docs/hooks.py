"""Hooks that mkdocs calls during the build: they add the pages and figures made from the code."""

import re
from html import escape
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from sieve.docs import included, plots, settings

_FIGURE = re.compile(r"^<!-- figure: (\w+) -->$", re.MULTILINE)
# Links, code blocks and headings, which stay as they are; and code that may name a setting.
_CODE = re.compile(r"<(a|pre|h\d)\b.*?</\1>|<code>([\w.]+)(=[^<]*)?</code>", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add generated pages, and the files that they show or link to."""
    pages = settings.pages()
    assets: dict[str, Path] = {"files/report.png": included.ROOT / ".github/report.png"}
    for source, name in included.PAGES.items():
        pages[name], linked = included.include(source)
        assets |= linked
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for name, path in assets.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Insert the figures and the README's example answer at their markers."""
    markdown = markdown.replace("<!-- answer -->", included.answer())
    return _FIGURE.sub(lambda match: _figure(match[1]), markdown)


def _figure(name: str) -> str:
    figures = plots.render()
    if name not in figures:
        raise ValueError(f"a page shows the figure {name!r}, expected one of {list(figures)}.")
    svg, spoken, caption = figures[name]
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(spoken)}" ', 1)
    caption = f"<figcaption>{settings.as_html(caption)}</figcaption>"
    return f'<figure class="drawn" id="figure-{name}">\n{svg}\n{caption}\n</figure>\n'


def on_page_content(html: str, page: Page, **_: object) -> str:
    """Link the names of settings to their entries on the pages of settings."""
    if page.file.src_uri.startswith("settings"):
        return html
    keys, root = settings.keys(), "../" * page.file.src_uri.count("/")

    def linked(match: re.Match[str]) -> str:
        _, key, value = match.groups()
        if key not in keys or ("." not in key and not value):  # "seed" may be a plain word
            return match[0]
        target = root + settings.page_of(key).replace(".md", f".html#{settings.anchor(key)}")
        return f'<a class="key" href="{target}"><code>{key}{value or ""}</code></a>'

    return _CODE.sub(linked, html)
