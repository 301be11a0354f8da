"""Tables of rows: CSV, JSON and Parquet files, read, and written again with more columns."""

import json
from collections.abc import Sequence
from pathlib import Path

from sieve.runtime.artifacts import written_beside
from sieve.tasks.config import TaskConfig
from sieve.tasks.example import Row
from sieve.tasks.json_rows import is_json_list, json_lines, json_list
from sieve.tasks.rows import EXPECTED, read_file, separator_of

Answer = dict[str, object]  # what one row gets
PREDICTED, PROBABILITIES, WRITTEN = "predicted", "probabilities", "written"
NATS = "nats_per_"  # begins the name of a column, which ends with the unit
SCORED = "scored_"  # begins the name of a column with the number of tokens, words or bytes
FLAT = "probability_"  # begins the names of columns of a table that cannot have nested values


def read_table(path: Path, config: TaskConfig) -> list[Row]:
    """The rows of a file, as a run reads them.

    Raises:
        ValueError: the file is missing, empty, unreadable or of another type, or has a column of an
            earlier prediction.
    """
    if path.suffix not in EXPECTED or not path.is_file():
        fault = "does not exist" if not path.exists() else "is no table"
        raise ValueError(f"{path} {fault}, expected a file that ends with {', '.join(EXPECTED)}.")
    rows = list(read_file(config, path))
    if not rows:
        raise ValueError(f"{path} has no rows, expected at least one; add rows.")
    taken = [name for row in rows[:1] for name in row if _is_answer(name)]
    if taken:
        raise ValueError(
            f"{path} has a column {taken[0]!r} already, which the answers would replace; rename "
            "or remove it."
        )
    return rows


def _is_answer(name: str) -> bool:
    return name in (PREDICTED, PROBABILITIES, WRITTEN) or name.startswith((NATS, SCORED, FLAT))


def has_same_labels(config: TaskConfig) -> bool:
    """Whether all rows have the same labels, so that each can have a column of a table."""
    if config.kind == "multiple_choice":
        return config.answer_style == "letter"
    return config.kind == "classification"


def write_table(path: Path, answers: Sequence[Answer], out: Path, same_labels: bool) -> None:
    """Write the rows of `path` with their answers to `out`, whole or not at all.

    Cells keep the text that they have in the file.

    Args:
        same_labels: whether a table gets a column for each label, see `has_same_labels`.
    """
    with written_beside(out) as partial:
        if path.suffix == ".csv":
            _write_csv(path, flat_columns(answers, same_labels), partial)
        elif path.suffix == ".parquet":
            _write_parquet(path, flat_columns(answers, same_labels), partial)
        else:
            _write_json(path, answers, partial)


def flat_columns(answers: Sequence[Answer], same_labels: bool) -> dict[str, list[object]]:
    """The answers as columns of plain values; arguments as for `write_table`."""
    flat = [_flat(answer, same_labels) for answer in answers]
    names = dict.fromkeys(name for row in flat for name in row)
    return {name: [row.get(name) for row in flat] for name in names}


def _flat(answer: Answer, same_labels: bool) -> Answer:
    nested = answer.get(PROBABILITIES)
    if not isinstance(nested, dict):
        return answer
    others = {name: value for name, value in answer.items() if name != PROBABILITIES}
    if not same_labels:
        return others | {PROBABILITIES: json.dumps(nested, ensure_ascii=False)}
    return others | {FLAT + label: value for label, value in nested.items()}


def _write_csv(path: Path, columns: dict[str, list[object]], out: Path) -> None:
    import pandas

    separator = separator_of(path)
    # The reader that runs use, so that it has the same rows, but without numbers.
    table = pandas.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    table.assign(**columns).to_csv(out, sep=separator, index=False)


def _write_parquet(path: Path, columns: dict[str, list[object]], out: Path) -> None:
    from pyarrow import array, parquet

    table = parquet.read_table(path)
    for name, values in columns.items():
        table = table.append_column(name, array(values))
    parquet.write_table(table, out)


def _write_json(path: Path, answers: Sequence[Answer], out: Path) -> None:
    as_list = is_json_list(path)
    rows = json_list(path) if as_list else json_lines(path)
    lines = [
        json.dumps({**row, **answer}, ensure_ascii=False)
        for row, answer in zip(rows, answers, strict=True)
    ]
    text = "[\n" + ",\n".join(lines) + "\n]" if as_list else "\n".join(lines)
    out.write_text(text + "\n", encoding="utf-8")
