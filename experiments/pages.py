"""Write the tables of the results page and README from committed JSON.

python -m experiments.pages
"""

import importlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.real_verdicts import real_verdicts, sizes
from experiments.verdicts import verdicts

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
WIDTH = 120  # of a line of a result
PAGES = (FOLDER.parent / "README.md", FOLDER / "README.md")


def write_result(name: str, summary: Mapping[str, Any]) -> None:
    """Write `results/NAME.json`."""
    (RESULTS / f"{name}.json").write_text(compact(json.loads(json.dumps(summary))) + "\n")


def compact(tree: Any, depth: int = 0) -> str:
    """JSON with lists and mappings on one line where they fit."""
    line = json.dumps(tree, ensure_ascii=False)
    if not isinstance(tree, dict | list) or len(line) + depth <= WIDTH:
        return line
    pad, keys = "\n" + " " * (depth + 1), isinstance(tree, dict)
    heads = [f"{json.dumps(key)}: " for key in tree] if keys else [""] * len(tree)
    parts = tree.values() if keys else tree
    inside = [h + compact(part, depth + 1) for h, part in zip(heads, parts, strict=True)]
    first, last = "{}" if keys else "[]"
    return f"{first}{pad}{f',{pad}'.join(inside)}{pad[:-1]}{last}"


def write_pages() -> None:
    """Write the tables of all committed results into the pages.

    Raises ValueError if a table has no mark on any page.
    """
    found = tables()
    if strays := [n for n in found if all(f"<!-- {n} -->" not in p.read_text() for p in PAGES)]:
        raise ValueError(f"no page has a mark for the table {strays[0]}.")
    for page in PAGES:
        text = page.read_text()
        page.write_text(filled(text, {n: t for n, t in found.items() if f"<!-- {n} -->" in text}))


def tables() -> dict[str, str]:
    """All tables, by mark."""
    summaries = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    blocks: dict[str, str] = {}
    for name, summary in summaries.items():
        blocks |= importlib.import_module(f"experiments.claims.{name}").tables(summary)
    judged = {"verdicts": verdicts(summaries)}
    if "real" in summaries:
        judged |= {"real-verdicts": real_verdicts(summaries), "sizes": sizes(summaries)}
    return blocks | judged


def filled(content: str, blocks: dict[str, str]) -> str:
    """The page with its blocks replaced; ValueError unless each mark occurs exactly once."""
    for name, text in blocks.items():
        pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        content, count = pattern.subn(lambda m, text=text: f"{m[1]}\n{text}\n\n{m[2]}", content)
        if count != 1:
            raise ValueError(f"the page has {count} blocks named {name}, expected 1.")
    return content


if __name__ == "__main__":
    write_pages()
