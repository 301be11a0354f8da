"""Where rows come from: the Hub, a folder of files, or the embedded world.

No code of a data set is run.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sieve.runtime.artifacts import hash_files
from sieve.tasks.config import ROLES, UNLABELLED, TaskConfig
from sieve.tasks.example import Row
from sieve.tasks.json_rows import InvalidJson, is_json_list, json_lines, json_list

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

MANY_ROWS = 200_000  # a larger table is not held in memory
LARGE_BYTES = 2**25  # nor is a larger file of JSON lines

# What to do with a file of another kind, and with a file that cannot be read.
REPLACEMENTS = {
    ".tsv": "rename it to .csv, whose separator is found.",
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save it as CSV in UTF-8."),
}
HINTS = {
    "UnicodeDecodeError": "save it as UTF-8.",
    "EOF inside string": "close the quote.",
    "ParserError": "put texts that contain the separator in quotes.",
}
EXPECTED = {
    ".jsonl": "one JSON object per line",
    ".json": "a list of JSON objects",
    ".csv": "a table as csv in UTF-8",
    ".parquet": "a table as parquet",
}
_SYNONYMS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


class SourceSplit(NamedTuple):
    """A split of the data set: a list of rows if it is small, else rows read on each iteration."""

    name: str
    rows: Iterable[Row]


class RereadRows:
    """Rows that are read anew on each iteration, so that few are in memory."""

    def __init__(self, read: Callable[[], Iterator[Row]]) -> None:
        self._read = read

    def __iter__(self) -> Iterator[Row]:
        return self._read()


def describe_source(config: TaskConfig) -> str:
    """Where the rows come from, for a report."""
    if config.data_dir is not None:
        return config.data_dir
    if config.almanac is not None:
        return f"almanac/{config.almanac.get('domain')}/{config.almanac.get('dataset', 'primary')}"
    hub = config.hub or {}
    return "@".join(str(hub[key]) for key in ("path", "name", "revision") if hub.get(key))


def read_rows(config: TaskConfig) -> dict[str, SourceSplit]:
    """Role -> split; a role without a split is absent.

    Raises:
        ValueError: no source is set, two roles name one split, or a split is empty or unreadable.
        RuntimeError: the Hub cannot be reached, or refuses access.
    """
    if config.data_dir is not None:
        files = _split_files(config, Path(config.data_dir).expanduser())
        whole = Path(config.data_dir).expanduser().is_file()  # The other splits are carved out.
        wanted = {"calibration": next(iter(files))} if whole else config.splits
        names = _resolve_roles(config, wanted, files)
        splits = {name: read_file(config, files[name]) for name in names.values()}
    elif config.almanac is not None:
        from sieve.tasks.almanac import almanac_rows

        names = {role: role for role in ROLES}
        splits = {role: list(almanac_rows(**config.almanac, split=role)) for role in ROLES}
    elif config.hub is not None:
        loaded = _load_hub(config)
        wanted = {**config.splits, **(config.hub.get("splits") or {})}
        names = _resolve_roles(config, wanted, loaded)
        splits = {name: _hub_rows(config, loaded[name]) for name in names.values()}
    else:
        raise ValueError(
            f"task '{config.name}' has no source of rows, expected one; set task.data_dir to a "
            "folder with train.jsonl, or 'task.hub={path: name_on_the_Hub}'."
        )
    for role, name in names.items():
        if not any(True for _ in splits[name]):
            raise ValueError(
                f"task '{config.name}': the split '{name}' ({role}) of {describe_source(config)} "
                f"has no rows, expected some; add rows or set task.splits.{role}."
            )
    return {role: SourceSplit(name, splits[name]) for role, name in names.items()}


def read_unlabelled(config: TaskConfig) -> SourceSplit | None:
    """The rows of `unlabelled` beside the splits of `task.data_dir`; None if there is no such file.

    Raises:
        ValueError: the file is empty or unreadable.
    """
    if config.data_dir is None or UNLABELLED in config.splits.values():
        return None
    folder = Path(config.data_dir).expanduser()
    path = _split_files(config, folder).get(UNLABELLED)
    if path is None or folder.is_file():
        return None
    rows = read_file(config, path)
    if not any(True for _ in rows):
        raise ValueError(
            f"task '{config.name}': {path} is empty, expected rows without labels; add rows or "
            "delete the file."
        )
    return SourceSplit(path.name, rows)


def resolve_split(wanted: str, available: Iterable[str]) -> str | None:
    """The available split of this name or a synonym ("dev" for "validation"), or None."""
    present = list(available)
    synonyms = next((names for names in _SYNONYMS.values() if wanted in names), ())
    return next((name for name in (wanted, *synonyms) if name in present), None)


def _resolve_roles(
    config: TaskConfig, wanted: Mapping[str, str | None], available: Iterable[str]
) -> dict[str, str]:
    """Role -> split name for the roles that have one; two roles never have the same split."""
    present = list(available)
    names: dict[str, str] = {}
    for role in ROLES:
        split = wanted.get(role)
        name = None if split is None else resolve_split(split, present)
        if name is None:
            continue
        other = next((other for other, taken in names.items() if taken == name), None)
        if other is not None:
            raise ValueError(
                f"task '{config.name}': the roles {other} and {role} both name the split '{name}', "
                f"expected different rows; set task.splits.{role}=null to carve it out of the "
                "calibration split."
            )
        names[role] = name
    if "calibration" not in names:
        raise ValueError(
            f"task '{config.name}': the calibration split '{wanted.get('calibration')}' is not in "
            f"{describe_source(config)}, which has {', '.join(present) or 'no split'}; set "
            f"task.splits.calibration{'=' + present[0] if len(present) == 1 else ''}."
        )
    return names


def _split_files(config: TaskConfig, folder: Path) -> dict[str, Path]:
    """Split name -> its file in the folder; `folder` may be a file itself."""
    if folder.is_file() and folder.suffix in EXPECTED:
        return {folder.stem: folder}
    if not folder.is_dir():
        fault = "is no data file" if folder.exists() else "does not exist"
        advice = "set task.data_dir."
        if folder.exists():
            advice = REPLACEMENTS.get(folder.suffix.lower(), advice)
        raise ValueError(
            f"task '{config.name}': {folder} {fault}, expected a folder with train, validation and "
            f"test as .jsonl, .json, .csv or .parquet, or one such file; {advice}"
        )
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix not in EXPECTED or not path.is_file():
            continue
        if path.stem in files:
            raise ValueError(
                f"task '{config.name}': {folder} has both {files[path.stem].name} and "
                f"{path.name}, expected one file per split; remove one."
            )
        files[path.stem] = path
    if not files:
        raise ValueError(
            f"task '{config.name}': {folder} has no .jsonl, .json, .csv or .parquet file, "
            "expected train, validation and test; put them there or set task.data_dir."
        )
    return files


def read_file(config: TaskConfig, path: Path) -> Iterable[Row]:
    """The rows of one file; none if it is empty. ValueError if it cannot be read.

    path: with an extension of `EXPECTED`.
    """
    with _explain_errors(config, path):
        with path.open("rb") as file:
            lines = islice((line for line in file if not line.isspace()), 2)
            if len(list(lines)) < (2 if path.suffix == ".csv" else 1):  # Nothing, or a header.
                return []
        if path.suffix in (".csv", ".parquet"):
            return _table_rows(_load_table(path, config.cache_dir))
        if is_json_list(path):
            return _with_all_columns(json_list(path))
        if path.stat().st_size > LARGE_BYTES:
            return RereadRows(partial(_reread_lines, config, path))
        return _with_all_columns(list(json_lines(path)))


def _reread_lines(config: TaskConfig, path: Path) -> Iterator[Row]:
    with _explain_errors(config, path):
        yield from json_lines(path)


@contextmanager
def _explain_errors(config: TaskConfig, path: Path) -> Iterator[None]:
    """Turn any error of the block into one sentence about the file."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ or error
        reason = str(cause).splitlines()[0] if str(cause) else "no message"
        if not isinstance(error, InvalidJson):
            reason = f"{type(cause).__name__}: {reason}"
        hints = (hint for kind, hint in HINTS.items() if kind in reason)
        advice = next(hints, "correct the file.")
        raise ValueError(
            f"task '{config.name}': {path} cannot be read ({reason}), expected "
            f"{EXPECTED[path.suffix]}; {advice}"
        ) from error


