"""Comments as meanings: those beside keys in YAML, and those beside fields of a dataclass."""

import ast
import inspect
import io
import re
import textwrap
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_KEY = re.compile(r"^(\s*)([\w.]+):(?:\s|$)")
_TITLE = re.compile(r"[A-Z][a-z ]{,24}\.$")  # of the fields that follow
_COMMENT = re.compile(r"(?:^|\s)#\s?(.*)$")


def of_yaml(path: Path) -> dict[str, str]:
    """Dotted key -> its comment: beside it, on lines of their own after it, or before it.

    Comments at the head of the file, which are of the whole, are left out.
    """
    found: dict[str, list[str]] = {}
    parents: list[tuple[int, str]] = []
    before: list[str] = []
    key, column = "", 0
    for line in path.read_text("utf-8").splitlines()[len(_head(path)) :]:
        comment = _COMMENT.search(line)
        code = line[: comment.start()] if comment else line
        if match := _KEY.match(code):
            column = len(match[1])
            parents = [(at, name) for at, name in parents if at < column]
            key = ".".join([*(name for _, name in parents), match[2]])
            parents.append((column, match[2]))
            found[key] = before
            before = []
        elif not code.strip() and comment and comment.start() <= column:
            before = [*before, comment[1]]
            continue
        if comment and key:
            found[key].append(comment[1])
    return {name: " ".join(part.strip() for part in parts) for name, parts in found.items()}


def head_of(path: Path) -> str:
    """What the comment at the head of a YAML file says, up to its first empty line."""
    lines = [line.lstrip("#").strip() for line in _head(path) if "@package" not in line]
    until = lines.index("") if "" in lines else len(lines)
    return " ".join(lines[:until])


def _head(path: Path) -> list[str]:
    lines = path.read_text("utf-8").splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:end]


def first_sentence(text: str) -> str:
    """Up to the first full stop that a new sentence follows, and without a command after it."""
    first = re.split(r"(?<=[.!?])\s+(?=[A-Z])", text, maxsplit=1)[0]
    return re.split(r":?\s+python -m ", first, maxsplit=1)[0]


@dataclass(frozen=True)
class Described:
    """A field of a dataclass as its source has it."""

    annotation: str
    default: str
    comment: str


def of_class(settings: type) -> dict[str, Described]:
    """The fields of a dataclass, each with the comment beside it and those directly above it."""
    return of_source(textwrap.dedent(inspect.getsource(settings)))


def of_source(source: str) -> dict[str, Described]:
    """The same of the source of one class."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    beside = {t.start[0]: t for t in tokens if t.type == tokenize.COMMENT}
    body: Any = ast.parse(source).body[0]
    found = {}
    for node in body.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        first = node.lineno
        while (
            first - 1 in beside and not beside[first - 1].line[: beside[first - 1].start[1]].strip()
        ):
            first -= 1
        lines = range(first, (node.end_lineno or first) + 1)
        said = [beside[line].string.lstrip("#").strip() for line in lines if line in beside]
        if len(said) > 1 and _TITLE.match(said[0]):
            del said[0]
        said = [
            text[:1].upper() + text[1:] if before.endswith(".") else text
            for before, text in zip(["", *said], said, strict=False)
        ]
        default = ast.unparse(node.value) if node.value else ""
        found[node.target.id] = Described(ast.unparse(node.annotation), default, " ".join(said))
    return found
