"""What a request may bring: one row or many, within limits; a sentence for everything else."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from fastapi import HTTPException, Request

from sieve.exports.task_file import TaskFile

SCALAR: dict[str, Any] = {"type": ["string", "number", "boolean"]}
WORDS: dict[str, Any] = SCALAR | {"pattern": r"\S"}  # not blank, where it is text
MOST_OPTIONS = 26
OPTIONS: dict[str, Any] = {
    "anyOf": [
        {
            "type": "object", "additionalProperties": WORDS, "minProperties": 2,
            "maxProperties": MOST_OPTIONS,
        },
        {"type": "array", "items": WORDS, "minItems": 2, "maxItems": MOST_OPTIONS},
    ]
}  # fmt: skip

SOME_OPTIONS = "2 to 26 options, as an object from letter to text or a list of texts"


@dataclass(frozen=True)
class Limits:
    """What one request may be."""

    rows: int = 256
    body_bytes: int = 1_000_000


def request_schema(task: TaskFile, limits: Limits) -> dict[str, Any]:
    """The OpenAPI request body of a task's rows."""
    row = row_schema(task)
    rows = {"type": "array", "items": row, "minItems": 1, "maxItems": limits.rows}
    many = {
        "type": "object", "properties": {"rows": rows}, "required": ["rows"],
        "additionalProperties": False,
    }  # fmt: skip
    return {"required": True, "content": {"application/json": {"schema": {"anyOf": [row, many]}}}}


def row_schema(task: TaskFile) -> dict[str, Any]:
    """The JSON schema of one row: each field in one of its columns."""
    columns = task.columns()
    options = task.config.options_field if task.config.kind == "multiple_choice" else None
    properties: dict[str, Any] = {}
    for name, paths in columns.items():
        for path in paths:
            is_options = name == options and path not in task.option_columns()
            whole = {} if "." in path else OPTIONS if is_options else SCALAR
            properties.setdefault(path.split(".")[0], whole)
    required = [{"anyOf": [{"required": [p.split(".")[0]]} for p in v]} for v in columns.values()]
    return {
        "type": "object", "properties": properties, "additionalProperties": False,
        "allOf": required,
    }  # fmt: skip


async def read_rows(request: Request, task: TaskFile, limits: Limits) -> list[dict[str, Any]]:
    """The rows of a request's body; HTTPException with a sentence where it does not hold."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        refuse(415, f"got a body of type {kind or 'unknown'!r}, expected application/json.")
    body = parse(await read_body(request, limits.body_bytes))
    if isinstance(body, dict) and set(body) == {"rows"} and "rows" not in task.columns():
        rows = body["rows"]
        if not isinstance(rows, list) or not 1 <= len(rows) <= limits.rows:
            got = f"{len(rows)} rows" if isinstance(rows, list) else shown(rows)
            refuse(422, f"got {got} under 'rows', expected a list of 1 to {limits.rows} rows.")
    else:
        rows = [body]
    for number, row in enumerate(rows, 1):
        check_row(row, task, f"row {number}")
    return rows


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body; refused as soon as it is known to be too large."""
    said = request.headers.get("content-length", "")
    parts, size = [], int(said) if said.isdecimal() else 0
    if size <= limit:
        size = 0
        async for part in request.stream():
            parts.append(part)
            size += len(part)
            if size > limit:
                break
    if size > limit:
        refuse(413, f"got a body of {size:,} bytes or more, expected at most {limit:,}.")
    return b"".join(parts)


def parse(body: bytes) -> Any:
    """JSON without NaN and Infinity, which it does not have."""

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no number of JSON")

    try:
        value = json.loads(body, parse_constant=constant)
        # Half a character may be escaped in JSON, and 1e999 is infinite.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        refuse(400, f"the body is not JSON ({reason}); send a row as a JSON object.")
    return value


def check_row(row: Any, task: TaskFile, where: str) -> None:
    """HTTPException unless a row has the fields of the task, nothing else, and text in them."""
    columns = task.columns()
    listed = ", ".join(columns)
    if not isinstance(row, dict):
        refuse(422, f"{where} is {shown(row)}, expected an object with the fields {listed}.")
    known = {path.split(".")[0] for paths in columns.values() for path in paths}
    if stray := sorted(set(row) - known):
        refuse(422, f"{where} has a field {stray[0]!r}, expected {listed} and nothing else.")
    for name, paths in columns.items():
        nested = {path.split(".")[0] for path in paths if "." in path}
        heads = dict.fromkeys(path.split(".")[0] for path in paths)
        present = [head for head in heads if head in row]
        if not present:
            has = ", ".join(row) or "nothing"
            refuse(422, f"{where} has no field {name!r}, expected {listed}; it has {has}.")
        options = task.config.options_field if task.config.kind == "multiple_choice" else None
        for head in present:
            holds, expected = is_scalar, "text"
            if name == options and head not in task.option_columns():
                holds, expected = are_options, SOME_OPTIONS
            if head not in nested and not holds(row[head]):
                got = shown(row[head])
                refuse(422, f"the field {head!r} of {where} is {got}, expected {expected}.")


def are_options(value: Any) -> bool:
    """Some texts that are not blank, by letter or in a list."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list) or not 2 <= len(value) <= MOST_OPTIONS:
        return False
    return all(is_scalar(one) and str(one).strip() for one in value)


def is_scalar(value: Any) -> bool:
    """Text, or what has one way to be written as text."""
    return isinstance(value, str | int | float)


def shown(value: Any) -> str:
    """A value as a message shows it: its kind, and itself where it is short."""
    kinds = {dict: "an object", list: "a list", type(None): "null", str: "text", bool: "a boolean"}
    text = json.dumps(value)
    name = kinds.get(type(value), "a number")
    return f"{name} {text}" if len(text) <= 40 and value is not None else name


def refuse(status: int, sentence: str) -> NoReturn:
    """End a request with a sentence."""
    raise HTTPException(status, sentence)
