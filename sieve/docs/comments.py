"""The meaning of settings, read from the comments in YAML files."""

import re
from pathlib import Path

_KEY = re.compile(r"^(\s*)([\w.]+):(?:\s|$)")
_COMMENT = re.compile(r"(?:^|\s)#\s?(.*)$")


def of_yaml(path: Path) -> dict[str, str]:
    """Dotted key -> its comment, which stands beside it, on the lines after it, or above it.

    The comment at the head of the file describes the whole file and is left out.
    """
    comments: dict[str, list[str]] = {}
    parents: list[tuple[int, str]] = []  # column and name
    above: list[str] = []
    key, column = "", 0
    for line in path.read_text("utf-8").splitlines()[len(_head(path)) :]:
        comment = _COMMENT.search(line)
        code = line[: comment.start()] if comment else line
        if match := _KEY.match(code):
            column = len(match[1])
            parents = [parent for parent in parents if parent[0] < column] + [(column, match[2])]
            key = ".".join(name for _, name in parents)
            comments[key], above = above, []
        elif comment and not code.strip() and comment.start() <= column:
            above = [*above, comment[1]]
            continue
        if comment and key:
            comments[key].append(comment[1])
    return {key: " ".join(line.strip() for line in lines) for key, lines in comments.items()}


def of_file(path: Path) -> str:
    """The first sentence of the comment at the head of a YAML file, without a command after it."""
    lines = [line.lstrip("#").strip() for line in _head(path) if "@package" not in line]
    text = " ".join(lines[: lines.index("")] if "" in lines else lines)
    first = re.split(r"(?<=[.!?])\s+(?=[A-Z])", text, maxsplit=1)[0]
    return re.split(r":?\s+python -m ", first, maxsplit=1)[0]


def _head(path: Path) -> list[str]:
    lines = path.read_text("utf-8").splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:end]
