"""The meaning of settings, read from the comments in YAML files and dataclasses."""

import ast
import inspect
import io
import re
import textwrap
import tokenize
from dataclasses import dataclass
from pathlib import Path

_KEY = re.compile(r"^(\s*)([\w.]+):(?:\s|$)")
_COMMENT = re.compile(r"(?:^|\s)#\s?(.*)$")
_TITLE = re.compile(r"[A-Z][a-z ]{,24}\.$")  # a comment that is the title of the fields below it


@dataclass(frozen=True)
class Described:
    """A field of a dataclass as its source has it."""

    annotation: str
    default: str
    comment: str


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


def head_of(path: Path) -> str:
    """The comment at the head of a YAML file, up to its first empty line."""
    lines = [line.lstrip("#").strip() for line in _head(path) if "@package" not in line]
    return " ".join(lines[: lines.index("")] if "" in lines else lines)


def _head(path: Path) -> list[str]:
    lines = path.read_text("utf-8").splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:end]


def first_sentence(text: str) -> str:
    """The first sentence of a text, without a command that follows it."""
    first = re.split(r"(?<=[.!?])\s+(?=[A-Z])", text, maxsplit=1)[0]
    return re.split(r":?\s+python -m ", first, maxsplit=1)[0]


def of_class(settings: type) -> dict[str, Described]:
    """The fields of a dataclass, each with the comment beside it and the lines directly above."""
    return of_source(textwrap.dedent(inspect.getsource(settings)))


def of_source(source: str) -> dict[str, Described]:
    """The fields of the dataclass that `source` defines."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    own_line = {n for n, token in comments.items() if not token.line[: token.start[1]].strip()}
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    described = {}
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first = node.lineno
            while first - 1 in own_line:
                first -= 1
            lines = range(first, (node.end_lineno or first) + 1)
            text = _joined([comments[n].string.lstrip("# ") for n in lines if n in comments])
            default = ast.unparse(node.value) if node.value else ""
            described[node.target.id] = Described(ast.unparse(node.annotation), default, text)
    return described


def _joined(lines: list[str]) -> str:
    """Lines of a comment as one text, with a capital after each full stop."""
    if len(lines) > 1 and _TITLE.match(lines[0]):
        lines = lines[1:]
    pairs = zip(["", *lines], lines, strict=False)
    return " ".join(
        line[:1].upper() + line[1:] if before.endswith(".") else line for before, line in pairs
    )
