"""Where every number of README and of the results page comes from.

    python -m experiments.numbers     # says what is without a source, and what differs from its own

Tables between marks are written from committed JSON, and a test writes them again. Every other
number of the prose has an entry in `numbers.json`: a measured one names a JSON file, the keys of
its numbers in order, and how they are shown; a stated one (a setting, a size) names a file of the
repository and the text there that says it. Commands, names in code type and links are no prose;
numbers in words are not looked for.
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
    r"<!-- (?P<mark>[\w-]+) -->.*?<!-- /(?P=mark) -->",  # a table that is written from JSON
    r"```.*?```",
    r"(?<=\n\n)(?: {4}[^\n]*\n)+",  # commands
    r"`(?:[^`\n]|\n(?!\n))*`",
    r"\]\([^)]*\)",
    r"<img[^>]*>",
    r"\b8[ -]bits?\b|\b3-D\b|arXiv:[\d.]+|Apache-2.0",  # names
)


def main() -> None:
    """Complain, or say nothing."""
    found = [f"{page}: {line}" for page in PAGES for line in (*strays(page), *differing(page))]
    sys.stdout.write("".join(f"{line}\n" for line in found))
    sys.exit(1 if found else 0)


def prose(text: str) -> str:
    """A page with what is no prose blanked, place by place."""
    for pattern in NO_PROSE:
        text = re.sub(
            pattern, lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.DOTALL | re.MULTILINE
        )
    return text


def strays(page: str) -> Iterator[str]:
    """Numbers of a page's prose that no entry has."""
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
    """Entries of a page that it does not have, or whose source says something else."""
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
    """The sources of a page's numbers."""
    found: Mapping[str, list[dict[str, Any]]] = json.loads(SOURCES.read_text())
    return found.get(page, [])


def value(tree: Any, key: str) -> float:
    """What stands under a key, `a/b/0/c`; KeyError where nothing does."""
    for part in key.split("/"):
        tree = tree[int(part)] if isinstance(tree, list) else tree[part]
    return float(tree)


def _shown(number: float, entry: Mapping[str, Any]) -> str:
    return f"{number * entry.get('times', 1):,.{entry.get('digits', 0)}f}"


def _pattern(words: str) -> str:
    """The words with any white space between them."""
    return r"\s+".join(re.escape(word) for word in words.split())


if __name__ == "__main__":
    main()
