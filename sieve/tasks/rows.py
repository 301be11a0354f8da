"""Where rows come from: the Hub, a folder of files, or the embedded world.

Nothing here runs code from a data set.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from sieve.runtime.artifacts import hash_files
from sieve.tasks.config import ROLES, TaskConfig
from sieve.tasks.json_rows import Fault, json_rows

Rows = Iterable[dict[str, Any]]  # as often as asked for
MANY = 200_000  # rows of a table that are not held in memory together

_BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
# One split, several customary names.
_SYNONYMS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


def describe_source(config: TaskConfig) -> str:
    """Where the rows come from, in words fit for a report."""
    if config.data_dir is not None:
        return config.data_dir
    if config.almanac is not None:
        kind = config.almanac.get("dataset", "primary")
        return f"almanac/{config.almanac.get('domain')}/{kind}"
    hub = config.hub or {}
    parts = [str(hub.get("path")), hub.get("name"), hub.get("revision")]
    return "@".join(str(part) for part in parts if part)


def read_rows(config: TaskConfig) -> dict[str, tuple[str, Rows]]:
    """Role -> (name of the data set's split, its rows); a role without a split is absent.

    Raises:
        ValueError: no source is set, two roles name one split, or a split is empty or unreadable.
        RuntimeError: the Hub cannot be reached, or refuses.
    """
    if config.data_dir is not None:
        files = _split_files(config, Path(config.data_dir).expanduser())
        names = _resolve_roles(config, config.splits, files)
        splits = {name: _read_file(config, files[name]) for name in names.values()}
    elif config.almanac is not None:
        names = {role: role for role in ROLES}
        splits = {role: _read_almanac(config.almanac, role) for role in ROLES}
    elif config.hub is not None:
        loaded = _load_hub(config)
        wanted = {**config.splits, **(config.hub.get("splits") or {})}
        names = _resolve_roles(config, wanted, loaded)
        splits = {name: _of_hub(config, loaded[name]) for name in names.values()}
    else:
        raise ValueError(
            f"task '{config.name}' has no source of rows, expected one; set task.data_dir to a "
            "folder with train.jsonl, or 'task.hub={path: name_on_the_Hub}'."
        )
    for role, name in names.items():
        if not any(True for _ in splits[name]):
            raise ValueError(
                f"task '{config.name}': the split '{name}' ({role}) of {describe_source(config)} "
                "is empty, expected rows; mend the data or set "
                f"task.splits.{role}."
            )
    return {role: (name, splits[name]) for role, name in names.items()}


def resolve_split(wanted: str, available: Iterable[str]) -> str | None:
    """The available split that is meant by a name, or None; "dev" stands for "validation"."""
    present = list(available)
    if wanted in present:
        return wanted
    group = next((names for names in _SYNONYMS.values() if wanted in names), ())
    return next((name for name in group if name in present), None)


def _resolve_roles(
    config: TaskConfig, wanted: Mapping[str, str | None], available: Iterable[str]
) -> dict[str, str]:
    """Role -> split name for the roles that have one; never one split for two roles."""
    present = list(available)
    names: dict[str, str] = {}
    for role in ROLES:
        split = wanted.get(role)
        name = None if split is None else resolve_split(split, present)
        if name is None:
            continue
        other = next((known for known, taken in names.items() if taken == name), None)
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
            "task.splits.calibration."
        )
    return names


def _split_files(config: TaskConfig, folder: Path) -> dict[str, Path]:
    """Split name -> its file in the folder."""
    if not folder.is_dir():
        raise ValueError(
            f"task '{config.name}': the data folder {folder} does not exist, expected a folder "
            "with train, validation and test as .jsonl, .json, .csv or .parquet; set task.data_dir."
        )
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix not in _BUILDERS or not path.is_file():
            continue
        if path.stem in files:
            raise ValueError(
                f"task '{config.name}': {folder} holds both {files[path.stem].name} and "
                f"{path.name}, expected one file per split; remove one."
            )
        files[path.stem] = path
    if not files:
        raise ValueError(
            f"task '{config.name}': {folder} holds no .jsonl, .json, .csv or .parquet file, "
            "expected train, validation and test; put them there or set task.data_dir."
        )
    return files


def _read_file(config: TaskConfig, path: Path) -> Rows:
    """The rows of one file; tables through `datasets` and its cache. Large ones are read later."""
    with _readable(config, path):
        with path.open("rb") as file:
            if not any(not line.isspace() for line in file):
                return []
        if _BUILDERS[path.suffix] != "json":
            return held(_table(path, config.cache_dir))
        rows = json_rows(path)
        if not isinstance(rows, list) and rows.large:
            return Reread(rows, partial(_readable, config, path))
        return _filled(list(rows))


@contextmanager
def _readable(config: TaskConfig, path: Path) -> Iterator[None]:
    """Turn what goes wrong within the block into a sentence about the file."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ or error
        fault = str(cause).splitlines()[0] if str(cause) else "no message"
        if not isinstance(error, Fault):
            fault = f"{type(cause).__name__}: {fault}"
        raise ValueError(
            f"task '{config.name}': {path} cannot be read ({fault}), expected "
            f"{_expectation(path)}; mend the file."
        ) from error


class Reread:
    """Rows that are read again each time they are asked for, so that few are in memory."""

    def __init__(
        self, rows: Iterable[Any], within: Callable[[], AbstractContextManager[None]] = nullcontext,
        limit: int | None = None,
    ) -> None:  # fmt: skip
        self._rows, self._within, self._limit = rows, within, limit

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self._within():
            for row in islice(self._rows, self._limit):
                yield dict(row)


def held(data: Any) -> Rows:
    """The rows of a table in memory, or where they are many to be read from it again."""
    return Reread(data) if len(data) > MANY else [dict(row) for row in data]


def _filled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the same fields: what one lacks and another has is None in it."""
    fields = dict.fromkeys(field for row in rows for field in row)
    return [{field: row.get(field) for field in fields} for row in rows]


def _table(path: Path, cache_dir: str | None) -> Any:
    from datasets import load_dataset

    # `datasets` knows a local file by its name and time only; the name of the builder's
    # configuration is part of the cache's key too, and carries the content here.
    digest = hash_files([path])
    # An empty cell is empty text and "NA" is a word, not a missing number.
    options = {"keep_default_na": False} if path.suffix == ".csv" else {}
    with _quiet_datasets():
        return load_dataset(
            _BUILDERS[path.suffix],
            name=f"sieve-{digest}",
            data_files={"rows": str(path)},
            split="rows",
            cache_dir=cache_dir,
            **options,
        )


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """No progress bars and no log of errors that are raised anyway, for a moment."""
    import datasets

    verbosity = datasets.logging.get_verbosity()
    bars = datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()


def _expectation(path: Path) -> str:
    if path.suffix == ".jsonl":
        return "one JSON object per line"
    if path.suffix == ".json":
        return "a list of JSON objects"
    return f"a table as {path.suffix[1:]}"


def _load_hub(config: TaskConfig) -> Mapping[str, Any]:
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
            hub["path"], hub.get("name"), revision=hub.get("revision"),
            cache_dir=config.cache_dir, **({"streaming": True} if hub.get("streaming") else {}),
        )  # fmt: skip
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RuntimeError(
            f"task '{config.name}': the data set {describe_source(config)} cannot be had from the "
            f"Hub ({reason.rstrip('.')}), expected access to it; go online, log in with `hf auth "
            "login` if it is gated, or set task.data_dir to a folder with train.jsonl."
        ) from error


def _of_hub(config: TaskConfig, data: Any) -> Rows:
    """Rows of one split; of a stream the first so many, read again each time they are asked for."""
    hub = config.hub or {}
    if hub.get("streaming"):
        return Reread(data, limit=int(hub.get("rows") or MANY))
    return held(data)


def _read_almanac(settings: Mapping[str, Any], role: str) -> Rows:
    from sieve.tasks.almanac import almanac_rows

    return list(almanac_rows(**settings, split=role))
