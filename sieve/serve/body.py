"""The body of a request: one row or several, within limits; anything else gets a sentence."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from fastapi import HTTPException, Request

from sieve.exports.task_file import TaskFile

Schema = dict[str, object]
MAX_OPTIONS = 26


@dataclass(frozen=True)
class Limits:
    """The most rows and bytes of one request."""

    rows: int = 256
    body_bytes: int = 1_000_000


class Kind(NamedTuple):
    """What a value of a row must be."""

    schema: Schema
    accepts: Callable[[object], bool]
    expected: str  # for messages


def is_scalar(value: object) -> bool:
    """Whether a value is text, or has one way to be written as text."""
    return isinstance(value, str | int | float)


def are_options(value: object) -> bool:
    """Whether a value is several texts that are not blank, by letter or in a list."""
    options = list(value.values()) if isinstance(value, Mapping) else value
    if not isinstance(options, list) or not 2 <= len(options) <= MAX_OPTIONS:
        return False
    return all(is_scalar(option) and str(option).strip() for option in options)


SCALAR: Schema = {"type": ["string", "number", "boolean"]}
NOT_BLANK = SCALAR | {"pattern": r"\S"}
OPTIONS: Schema = {
    "anyOf": [
        {
            "type": "object",
            "additionalProperties": NOT_BLANK,
            "minProperties": 2,
            "maxProperties": MAX_OPTIONS,
        },
        {"type": "array", "items": NOT_BLANK, "minItems": 2, "maxItems": MAX_OPTIONS},
    ]
}
TEXT_KIND = Kind(SCALAR, is_scalar, "text")
OPTIONS_KIND = Kind(
    OPTIONS, are_options, "2 to 26 options, as an object from letter to text or a list of texts"
)
NESTED_KIND = Kind({}, lambda _: True, "")  # The task reads a column inside of it.


def row_keys(task: TaskFile) -> dict[str, dict[str, Kind]]:
    """For each field of a task the keys of a row that may contain it, with their kinds."""
    fields: dict[str, dict[str, Kind]] = {}
    options = task.config.options_field if task.config.kind == "multiple_choice" else None
    for name, paths in task.columns().items():
        keys = fields[name] = {}
        for path in paths:
            key, _, nested = path.partition(".")
            if nested:
                keys[key] = NESTED_KIND
            elif name == options and path not in task.option_columns():
                keys.setdefault(key, OPTIONS_KIND)
            else:
                keys.setdefault(key, TEXT_KIND)
    return fields


def request_schema(task: TaskFile, limits: Limits) -> Schema:
    """The OpenAPI request body for rows of a task."""
    fields = row_keys(task).values()
    row: Schema = {
        "type": "object",
        "properties": {key: kind.schema for keys in fields for key, kind in keys.items()},
        "additionalProperties": False,
        "allOf": [{"anyOf": [{"required": [key]} for key in keys]} for keys in fields],
    }
    rows = {"type": "array", "items": row, "minItems": 1, "maxItems": limits.rows}
    several: Schema = {
        "type": "object",
        "properties": {"rows": rows},
        "required": ["rows"],
        "additionalProperties": False,
    }
    schema = {"anyOf": [row, several]}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


async def read_rows(request: Request, task: TaskFile, limits: Limits) -> list[dict[str, object]]:
    """The rows in the body of a request; HTTPException if the body is invalid."""
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type != "application/json":
        refuse(415, f"got a body of type {media_type or 'unknown'!r}, expected application/json.")
    body = parse(await read_body(request, limits.body_bytes))
    fields = row_keys(task)
    if not isinstance(body, dict) or set(body) != {"rows"} or "rows" in fields:
        return [checked_row(body, fields, "row 1")]
    rows = body["rows"]
    if not isinstance(rows, list) or not 1 <= len(rows) <= limits.rows:
        got = f"{len(rows)} rows" if isinstance(rows, list) else shown(rows)
        refuse(422, f"got {got} under 'rows', expected a list of 1 to {limits.rows} rows.")
    return [checked_row(row, fields, f"row {number}") for number, row in enumerate(rows, 1)]


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body; HTTPException as soon as it exceeds `limit` bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            refuse(413, f"got a body of {len(body):,} bytes or more, expected at most {limit:,}.")
    return bytes(body)


def parse(body: bytes) -> object:
    """Parse JSON without NaN and Infinity, which are not part of it; HTTPException on failure."""

    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not a number in JSON")

    try:
        value: object = json.loads(body, parse_constant=refuse_constant)
        # Refuses half a character, which JSON can escape, and 1e999, which is infinite.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        refuse(400, f"the body is not JSON ({reason}); send a row as a JSON object.")
    return value


def checked_row(row: object, fields: dict[str, dict[str, Kind]], where: str) -> dict[str, object]:
    """The row; HTTPException unless it has exactly the fields of the task, of their kinds."""
    names = ", ".join(fields)
    if not isinstance(row, dict):
        refuse(422, f"{where} is {shown(row)}, expected an object with the fields {names}.")
    if stray := sorted(set(row) - {key for keys in fields.values() for key in keys}):
        refuse(422, f"{where} has a field {stray[0]!r}, expected {names} and nothing else.")
    for name, keys in fields.items():
        if not keys.keys() & row.keys():
            present = ", ".join(row) or "nothing"
            refuse(422, f"{where} has no field {name!r}, expected {names}; it has {present}.")
        for key, kind in keys.items():
            if key in row and not kind.accepts(row[key]):
                got = f"the field {key!r} of {where} is {shown(row[key])}"
                refuse(422, f"{got}, expected {kind.expected}.")
    return row


def shown(value: object) -> str:
    """The kind of a value for a message, and the value itself if it is short."""
    kinds = {dict: "an object", list: "a list", type(None): "null", str: "text", bool: "a boolean"}
    text = json.dumps(value)
    name = kinds.get(type(value), "a number")
    return f"{name} {text}" if len(text) <= 40 and value is not None else name


def refuse(status: int, sentence: str) -> NoReturn:
    """End a request with a status and a sentence."""
    raise HTTPException(status, sentence)
