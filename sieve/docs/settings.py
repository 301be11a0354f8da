"""The pages of settings, made from the files of `conf/` and their comments.

Each group has a page of its own, and `settings.md` lists the pages.
"""

import json
import re
from dataclasses import dataclass
from functools import cache, reduce
from html import escape
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sieve.conversion import CONF, register_resolvers
from sieve.docs import comments

# Files that explain the keys of a group; the first one that exists counts.
BASES = "config.yaml _base.yaml default.yaml wandb.yaml factorized.yaml cpu.yaml".split()
SWEEPER = """# Settings: genetic sweeper {: #hydra.sweeper }

The settings under `hydra.sweeper` of `search=genetic`: see the comments in the source below.

::: hydra_plugins.hydra_genetic_sweeper.config.GeneticSweeperConf
    options: {heading_level: 2, show_source: true}
"""
LAUNCHERS = ("slurm", "submitit_local", "ray", "joblib")  # the one with the most keys first
TITLES = {
    "": "One run",
    "task": "Task",
    "model": "Model",
    "calibration": "Calibration",
    "projection": "Projection",
    "search": "Search",
    "recovery": "Recovery",
    "vocabulary": "Vocabulary",
    "quantization": "Quantization",
    "export": "Export",
    "trainer": "Trainer",
    "launcher": "Launcher of a sweep's jobs",
    "logger": "Logger",
    "paths": "Paths",
    "device": "Device of a dry run",
    "experiment": "Experiments",
    "domain": "Domains",
    "subject": "Subjects of the experiments",
    "method": "Methods of the experiments",
    "source": "Calibration text of the experiments",
}


@dataclass(frozen=True)
class Entry:
    """A setting."""

    key: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Option:
    """A file of a group, chosen as `group=name`."""

    group: str
    name: str
    meaning: str


@cache
def entries() -> dict[str, list[Entry]]:
    """Group -> its settings that have a comment; "" is the group of the keys without a group."""
    register_resolvers()
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        defaults = OmegaConf.to_container(compose("config", ["+task=_base"]), resolve=False)
    groups = {}
    for group in TITLES:
        files = [path for name in BASES if (path := CONF / group / name).is_file()]
        prefix = f"{group}." if group else ""
        meanings = comments.of_yaml(files[0]) if files else {}
        commented = {f"{prefix}{key}": meaning for key, meaning in meanings.items() if meaning}
        groups[group] = [
            Entry(key, _value(defaults, key), meaning) for key, meaning in commented.items()
        ]
    groups["launcher"] += _launcher_entries()
    return groups


def _launcher_entries() -> list[Entry]:
    """The settings of Hydra's launchers that the presets of `conf/launcher` explain."""
    explained: dict[str, Entry] = {}
    for name in LAUNCHERS:
        path = CONF / "launcher" / f"{name}.yaml"
        preset = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        for key, comment in comments.of_yaml(path).items():
            if comment and key.startswith("hydra.launcher."):
                entry = Entry(key, _value(preset, key), f"With `launcher={name}`: {comment}")
                explained.setdefault(key, entry)
    return list(explained.values())


def _value(settings: Any, key: str) -> str:
    """The text of the value under a dotted key; "" if it must be set."""
    value = reduce(lambda node, name: node[name], key.split("."), settings)
    return "" if value == "???" else _shown(value)


@cache
def options() -> list[Option]:
    """Every file of every group that a user can choose."""
    return [
        Option(path.parent.name, path.stem, comments.of_file(path))
        for path in sorted(CONF.glob("*/[!_]*.yaml"))
        if path.parent.name != "hydra"
    ]


def keys() -> set[str]:
    """The keys of all settings."""
    return {entry.key for group in entries().values() for entry in group}


def _shown(value: object) -> str:
    """A value in the form that the command line takes."""
    if isinstance(value, str):
        return value if value and value == value.strip() else repr(value)
    return json.dumps(value, ensure_ascii=False)


def pages() -> dict[str, str]:
    """The path of each page on the site, and the page in Markdown."""
    texts = {"settings.md": _overview(), "settings/sweeper.md": SWEEPER}
    return texts | {_path(group): _page(group, title) for group, title in TITLES.items()}


def page_of(key: str) -> str:
    """The path of the page that explains a setting."""
    return next(_path(g) for g, own in entries().items() if key in {entry.key for entry in own})


def anchor(key: str) -> str:
    """The id of a setting's heading; Markdown would take `_target_` for emphasis."""
    return key.replace("_target_", "target")


def _path(group: str) -> str:
    return f"settings/{group or 'run'}.md"


def _overview() -> str:
    """How settings are set, and the page and the settings of each group."""
    parts = [(Path(__file__).parent / "settings_head.md").read_text("utf-8")]
    for group, title in TITLES.items():
        keys = [f"[`{e.key}`]({_path(group)}#{anchor(e.key)})" for e in entries()[group]]
        files = [f"`{option.name}`" for option in options() if option.group == group]
        parts.append(f"## [{title}]({_path(group)}) {{: #{group or 'run'} }}\n")
        parts += [
            f"{len(names)} {noun}: {', '.join(names)}\n"
            for noun, names in (("settings", keys), ("options", files))
            if names
        ]
    parts.append("## [Genetic sweeper](settings/sweeper.md) {: #sweeper }\n")
    return "\n".join([*parts, "The settings under `hydra.sweeper` of `search=genetic`.\n"])


def _page(group: str, title: str) -> str:
    """The options of a group, and a heading for each of its settings."""
    parts = [f"# Settings: {title[0].lower()}{title[1:]}\n"]
    chosen = [option for option in options() if option.group == group]
    if chosen:
        parts.append(_table("+" if group in ("task", "experiment") else "", chosen))
    return "\n".join([*parts, *(_section(entry) for entry in entries()[group])])


def _table(sign: str, chosen: list[Option]) -> str:
    rows = "".join(
        f"<tr><td><code>{sign}{o.group}={o.name}</code></td><td>{as_html(o.meaning)}</td></tr>"
        for o in chosen
    )
    return f'<div class="options"><table><tbody>{rows}</tbody></table></div>\n'


def _section(entry: Entry) -> str:
    default = f"default <code>{escape(entry.default)}</code>" if entry.default else "must be set"
    return (
        f"## `{entry.key}` {{: #{anchor(entry.key)} .setting }}\n\n"
        f'<p class="setting-facts">{default}</p>\n'
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
