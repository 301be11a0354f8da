"""Pages that stand elsewhere in the repository, brought to the form and the links of the site."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# File or folder of the repository -> page of the site.
PAGES = {
    "experiments/README.md": "results.md",
    "experiments/longer.md": "longer.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "plugins/hydra_genetic_sweeper/README.md": "sweeper.md",
}
ALIASES = {
    "README.md": "index.md",
    "experiments": "results.md",
    "plugins/hydra_genetic_sweeper": "sweeper.md",
} | PAGES
_MARK = re.compile(r"^( *)(\d+\.|[-*+])( +)\S")
_LINK = re.compile(r'(\]\(|\b(?:src|href)=")([^)\s"]+)')


@dataclass(frozen=True)
class Included:
    """A page, and files of the repository that it shows or links to: place on the site -> file."""

    text: str
    files: dict[str, Path]


def include(source: str) -> Included:
    """The page that a Markdown file of the repository makes."""
    files: dict[str, Path] = {}

    def moved(match: re.Match[str]) -> str:
        return match[1] + _target(match[2], source, files)

    text = (ROOT / source).read_text("utf-8")
    return Included(_LINK.sub(moved, nested_by_four(text)), files)


def _target(target: str, source: str, files: dict[str, Path]) -> str:
    """Where a link of a file leads to on the site."""
    if re.match(r"[a-z]+:|#|//", target):
        return target
    path, sharp, anchor = target.partition("#")
    place = os.path.normpath(os.path.join(os.path.dirname(source), path))
    if place in ALIASES:
        return ALIASES[place] + sharp + anchor
    if (ROOT / place).is_file():
        files[f"files/{place}"] = ROOT / place
        return f"files/{place}"
    return target  # The strict build names what leads nowhere.


def nested_by_four(text: str) -> str:
    """Items of lists with what belongs to them four blanks in, as Python-Markdown wants them.

    Elsewhere the width of the item's mark does; and a list needs no empty line before it.
    """
    lines: list[str] = []
    widths: list[int] = []
    fenced = False
    for line in text.splitlines():
        depth, listed = len(line) - len(line.lstrip()), bool(widths)
        if line.strip():
            while widths and depth < widths[-1]:
                widths.pop()
        mark = None if fenced else _MARK.match(line)
        if mark and not listed and lines and lines[-1].strip():
            lines.append("")
        inside = sum(widths[-1:])
        lines.append((" " * 4 * len(widths) + line[inside:]) if line.strip() else "")
        if mark:
            widths.append(len(mark[1] + mark[2] + mark[3]))
        if line.lstrip().startswith("```"):
            fenced = not fenced
    return "\n".join(lines) + "\n"


def answer() -> str:
    """What the README shows a run to end with."""
    text = (ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", text, re.MULTILINE)
    shown = [block for block in blocks if re.search(r"^ +accuracy on test ", block, re.MULTILINE)]
    if len(shown) != 1:
        raise ValueError(
            f"README.md has {len(shown)} blocks with a line 'accuracy on test', expected one."
        )
    lines = [line[4:] for line in shown[0].strip("\n").splitlines()]
    return "```text\n" + "\n".join(lines) + "\n```"
