"""The page of settings, made from `conf/`, the dataclasses that mirror it, and their comments."""

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
from omegaconf import DictConfig, OmegaConf

from sieve.checks import check
from sieve.config import Config
from sieve.conversion import CONF, register_resolvers, to_config
from sieve.docs import comments
from sieve.tasks.judge import JudgeConfig

SWEEPER = (
    CONF.parent / "plugins/hydra_genetic_sweeper/hydra_plugins/hydra_genetic_sweeper/config.py"
)
# The genetic sweeper sets these for its jobs; a user never does.
INTERNAL = ("sweep",)
# Files that explain the keys of a group; the first one that exists counts.
BASES = ("_base.yaml", "default.yaml", "wandb.yaml", "factorized.yaml", "cpu.yaml")
LAUNCHERS = ("slurm", "submitit_local", "ray", "joblib")  # the one with the most keys first
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
    "source": "Calibration text of the experiments",
}
TYPES = {
    "bool": "true or false",
    "int": "whole number",
    "float": "number",
    "str": "text",
    "Any": "text or mapping",
    "None": "null",
    "list[str]": "list of texts",
    "list[float]": "list of numbers",
}


@dataclass(frozen=True)
class Entry:
    """A setting."""

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
    """Group -> its settings; "" is the group of the keys without a group."""
    groups: dict[str, list[Entry]] = {name: [] for name in TITLES}
    defaults: Any = OmegaConf.to_container(_composed("_base"), resolve=False)
    _collect(Config, "", defaults, groups)
    for key, value in defaults["trainer"].items():
        meaning = _comments_of("trainer").get(key, "")
        groups["trainer"].append(Entry(f"trainer.{key}", "", _shown(value), meaning))
    groups["task"] += _judge_entries()
    groups["launcher"] += _launcher_entries()
    groups["hydra.sweeper"] = _sweeper_entries()
    return groups


@cache
def options() -> list[Option]:
    """Every file of every group that a user can choose."""
    return [
        Option(path.parent.name, path.stem, comments.first_sentence(comments.head_of(path)))
        for path in sorted(CONF.glob("*/[!_]*.yaml"))
        if path.parent.name != "hydra"
    ]


def keys() -> set[str]:
    """The keys of all settings."""
    return {entry.key for group in entries().values() for entry in group}


def _collect(settings: type, prefix: str, defaults: Any, groups: dict[str, list[Entry]]) -> None:
    """Add an entry for every field of a dataclass and of the dataclasses in it."""
    described, hints = comments.of_class(settings), get_type_hints(settings)
    for field in fields(settings):
        key, kind, source = prefix + field.name, hints[field.name], described[field.name]
        if key in INTERNAL:
            continue
        if isinstance(kind, type) and is_dataclass(kind):
            _collect(kind, f"{key}.", defaults[field.name], groups)
        elif key != "trainer":
            group = key.partition(".")[0] if "." in key else ""
            in_conf = _comments_of(group).get(key.removeprefix(f"{group}."), "")
            meaning = max(in_conf, source.comment, key=len)
            default = _default(field, defaults.get(field.name))
            groups[group].append(
                Entry(key, _type(source.annotation), default, meaning, allowed(key))
            )


def _judge_entries() -> list[Entry]:
    """The settings of a judge, which have no file in `conf/`."""
    described = comments.of_class(JudgeConfig)
    return [
        Entry(f"task.judge.{field.name}", _type(source.annotation), _default(field), source.comment)
        for field in fields(JudgeConfig)
        for source in [described[field.name]]
    ]


def _launcher_entries() -> list[Entry]:
    """The settings of Hydra's launchers that the presets of `conf/launcher` explain."""
    found: dict[str, Entry] = {}
    for name in LAUNCHERS:
        path = CONF / "launcher" / f"{name}.yaml"
        raw = OmegaConf.load(path)
        for key, meaning in comments.of_yaml(path).items():
            if meaning and key.startswith("hydra.launcher.") and key not in found:
                node, _, last = key.rpartition(".")
                values: Any = OmegaConf.to_container(OmegaConf.select(raw, node), resolve=False)
                meaning = f"With `launcher={name}`: {meaning}"
                found[key] = Entry(key, "", _shown(values[last]), meaning)
    return list(found.values())


