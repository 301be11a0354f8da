"""The splits that a run reads: their fingerprints, and calibration rows of several tasks."""

from collections.abc import Sequence
from dataclasses import asdict, replace

from sieve.config import Config
from sieve.runtime.artifacts import fingerprint
from sieve.tasks import Example, Task, build_task


def split_key(task: Task, role: str) -> str:
    """Fingerprint of a split of a task: prompts, choices and answers, in order."""
    rendering: list[object] = [task.chat, task.delimiter, task.kind, task.harness]
    if role != "calibration":  # Scores depend on these; calibration reads right answers only.
        writing = asdict(task.writing) if task.writing else None
        rendering += [task.normalize, asdict(task.metric), writing, task.unit, task.scoring]
    rows = [[row.key, row.answer, row.cut, row.size] for row in task.splits[role]]
    return fingerprint(rows, rendering)


def mixed_tasks(
    config: Config, task: Task, held_out: Sequence[Example] = ()
) -> list[tuple[Task, float]]:
    """The tasks that calibration rows come from, and their shares of the tokens.

    Rows of other tasks that are also selection or test rows of the run's own task, or are held out
    of a training, are left out. Rows are compared as rendered, without preamble and shots: the same
    data with another prompt are not recognized, so give such a task a split of its own.
    """
    weights = config.calibration.weights
    mix = [(task, weights.get("self", 1.0))]
    rows = [*held_out, *task.splits["selection"], *task.splits["test"]]
    scored = {row.content for row in rows}
    for name, settings in config.calibration.mix.items():
        other = build_task(settings, config.seed)
        rows = [row for row in other.splits["calibration"] if row.content not in scored]
        splits = other.splits | {"calibration": rows}
        mix.append((replace(other, splits=splits), weights.get(name, 1.0)))
    total = sum(weight for _, weight in mix)
    return [(part, weight / total) for part, weight in mix if weight > 0]
