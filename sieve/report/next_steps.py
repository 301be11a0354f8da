"""What to type next: how to load the export of a run, serve it, and answer a file of rows.

A run without an answer offers the commands that tune its model instead.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

from sieve.report.result import Result
from sieve.report.verdict import can_be_tuned, has_no_answer

_ADAPTER = "my_adapter"
# Settings of a run that a tuning must not share: it has a method, a log and a folder of its own.
_OWN = ("recovery", "logger", "hydra", "export", "quantization")


@dataclass(frozen=True)
class Step:
    """A purpose and what to type for it."""

    title: str
    command: str


def next_steps(result: Result, folder: Path | None) -> list[Step]:
    """Three commands with the paths of a run; one or none without an export.

    If the dense model does not do the task, the commands that tune it instead. folder: of the run.
    """
    return tuning_steps(result) if has_no_answer(result) else _export_steps(result, folder)


def tuning_steps(result: Result) -> list[Step]:
    """Two commands, which tune the dense model and prune it, if it does not do the task."""
    words = shlex.split(result.command)
    if not has_no_answer(result) or not can_be_tuned(result):
        return []
    if words[1:3] != ["-m", "sieve.run"] or "model.adapter" in map(_key, words):
        return []
    settings = [w for w in words[3:] if _key(w).split(".")[0] not in _OWN and not w.startswith("-")]
    tune = shlex.join([words[0], "-m", "sieve.tune", _ADAPTER, *settings])
    again = shlex.join([*words, f"model.adapter={_ADAPTER}"])
    title = (
        "Check the prompt and the labels. If they are right, tune the model on the labels, or use "
        "another model"
    )
    return [Step(title, tune), Step("Prune the tuned model", again)]


def _key(word: str) -> str:
    """The setting that a word of a command line changes."""
    return word.lstrip("+~").partition("=")[0].partition("@")[0]


def _export_steps(result: Result, folder: Path | None) -> list[Step]:
    form = result.export.format
    if folder is None or not form:
        return []
    if form == "none":
        again = f"{result.command} export=factorized" if result.command else "export=factorized"
        return [Step("Write the model: repeat the command with an export", again)]
    export = _shown(folder / "export")
    load = f'import sieve\n\nmodel, tokenizer = sieve.load("{export}")'
    steps = [Step("Load it in Python", load.replace("\\", "\\\\"))]
    quoted = shlex.quote(export)
    if form == "gguf":
        steps.append(Step("Run it in llama.cpp", f"llama-cli -m {quoted}/model.gguf"))
    if result.export.server == "sieve.serve":
        steps.append(Step("Serve it, with a page to try it", f"python -m sieve.serve {quoted}"))
        steps.append(Step("Answer a file of rows", f"python -m sieve.predict {quoted} rows.csv"))
    elif result.export.server:
        serve = f"python -m {result.export.server} {quoted} --trust-remote-code"
        steps.append(Step("Serve it by OpenAI's protocol", serve))
    return steps


def _shown(path: Path) -> str:
    """A path from the current folder if it is in it, else from the root."""
    path, here = path.resolve(), Path.cwd()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else str(path)
