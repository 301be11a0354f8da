"""The page of settings, from `conf/`, the dataclasses that mirror it, and the comments of both."""

import ast
import json
import re
from copy import deepcopy
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, get_type_hints

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sieve.checks import check
from sieve.config import Config
from sieve.conversion import CONF, register_resolvers, to_config
from sieve.docs import comments
from sieve.tasks.judge import JudgeConfig

SWEEPER = (
    CONF.parent / "plugins/hydra_genetic_sweeper/hydra_plugins/hydra_genetic_sweeper/config.py"
)
# Where a group's keys are explained: its first file that is there.
BASES = ("_base.yaml", "default.yaml", "wandb.yaml", "factorized.yaml", "cpu.yaml")
TITLES = {
    "": "One run",
    "task": "Task",
    "model": "Model",
    "calibration": "Calibration",
    "projection": "Projection",
    "search": "Search",
    "recovery": "Recovery",
    "quantization": "Quantization",
    "export": "Export",
    "speed": "Speed",
    "trainer": "Trainer",
    "launcher": "Launcher of a sweep's jobs",
    "logger": "Logger",
    "paths": "Paths",
    "device": "Device of a dry run",
    "hydra.sweeper": "Genetic sweeper",
    "experiment": "Experiments",
    "domain": "Domains",
    "subject": "Subjects of the experiments",
    "method": "Methods of the experiments",
    "source": "What the experiments calibrate on",
}


@dataclass(frozen=True)
class Entry:
    """A setting as the page shows it."""

    key: str
    type: str
    default: str
    meaning: str
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Option:
    """A file of a group, chosen as `group=name`."""

    group: str
    name: str
    meaning: str


@cache
def entries() -> dict[str, list[Entry]]:
    """The settings of every group, by the group's name; "" are those of no group."""
    found: dict[str, list[Entry]] = {name: [] for name in TITLES}
    defaults = _composed()
    _collect(Config, "", defaults, found)
    for key, value in defaults["trainer"].items():
        said = _of_conf("trainer").get(key, "")
        found["trainer"].append(Entry(f"trainer.{key}", "", _shown(value), said))
    found["task"] += _of_judge()
    found["launcher"] += _of_launchers()
    found["hydra.sweeper"] = _of_sweeper()
    return found


@cache
def options() -> list[Option]:
    """Every file of every group that can be chosen."""
    return [
        Option(path.parent.name, path.stem, comments.first_sentence(comments.head_of(path)))
        for path in sorted(CONF.glob("*/[!_]*.yaml"))
        if path.parent.name != "hydra"
    ]


def keys() -> set[str]:
    """All keys that have an entry."""
    return {entry.key for group in entries().values() for entry in group}


def _collect(
    settings: type, prefix: str, defaults: dict[str, Any], found: dict[str, list[Entry]]
) -> None:
    """Entries of a dataclass's fields, and of those of the dataclasses in it."""
    described, hints = comments.of_class(settings), get_type_hints(settings)
    for one in fields(settings):
        key, kind, source = prefix + one.name, hints[one.name], described[one.name]
        if isinstance(kind, type) and is_dataclass(kind):
            _collect(kind, f"{key}.", defaults[one.name], found)
        elif key != "trainer":
            group = key.partition(".")[0] if "." in key else ""
            said = _of_conf(group).get(key.removeprefix(f"{group}."), "")
            meaning = max((said, source.comment), key=len)
            default = _default(one, defaults.get(one.name))
            kind_said = _readable(source.annotation)
            found[group].append(Entry(key, kind_said, default, meaning, allowed(key)))


def _of_judge() -> list[Entry]:
    """Entries of a judge, whose settings have no file of their own."""
    described = comments.of_class(JudgeConfig)
    return [
        Entry(
            f"task.judge.{one.name}", _readable(described[one.name].annotation),
            _default(one, None), described[one.name].comment,
        )
        for one in fields(JudgeConfig)
    ]  # fmt: skip


def _of_launchers() -> list[Entry]:
    """Entries of what the presets of launchers set of Hydra's; the preset with most says it."""
    found: dict[str, Entry] = {}
    for name in ("slurm", "submitit_local", "ray", "joblib"):
        path = CONF / "launcher" / f"{name}.yaml"
        raw = OmegaConf.load(path)
        for key, meaning in comments.of_yaml(path).items():
            if meaning and key.startswith("hydra.launcher.") and key not in found:
                node, _, last = key.rpartition(".")
                held = OmegaConf.to_container(OmegaConf.select(raw, node), resolve=False)
                assert isinstance(held, dict)
                said = f"With `launcher={name}`: {meaning}"
                found[key] = Entry(key, "", _shown(held[last]), said)
    return list(found.values())


