"""Pages of the site that stand elsewhere in the repository, with lists and links adapted."""

import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
# File of the repository -> page of the site.
PAGES = {
    "experiments/README.md": "results.md",
    "experiments/longer.md": "longer.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "plugins/hydra_genetic_sweeper/README.md": "sweeper.md",
}
# Target of a link -> page of the site.
ALIASES = {
    "README.md": "index.md",
    "experiments": "results.md",
    "plugins/hydra_genetic_sweeper": "sweeper.md",
} | PAGES
_LIST_MARK = re.compile(r"^( *)(\d+\.|[-*+])( +)\S")
_LINK = re.compile(r'(\]\(|\b(?:src|href)=")([^)\s"]+)')


def include(source: str) -> tuple[str, dict[str, Path]]:
    """A Markdown file of the repository as a page, and its files: path on the site -> file."""
    files: dict[str, Path] = {}

    def redirect(match: re.Match[str]) -> str:
        return match[1] + link_target(match[2], source, files)

    text = (ROOT / source).read_text("utf-8")
    return _LINK.sub(redirect, nest_by_four(text)), files


def link_target(target: str, source: str, files: dict[str, Path]) -> str:
    """The target on the site of a link in the file `source`; adds a linked file to `files`."""
    if re.match(r"[a-z]+:|#|//", target):
        return target
    path, hash_sign, anchor = target.partition("#")
    path = os.path.normpath(os.path.join(os.path.dirname(source), path))
    if path in ALIASES:
        return ALIASES[path] + hash_sign + anchor
    if (ROOT / path).is_file():
        files[f"files/{path}"] = ROOT / path
        return f"files/{path}"
    return target  # the strict build reports a broken link


def nest_by_four(text: str) -> str:
    """Indent the content of list items by four spaces, and put an empty line before each list.

    Python-Markdown needs both; GitHub needs only the width of the item's mark.
    """
    lines: list[str] = []
    widths: list[int] = []  # of the marks of the open items, outermost first
    fenced = False
    for line in text.splitlines():
        indent, in_list = len(line) - len(line.lstrip()), bool(widths)
        while line.strip() and widths and indent < widths[-1]:
            widths.pop()
        mark = None if fenced else _LIST_MARK.match(line)
        if mark and not in_list and lines and lines[-1].strip():
            lines.append("")
        lines.append(" " * 4 * len(widths) + line[sum(widths[-1:]) :] if line.strip() else "")
        if mark:
            widths.append(len(mark[1] + mark[2] + mark[3]))
        fenced ^= line.lstrip().startswith("```")
    return "\n".join(lines) + "\n"


def answer() -> str:
    """The example answer of a run, as the README shows it."""
    text = (ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", text, re.MULTILINE)
    answers = [block for block in blocks if re.search(r"^ +accuracy on test ", block, re.MULTILINE)]
    if len(answers) != 1:
        raise ValueError(
            f"README.md has {len(answers)} indented blocks with a line 'accuracy on test', "
            "expected one."
        )
    lines = [line[4:] for line in answers[0].strip("\n").splitlines()]
    return "\n".join(["```text", *lines, "```"])
