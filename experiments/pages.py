"""The results page and README from committed JSON: tables between marks, and every number's source.

python -m experiments.pages     # writes the tables anew
"""

import importlib
import json
import re
from pathlib import Path

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
PAGE = FOLDER / "README.md"


def write_pages() -> None:
    """Put the tables of all committed results into the page."""
    write_blocks(PAGE, tables())


def tables() -> dict[str, str]:
    """Every table of the page, by its mark."""
    blocks: dict[str, str] = {}
    for path in sorted(RESULTS.glob("*.json")):
        claim = importlib.import_module(f"experiments.claims.{path.stem}")
        blocks |= claim.tables(json.loads(path.read_text()))
    return blocks


def write_blocks(path: Path, blocks: dict[str, str]) -> None:
    """Put text between `<!-- name -->` and `<!-- /name -->` of a Markdown file."""
    content = path.read_text()
    for name, text in blocks.items():
        pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        content, count = pattern.subn(lambda m, text=text: f"{m[1]}\n{text}\n\n{m[2]}", content)
        if count != 1:
            raise ValueError(f"{path} has {count} blocks named {name}, expected 1.")
    path.write_text(content)


if __name__ == "__main__":
    write_pages()
