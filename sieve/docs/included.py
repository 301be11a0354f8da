"""Pages of the site that stand elsewhere in the repository, with links adapted."""

import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
# File of the repository -> page of the site.
PAGES = {
    "experiments/README.md": "results.md",
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
_LINK = re.compile(r'(\]\(|\b(?:src|href)=")([^)\s"]+)')


def include(source: str) -> tuple[str, dict[str, Path]]:
    """A Markdown file of the repository as a page, and its files: path on the site -> file."""
    files: dict[str, Path] = {}

    def redirect(match: re.Match[str]) -> str:
        return match[1] + link_target(match[2], source, files)

    text = (ROOT / source).read_text("utf-8")
    return _LINK.sub(redirect, text), files


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


def answer() -> str:
    """The example answer of a run, as the README shows it between its markers."""
    text = (ROOT / "README.md").read_text("utf-8")
    block = text.partition("<!-- demo -->")[2].partition("<!-- /demo -->")[0]
    lines = [line[4:] for line in block.strip("\n").splitlines()]
    return "\n".join(["```text", *lines, "```"])
