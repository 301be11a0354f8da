"""The answers so far, a line for each batch: a killed prediction goes on where it stopped."""

import json
from dataclasses import asdict
from pathlib import Path

from sieve.exports.onnx import NAME
from sieve.model.checkpoint_files import find_model, weights_fingerprint
from sieve.predict.tables import Answer
from sieve.runtime.artifacts import append_line, fingerprint, hash_files, whole_lines
from sieve.tasks.config import TaskConfig

FORMAT = 1  # raise it when the same rows get other answers


def journal_key(model: str | Path, task: TaskConfig, file: Path, dtype: str) -> str:
    """Fingerprint of a model, a task and a file of rows; ValueError if there is no such model."""
    graph = Path(model).expanduser() / NAME
    if graph.is_file():
        weights = hash_files([path for path in graph.parent.iterdir() if path.is_file()])
    else:
        weights = weights_fingerprint(find_model(str(model)), None)
    return fingerprint(FORMAT, weights, asdict(task), hash_files([file]), dtype)


class Journal:
    """Answers by the number of their row, in a file beside the output.

    Args:
        out: the output.
        key: fingerprint of everything that the answers depend on. It is part of the file's name, so
            another model or input has another journal.
    """

    def __init__(self, out: Path, key: str) -> None:
        self.path = out.with_name(f"{out.name}.{key}.partial")
        self.answers: dict[int, Answer] = {}
        for line in whole_lines(self.path):
            self._remember(json.loads(line))

    def add(self, answers: dict[int, Answer]) -> None:
        """Append the answers of a batch."""
        line = json.dumps(answers, ensure_ascii=False)
        append_line(self.path, line)
        self._remember(json.loads(line))

    def remove(self) -> None:
        """Delete the file, once the output has all answers."""
        self.path.unlink(missing_ok=True)

    def _remember(self, answers: dict[str, Answer]) -> None:
        self.answers |= {int(number): answer for number, answer in answers.items()}
