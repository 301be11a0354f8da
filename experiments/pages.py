"""The results page and README from committed JSON: tables between marks, and every number's source.

python -m experiments.pages     # writes the tables anew
"""

import importlib
import json
import re
from pathlib import Path

from experiments.verdicts import verdicts

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
PAGES = (FOLDER.parent / "README.md", FOLDER / "README.md")


def write_pages() -> None:
    """Put the tables of all committed results into the pages; each has its place on one.

    Raises ValueError where one has none.
    """
    found = tables()
    if strays := [n for n in found if all(f"<!-- {n} -->" not in p.read_text() for p in PAGES)]:
        raise ValueError(f"no page has a place for the table {strays[0]}.")
    for page in PAGES:
        text = page.read_text()
        page.write_text(filled(text, {n: t for n, t in found.items() if f"<!-- {n} -->" in text}))


def tables() -> dict[str, str]:
    """Every table of the pages, by its mark."""
    summaries = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    blocks: dict[str, str] = {}
    for name, summary in summaries.items():
        blocks |= importlib.import_module(f"experiments.claims.{name}").tables(summary)
    return blocks | {"verdicts": verdicts(summaries)}


def write_blocks(path: Path, blocks: dict[str, str]) -> None:
    """Put text between `<!-- name -->` and `<!-- /name -->` of a Markdown file."""
    path.write_text(filled(path.read_text(), blocks))


def filled(content: str, blocks: dict[str, str]) -> str:
    """A page with its blocks; ValueError where one has no place, or two."""
    for name, text in blocks.items():
        pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        content, count = pattern.subn(lambda m, text=text: f"{m[1]}\n{text}\n\n{m[2]}", content)
        if count != 1:
            raise ValueError(f"the page has {count} blocks named {name}, expected 1.")
    return content


if __name__ == "__main__":
    write_pages()
