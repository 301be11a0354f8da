"""What is wrong with a command line, in one sentence: the nearest name, the value to write."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from errno import EACCES, EDQUOT, EEXIST, ENOSPC, ENOTDIR, EPERM, EROFS
from typing import get_type_hints

from hydra.errors import CompactHydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from sieve.config import Config

HELP = "`python -m sieve.run --help` lists all settings"
UNWRITABLE = (EACCES, EPERM, EROFS, ENOSPC, EDQUOT, EEXIST, ENOTDIR)
KINDS = {"Float": "a number", "Integer": "a whole number", "Boolean": "true or false"}


def message_of(error: BaseException) -> str:
    """What a user is told about an error that ends the program."""
    if isinstance(error, KeyboardInterrupt):
        return f"{str(error) or 'Interrupted'}. Run the same command again to resume."
    if isinstance(error, CompactHydraException):
        return explain(error)
    if str(error).startswith("Config group override must be"):
        return f"a group of settings such as model, search or device takes a name; {HELP}."
    if not isinstance(error, OSError) or error.errno not in UNWRITABLE:
        return str(error)
    return (
        f"{error.filename or 'a file'} cannot be written ({error.strerror or error}); free space "
        "on its disk, run in another folder, or set paths.runs_dir=<folder> and "
        "paths.cache_dir=<folder>."
    )


def explain(error: CompactHydraException) -> str:
    """The message of an error by which Hydra refuses a command line."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.options:
        return _unknown_option(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if match := re.match(r"Could not override '([^']+)'", text):
        return _unknown_key(match.group(1))
    if match := re.match(r"Ambiguous value for argument '([^=]+)=(.*)'\n", text):
        return _comma(*match.groups())
    if match := re.match(r"Could not append to config. An item is already at '([^']+)'", text):
        return f"{match.group(1)} is a setting already; write it without the plus."
    return text.split("\n\n")[0].replace("\n", " ")


def explain_value(error: OmegaConfBaseException) -> str:
    """The message of an error by which a value does not fit its setting."""
    key, text = str(error.full_key or error.key), str(error).splitlines()[0]
    if isinstance(error, ConfigKeyError):
        return f"there is no setting {key}{_nearest(key, set(setting_names()))}; {HELP}."
    if match := re.match(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", text):
        value, kind = match.group(1), match.group(2)
        expected = KINDS.get(kind, kind)
        percent = re.fullmatch(r"([\d.]+) ?%", value)
        advice = f"; set {key}={float(percent.group(1)) / 100:g}" if percent else ""
        return f"{key} is '{value}', expected {expected}{advice}."
    if match := re.match(r"Merge error: \w+ is not a subclass of (\w+)\. value: (.*)", text):
        return _no_section(*match.groups())
    if "is not a ListConfig" in text:
        return f'{key} expects a list; write "{key}=[first,second]".'
    return f"{key} is invalid: {text}"


def setting_names(settings: type = Config, prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings."""
    types = get_type_hints(settings)
    for field in fields(settings):
        yield prefix + field.name
        if is_dataclass(types[field.name]):
            yield from setting_names(types[field.name], f"{prefix}{field.name}.")


def _unknown_option(error: MissingConfigException) -> str:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    options = [option for option in error.options or () if not option.startswith("_")]
    return (
        f"there is no {group} '{name}'{_nearest(name, options)}; choose one of "
        f"{', '.join(options)}."
    )


def _unknown_key(key: str) -> str:
    if key == "task":
        return "a task is added with a plus: +task=<name>."
    if key in set(setting_names()):  # A setting of the task, which has no default.
        return f"no task was chosen, so there is no {key} yet; add one, such as +task=jsonl."
    return f"there is no setting {key}{_nearest(key, set(setting_names()))}; {HELP}."


def _no_section(kind: str, value: str) -> str:
    types = get_type_hints(Config)
    [name] = (name for name, type_ in types.items() if getattr(type_, "__name__", "") == kind)
    settings = ", ".join(f"{name}.{field.name}" for field in fields(types[name]))
    return f"{name} is {value!r}, but has settings of its own: {settings}."


def unknown_command(word: str) -> str:
    """What to say of a first argument that is neither a command nor a setting."""
    if word in ("tune", "serve", "report"):
        return f"write python -m sieve.{word}; it has a --help of its own."
    commands = ("data", "predict")
    return (
        f"there is no command '{word}'{_nearest(word, commands)}; a run starts with settings, as "
        f"sieve +task=sst2, and the commands are {' and '.join(commands)}; {HELP}."
    )


def _unreadable(error: OverrideParseException) -> str:
    reason = str(error).removeprefix(f"Error parsing override '{error.override}'\n")
    return (
        f"the argument {error.override!r} cannot be read ({reason.splitlines()[0]}), expected "
        "key=value; put values with spaces, braces or commas in two kinds of quotes, as "
        "\"task.prompt='Review: {text}'\"."
    )


def _comma(key: str, value: str) -> str:
    whole, _, part = value.partition(",")
    if whole.isdecimal() and part.isdecimal():
        advice = f"a decimal point instead of a comma, {key}={whole}.{part}"
    else:
        advice = f'a list in brackets, "{key}=[{value}]", or a text in quotes, "{key}=\'{value}\'"'
    return f"{key} has several values, {value}; write {advice}, or add --multirun for a sweep."


def _nearest(name: str, names: Iterable[str]) -> str:
    """The most similar name as a question, or nothing."""
    similar = get_close_matches(name, names, n=1)
    return f" (did you mean {similar[0]}?)" if similar else ""