def _of_sweeper() -> list[Entry]:
    """Entries of the sweeper, from its source alone; none where it is not beside Sieve."""
    if not SWEEPER.is_file():
        return []
    source = SWEEPER.read_text("utf-8")
    body = source[source.index("@dataclass") : source.index("\n\nConfigStore")]
    empty = {"field(default_factory=list)": "[]", "field(default_factory=dict)": "{}"}
    return [
        Entry(
            f"hydra.sweeper.{name}", _readable(one.annotation),
            _shown(ast.literal_eval(empty.get(one.default, one.default))), one.comment,
        )
        for name, one in comments.of_source(body).items()
        if not name.startswith("_")
    ]  # fmt: skip


@cache
def _composed() -> dict[str, Any]:
    """The defaults of `conf/`, with what every task may set."""
    register_resolvers()
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        held = OmegaConf.to_container(compose("config", ["+task=_base"]), resolve=False)
    assert isinstance(held, dict)
    return {str(key): value for key, value in held.items()}


@cache
def _of_conf(group: str) -> dict[str, str]:
    """Key -> comment of the file that explains a group."""
    if group in ("", "speed"):
        said = comments.of_yaml(CONF / "config.yaml")
        return {key.removeprefix("speed."): meaning for key, meaning in said.items()}
    paths = [CONF / group / name for name in BASES]
    return next((comments.of_yaml(path) for path in paths if path.is_file()), {})


def _default(one: "Field[Any]", composed: Any) -> str:
    """What a setting is when nothing is said."""
    if composed is None and one.default is not MISSING:
        composed = one.default
    elif composed is None and one.default_factory is not MISSING:
        composed = one.default_factory()
    if isinstance(composed, str) and composed.startswith("${"):
        composed = one.default
    return "" if composed == "???" or composed is MISSING else _shown(composed)


def _shown(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, str) and (value != value.strip() or not value):
        return repr(value)
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _readable(annotation: str) -> str:
    """A type in words."""
    words = {
        "bool": "true or false", "int": "whole number", "float": "number", "str": "text",
        "Any": "text or mapping", "None": "null", "list[str]": "list of texts",
        "list[float]": "list of numbers",
    }  # fmt: skip
    if annotation.startswith("dict"):
        return "mapping" + " or null" * annotation.endswith("] | None")
    return " or ".join(words.get(part, part) for part in annotation.split(" | "))


@cache
def _some_run() -> Config:
    """Settings that hold."""
    register_resolvers()
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return to_config(compose("config", ["+task=sst2"]))


@cache
def allowed(key: str) -> tuple[str, ...]:
    """The values that a setting may have, as the check of settings names them; () where any."""
    config = deepcopy(_some_run())
    *path, last = key.split(".")
    held: Any = config
    for part in path:
        held = getattr(held, part)
    if not isinstance(getattr(held, last), str) or last == "name" and path == ["task"]:
        return ()
    setattr(held, last, "?")
    try:
        check(config)
    except ValueError as error:
        said = re.search(r"expected one of ([\w, ]+)", str(error))
        return tuple(said[1].split(", ")) if said else ()
    return ()


def page() -> str:
    """The page in Markdown."""
    intro = (Path(__file__).parent / "settings_head.md").read_text("utf-8")
    parts = [intro]
    for group, title in TITLES.items():
        chosen = [option for option in options() if option.group == group]
        if not entries()[group] and not chosen:
            continue
        parts.append(f"## {title} {{: #{group or 'run'} }}\n")
        if chosen:
            sign = "+" if group in ("task", "experiment") else ""
            parts.append(_table(sign, chosen))
        parts += [_section(entry) for entry in entries()[group]]
    return "\n".join(parts)


def _table(sign: str, chosen: list[Option]) -> str:
    rows = "".join(
        f"<tr><td><code>{sign}{o.group}={o.name}</code></td><td>{as_html(o.meaning)}</td></tr>"
        for o in chosen
    )
    return f'<div class="options"><table><tbody>{rows}</tbody></table></div>\n'


def _section(entry: Entry) -> str:
    values = [f"<code>{escape(_shown(value))}</code>" for value in entry.allowed]
    told = [" · ".join(values) or escape(entry.type)]
    if entry.default:
        told.append(f"default <code>{escape(entry.default)}</code>")
    else:
        told.append("must be given")
    return (
        f"### `{entry.key}` {{: #{entry.key} .setting }}\n\n"
        f'<p class="setting-facts">{"<span>, </span>".join(filter(None, told))}</p>\n'
        f"<p>{as_html(sentence(entry.meaning))}</p>\n"
    )


def sentence(text: str) -> str:
    """With a capital, unless it begins with a name of a value, and a full stop."""
    if not text:
        return ""
    first = text.split(" ", maxsplit=1)[0].rstrip(":;,")
    begins = first.isalpha() and first not in ("null",) and not text[len(first) :].startswith(":")
    text = text[0].upper() + text[1:] if begins else text
    return text if text.endswith((".", "!", "?")) else text + "."


def as_html(text: str) -> str:
    """Text with `code` as HTML."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