def _with_all_columns(rows: list[Row]) -> list[Row]:
    """Rows that all have the same columns; a missing value is None."""
    columns = dict.fromkeys(column for row in rows for column in row)
    return [{column: row.get(column) for column in columns} for row in rows]


def _table_rows(table: Dataset) -> Iterable[Row]:
    if len(table) > MANY_ROWS:
        return RereadRows(partial(iter, table))
    return [dict(row) for row in table]


def _load_table(path: Path, cache_dir: str | None) -> Dataset:
    import datasets

    # `datasets` knows a local file only by its name and time. The name of the configuration is
    # part of its cache key, so it carries the hash of the content.
    digest = hash_files([path])
    # An empty cell is empty text and "NA" is a word, not a missing number.
    options = {}
    if path.suffix == ".csv":
        options = {"keep_default_na": False, "sep": separator_of(path)}
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # Errors are raised anyway.
    return datasets.load_dataset(
        path.suffix[1:],
        name=f"sieve-{digest}",
        data_files={"rows": str(path)},
        split="rows",
        cache_dir=cache_dir,
        **options,
    )


def separator_of(path: Path) -> str:
    """The character that separates most columns in the header of a CSV file."""
    with path.open(encoding="utf-8-sig") as file:
        header = file.readline()
    return max(",;\t|", key=lambda sign: len(next(csv.reader([header], delimiter=sign))))


def _load_hub(config: TaskConfig) -> DatasetDict:
    """All splits of the Hub data set."""
    from datasets import load_dataset

    hub = config.hub or {}
    if not hub.get("path"):
        raise ValueError(
            f"task '{config.name}': task.hub has no path, expected the name of a data set on the "
            "Hub; set ++task.hub.path=name or task.data_dir=folder."
        )
    try:
        return load_dataset(
            hub["path"],
            hub.get("name"),
            revision=hub.get("revision"),
            cache_dir=config.cache_dir,
            **({"streaming": True} if hub.get("streaming") else {}),
        )
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise RuntimeError(
            f"task '{config.name}': the data set {describe_source(config)} cannot be loaded from "
            f"the Hub ({reason}), expected access to it; go online, log in with `hf auth login` if "
            "it is gated, or set task.data_dir to a folder with train.jsonl."
        ) from error


def _hub_rows(config: TaskConfig, split: Dataset) -> Iterable[Row]:
    """All rows of a split, or the first `task.hub.rows` of a stream."""
    hub = config.hub or {}
    if not hub.get("streaming"):
        return _table_rows(split)
    return RereadRows(lambda: islice(split, int(hub.get("rows") or MANY_ROWS)))