def _sweeper_entries() -> list[Entry]:
    """The settings of the sweeper, read from its source, which need not be installed."""
    source = SWEEPER.read_text("utf-8")
    source = source[source.index("@dataclass") : source.index("\n\nConfigStore")]
    empty = {"field(default_factory=list)": "[]", "field(default_factory=dict)": "{}"}
    found = []
    for name, field in comments.of_source(source).items():
        if not name.startswith("_"):
            default = _shown(ast.literal_eval(empty.get(field.default, field.default)))
            entry = Entry(f"hydra.sweeper.{name}", _type(field.annotation), default, field.comment)
            found.append(entry)
    return found


def _composed(task: str) -> DictConfig:
    register_resolvers()
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return compose("config", [f"+task={task}"])


@cache
def _comments_of(group: str) -> dict[str, str]:
    """Key -> its comment in the file of `conf/` that explains a group."""
    if group in ("", "speed"):
        found = comments.of_yaml(CONF / "config.yaml")
        return {key.removeprefix("speed."): meaning for key, meaning in found.items()}
    paths = [CONF / group / name for name in BASES]
    return next((comments.of_yaml(path) for path in paths if path.is_file()), {})


def _default(field: "Field[Any]", composed: object = None) -> str:
    """The default of a setting: what `conf/` composes, else what the dataclass says."""
    value = composed
    if value is None or (isinstance(value, str) and value.startswith("${")):
        value = field.default
        if value is MISSING and field.default_factory is not MISSING:
            value = field.default_factory()
    return "" if value == "???" or value is MISSING else _shown(value)


def _shown(value: object) -> str:
    """A value in the form that the command line takes."""
    if isinstance(value, str):
        return value if value and value == value.strip() else repr(value)
    return json.dumps(value, ensure_ascii=False)


def _type(annotation: str) -> str:
    """A type in words."""
    if annotation.startswith("dict"):
        return "mapping" + " or null" * annotation.endswith("] | None")
    return " or ".join(TYPES.get(part, part) for part in annotation.split(" | "))


@cache
def _valid_config() -> Config:
    return to_config(_composed("sst2"))


@cache
def allowed(key: str) -> tuple[str, ...]:
    """The values that a setting may have; () if any. The error of a wrong value lists them."""
    config = deepcopy(_valid_config())
    *path, name = key.split(".")
    section: Any = config
    for part in path:
        section = getattr(section, part)
    if not isinstance(getattr(section, name), str) or key == "task.name":
        return ()
    setattr(section, name, "?")
    try:
        check(config)
    except ValueError as error:
        listed = re.search(r"expected one of ([\w, ]+)", str(error))
        return tuple(listed[1].split(", ")) if listed else ()
    return ()


def page() -> str:
    """The page in Markdown."""
    parts = [(Path(__file__).parent / "settings_head.md").read_text("utf-8")]
    for group, title in TITLES.items():
        parts.append(f"## {title} {{: #{group or 'run'} }}\n")
        chosen = [option for option in options() if option.group == group]
        if chosen:
            parts.append(_table("+" if group in ("task", "experiment") else "", chosen))
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
    default = f"default <code>{escape(entry.default)}</code>" if entry.default else "must be set"
    facts = [" · ".join(values) or escape(entry.type), default]
    return (
        f"### `{entry.key}` {{: #{entry.key} .setting }}\n\n"
        f'<p class="setting-facts">{"<span>, </span>".join(filter(None, facts))}</p>\n'
        f"<p>{as_html(sentence(entry.meaning))}</p>\n"
    )


def sentence(text: str) -> str:
    """A text with a full stop, and with a capital unless it starts with the name of a value."""
    first = re.split(r"[\s:;,]", text, maxsplit=1)[0]
    if first.isalpha() and first != "null" and not text.startswith(f"{first}:"):
        text = text[0].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def as_html(text: str) -> str:
    """Escaped text, with `code` as code elements."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
