"""The body of a request: one row or several, within limits; other bodies get an error.

The values of a row are checked when the task renders it.
"""

import json
from dataclasses import dataclass
from typing import NoReturn

from fastapi import HTTPException, Request

from sieve.exports.task_file import TaskFile

Schema = dict[str, object]
MOST_OPTIONS = 26  # as many as the letters that name them
VALUE: Schema = {"type": ["string", "number", "boolean", "array", "null"]}  # null: no value
NOT_NULL: Schema = {"not": {"type": "null"}}
OPTIONS: Schema = {
    "anyOf": [
        {"type": "array", "minItems": 2, "maxItems": MOST_OPTIONS},
        {"type": "object", "minProperties": 2, "maxProperties": MOST_OPTIONS},
    ]
}


@dataclass(frozen=True)
class Limits:
    """The most rows and bytes of one request."""

    rows: int = 256
    body_bytes: int = 1_000_000


def row_keys(task: TaskFile) -> dict[str, list[str]]:
    """For each field of a task, the keys of a row that may contain it."""
    columns = task.columns().items()
    return {name: [path.partition(".")[0] for path in paths] for name, paths in columns}


def request_schema(task: TaskFile, limits: Limits) -> Schema:
    """The OpenAPI request body for rows of a task."""
    fields = row_keys(task).values()
    row: Schema = {
        "type": "object",
        "properties": column_schemas(task),
        "additionalProperties": False,
        "allOf": [
            {"anyOf": [{"required": [key], "properties": {key: NOT_NULL}} for key in keys]}
            for keys in fields
        ],
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


def column_schemas(task: TaskFile) -> dict[str, Schema]:
    """What a column of a row may contain: a text, options, or anything if it is nested."""
    choice = task.config.kind == "multiple_choice"
    schemas: dict[str, Schema] = {}
    for name, paths in task.columns().items():
        for path in paths:
            key, _, nested = path.partition(".")
            lists = choice and name == task.config.options_field
            if nested:
                schemas[key] = {}
            elif lists and path not in task.option_columns():
                schemas.setdefault(key, OPTIONS)
            else:
                schemas.setdefault(key, VALUE)
    return schemas


async def read_rows(request: Request, task: TaskFile, limits: Limits) -> list[dict[str, object]]:
    """The rows in the body of a request; HTTPException if the body is invalid."""
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type != "application/json":
        refuse(415, f"got a body of type {media_type or 'unknown'!r}, expected application/json.")
    body = parse(await read_body(request, limits.body_bytes))
    fields = row_keys(task)
    rows = [body]
    if isinstance(body, dict) and set(body) == {"rows"} and "rows" not in fields:
        rows = body["rows"]
        if not isinstance(rows, list) or not 1 <= len(rows) <= limits.rows:
            got = f"{len(rows)} rows" if isinstance(rows, list) else shown(rows)
            refuse(422, f"got {got} under 'rows', expected a list of 1 to {limits.rows} rows.")
    texts = {key for key, schema in column_schemas(task).items() if schema is VALUE}
    return [checked_row(row, fields, texts, f"row {number}") for number, row in enumerate(rows, 1)]


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


def checked_row(
    row: object, fields: dict[str, list[str]], texts: set[str], where: str
) -> dict[str, object]:
    """The row; HTTPException unless it is an object with only the fields of the task.

    texts: keys that contain no object.
    """
    names = ", ".join(fields)
    if not isinstance(row, dict):
        refuse(422, f"{where} is {shown(row)}, expected an object with the fields {names}.")
    if stray := sorted(set(row) - {key for keys in fields.values() for key in keys}):
        refuse(422, f"{where} has a field {stray[0]!r}, expected {names} and nothing else.")
    if objects := [key for key in texts if isinstance(row.get(key), dict)]:
        refuse(422, f"{where} has an object under {objects[0]!r}, expected text.")
    return row


def shown(value: object) -> str:
    """A value for a message, as JSON of at most 40 characters."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def refuse(status: int, sentence: str) -> NoReturn:
    """End a request with a status and a sentence."""
    raise HTTPException(status, sentence)
