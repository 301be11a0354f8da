"""Check the source of every number in README and on the results page.

    python -m experiments.numbers     # list numbers without a source, or that differ from it

Tables between marks are generated from committed JSON. Every other number in the prose needs an
entry in `numbers.json`. The entry of a measured number names a JSON file, keys and a format. The
entry of a setting or size names a file of the repository and the text there that states it.
Commands, code and links are ignored, and so are numbers in words.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "experiments/README.md")
SOURCES = Path(__file__).with_suffix(".json")
NUMERAL = re.compile(r"(?<![\w.])[-+−]?\.?\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?")
NO_PROSE = (
    r"<!-- (?P<mark>[\w-]+) -->.*?<!-- /(?P=mark) -->",  # a table generated from JSON
    r"```.*?```",
    r"(?<=\n\n)(?: {4}[^\n]*\n)+",  # commands
    r"`(?:[^`\n]|\n(?!\n))*`",
    r"\]\([^)]*\)",
    r"<img[^>]*>",
    r"\b8[ -]bits?\b|\b3-D\b|arXiv:[\d.]+|Apache-2.0",  # names
)


def main() -> None:
    """Print all problems; exit with an error if there are any."""
    found = [f"{page}: {line}" for page in PAGES for line in (*strays(page), *differing(page))]
    sys.stdout.write("".join(f"{line}\n" for line in found))
    sys.exit(1 if found else 0)


def prose(text: str) -> str:
    """The page with everything but prose replaced by spaces."""
    for pattern in NO_PROSE:
        text = re.sub(
            pattern, lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.DOTALL | re.MULTILINE
        )
    return text


def strays(page: str) -> Iterator[str]:
    """Numbers in the prose without an entry."""
    text = prose((ROOT / page).read_text())
    known = [
        range(m.start(), m.end())
        for entry in entries(page)
        for m in re.finditer(_pattern(entry["says"]), text)
    ]
    for found in NUMERAL.finditer(text):
        if not any(found.start() in place for place in known):
            line = text[: found.start()].count("\n") + 1
            yield f"line {line}: {found[0]} has no source in {SOURCES.name}"


def differing(page: str) -> Iterator[str]:
    """Entries that the page does not contain, or whose source differs."""
    text = prose((ROOT / page).read_text())
    for entry in entries(page):
        if not re.search(_pattern(entry["says"]), text):
            yield f"{entry['says']!r} is not there"
            continue
        content = (ROOT / entry["file"]).read_text()
        if "text" in entry:
            if entry["text"] not in content:
                yield f"{entry['says']!r}: {entry['file']} does not say {entry['text']!r}"
            continue
        shown = [n.replace("−", "-") for n in NUMERAL.findall(entry["says"])]
        tree = json.loads(content)
        own = [_shown(value(tree, key), entry) for key in entry["keys"]]
        if shown != own:
            yield f"{entry['says']!r}: {entry['file']} has {', '.join(own)}"


def entries(page: str) -> list[dict[str, Any]]:
    """The entries of a page."""
    found: Mapping[str, list[dict[str, Any]]] = json.loads(SOURCES.read_text())
    return found.get(page, [])


def value(tree: Any, key: str) -> float:
    """The value at a path such as `a/b/0/c`; KeyError if there is none."""
    for part in key.split("/"):
        tree = tree[int(part)] if isinstance(tree, list) else tree[part]
    return float(tree)


def _shown(number: float, entry: Mapping[str, Any]) -> str:
    return f"{number * entry.get('times', 1):,.{entry.get('digits', 0)}f}"


def _pattern(words: str) -> str:
    """A pattern for the words with any white space between them."""
    return r"\s+".join(re.escape(word) for word in words.split())


if __name__ == "__main__":
    main()
