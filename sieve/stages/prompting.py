"""The prompt of a task: with or without the chat template, and with how many shots.

`task.chat=auto` and `task.shots=auto` leave this open. The dense model then answers some
calibration rows with each prompt, and the best prompt becomes a part of the task's settings, before
anything else depends on them.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import sqrt
from typing import NamedTuple

from sieve.config import Config
from sieve.data.datamodule import SieveDataModule
from sieve.model.backbone import is_classifier
from sieve.runtime.artifacts import fingerprint
from sieve.stages.cached import JSON, Record
from sieve.stages.evaluate import score_test
from sieve.stages.run import Run
from sieve.stages.splits import split_key
from sieve.streaming.streamed_backbone import StreamedBackbone
from sieve.tasks import Example, Task, TaskConfig, task_by_shots
from sieve.tasks.config import AUTO
from sieve.tasks.metrics import AGREEMENT, make_row_metric, metric_of
from sieve.tasks.prompts import has_template
from sieve.tasks.scores import Scores
from sieve.tasks.shots import counts_to_measure, fewest_shots
from sieve.tasks.splits import prompt_hash

log = logging.getLogger(__name__)
VERSION = 1  # of the record; part of its fingerprint
ROWS = 100
WRITTEN_ROWS = 50  # of tasks whose answers the model writes, which takes longer
LONGEST_ROWS = 20  # that must fit in the context
TaskOf = Callable[[int], Task]  # builds a task with a number of shots


class Prompt(NamedTuple):
    """How the rows of a task become prompts."""

    chat: str  # always: with the chat template; never: without
    shots: int

    def __str__(self) -> str:
        name = "the bare prompt" if self.chat == "never" else "the chat template"
        shots = " with 1 shot" if self.shots == 1 else f" with {self.shots} shots"
        return name + (shots if self.shots else "")


@dataclass(frozen=True)
class Trial:
    """A prompt, and how the dense model answers the measured rows with it."""

    prompt: Prompt
    scores: Scores
    tokens: float  # per row


def with_measured_prompts(run: Run, task_of: TaskOf) -> Run:
    """The run with a prompt for every task whose settings leave it open.

    Args:
        task_of: builds the run's own task with a number of shots.
    """
    config = run.config
    settings, task = _choose(run, "task", config.task, task_of)
    mix, also = dict(config.calibration.mix), dict(config.also)
    groups = {"calibration.mix": mix}
    # Jobs of a search score no test rows.
    if not config.sweep.genomes and config.sweep.job != "prepare":
        groups["also"] = also
    records: Record = {}
    for group, tasks in groups.items():
        for key, other in tasks.items():
            chats, name = _chats(run, other), f"{group}.{key}"
            if len(chats) == 1 and other.shots != AUTO:
                tasks[key] = replace(other, chat=chats[0])
                continue
            build = task_by_shots(other, config.seed)
            tasks[key], chosen = _choose(run, name, other, build)
            records[name] = chosen.report["prompt"]
    report = task.report | {"other_prompts": records}
    calibration = replace(config.calibration, mix=mix)
    changed: Config = replace(config, task=settings, also=also, calibration=calibration)
    return replace(run, config=changed, task=replace(task, report=report))


def _choose(run: Run, name: str, config: TaskConfig, task_of: TaskOf) -> tuple[TaskConfig, Task]:
    """The settings with a prompt, and the task; its report says what was measured.

    name: the key of the settings in the configuration.
    """
    record: Record = {"rows": 0, "tried": []}
    prompts = _prompts(run, config, task_of)
    if len(prompts) > 1 and (reason := _why_not(run, config)):
        prompts = [_unmeasured(run, name, config, prompts, reason)]
    tasks = {prompt: replace(task_of(prompt.shots), chat=prompt.chat) for prompt in prompts}
    if len(tasks) > 1:
        tasks = {p: task for p, task in tasks.items() if _fits(run, task)} or tasks
    prompt = next(iter(tasks))
    if len(tasks) > 1:
        record = _measured(run, name, _on_measured_rows(run, tasks))
        prompt = Prompt(record["chat"], record["shots"])
        record["sentence"] = f"{_asked(name, config)}: {describe(record)}"
        if run.leads:
            log.info(record["sentence"])
    record |= prompt._asdict()
    task = replace(tasks[prompt], report=tasks[prompt].report | {"prompt": record})
    return replace(config, **prompt._asdict()), task


def _why_not(run: Run, config: TaskConfig) -> str:
    """Why the prompts of a task cannot be measured, as a clause; "" if they can."""
    if isinstance(run.backbone, StreamedBackbone):
        return "calibration.strategy=stream must not load the whole model"
    if config.metric == AGREEMENT and not config.shots:
        return "task.metric=agreement reads no labels"
    return ""


def _unmeasured(
    run: Run, name: str, config: TaskConfig, prompts: Sequence[Prompt], reason: str
) -> Prompt:
    """A prompt with the chat template if possible, and the fewest shots."""
    prompt = Prompt(prompts[-1].chat, prompts[0].shots)
    if run.leads:
        log.warning(
            "%s is not measured, because %s; %s is used. Set %s.chat and %s.shots to choose "
            "another prompt.",
            *(_asked(name, config), reason, prompt, name, name),
        )
    return prompt


def _asked(name: str, config: TaskConfig) -> str:
    """The settings that are auto, as on a command line."""
    values = {"chat": config.chat, "shots": config.shots}
    return " ".join(f"{name}.{key}=auto" for key, value in values.items() if value == AUTO)


def _chats(run: Run, config: TaskConfig) -> list[str]:
    """The values of `task.chat` that the settings allow."""
    if config.chat != AUTO:
        return [config.chat]
    plain = config.kind == "perplexity" or config.lm_eval is not None
    plain = plain or is_classifier(run.backbone.skeleton)
    return ["never"] if plain or not has_template(run.backbone.tokenizer) else ["never", "always"]


def _prompts(run: Run, config: TaskConfig, task_of: TaskOf) -> list[Prompt]:
    """The prompts that the settings allow, bare ones and fewer shots first."""
    rows = len(task_of(fewest_shots(config)).splits["calibration"])
    counts = counts_to_measure(config, rows)
    return [Prompt(chat, shots) for chat in _chats(run, config) for shots in counts]


def _fits(run: Run, task: Task) -> bool:
    """Whether the longest rows of a task can be encoded for the model."""
    rows = chain.from_iterable(task.splits.values())
    longest = sorted(rows, key=lambda example: len(example.prompt), reverse=True)[:LONGEST_ROWS]
    try:
        _batches_of(run, task).scoring_batches(longest)
    except ValueError as error:
        log.debug("%s, %d characters of preamble: %s", task.chat, len(task.preamble), error)
        return False
    return True


def _on_measured_rows(run: Run, tasks: dict[Prompt, Task]) -> dict[Prompt, Task]:
    """Every task with the measured rows as its only split, `test`."""
    most = max(tasks, key=lambda prompt: prompt.shots)  # None of its rows is a shot of any prompt.
    salt = f"prompt {run.config.seed}"
    contents = [example.content for example in tasks[most].splits["calibration"]]
    contents = sorted(set(contents), key=lambda content: prompt_hash(content, salt))
    contents = contents[: WRITTEN_ROWS if tasks[most].writing else ROWS]
    trials = {}
    for prompt, task in tasks.items():
        examples: dict[str, Example] = {e.content: e for e in task.splits["calibration"]}
        trials[prompt] = replace(task, splits={"test": [examples[text] for text in contents]})
        if task.metric.agreement:  # The calibration rows have labels, since some are shown.
            metric, row_metric = metric_of(task.kind, None), make_row_metric(task.kind, None)
            trials[prompt] = replace(trials[prompt], metric=metric, row_metric=row_metric)
    return trials


def _measured(run: Run, name: str, trials: dict[Prompt, Task]) -> Record:
    """What was measured on the test rows of `trials`, and the chosen prompt; cached."""
    template = run.backbone.tokenizer.chat_template
    keys = [[prompt, split_key(task, "test")] for prompt, task in trials.items()]
    key = fingerprint("prompt", VERSION, run.model_key, template, keys)
    stage = "prompt" if name == "task" else f"prompt of {name}"
    [record] = run.cached(stage, key, {"prompt": JSON}, lambda: [_measure(run, trials)])
    return dict(record)


def _measure(run: Run, tasks: dict[Prompt, Task]) -> Record:
    trials = []
    for prompt, task in tasks.items():
        data, rows = _batches_of(run, task), task.splits["test"]
        data.divide_among(run.trainer.world_size)
        tokens = sum(int(batch.attention_mask.sum()) for batch in data.scoring("test"))
        trials.append(Trial(prompt, score_test(run, data), tokens / len(rows)))
    return record_of(sorted(trials, key=lambda trial: trial.tokens))


def _batches_of(run: Run, task: Task) -> SieveDataModule:
    data = run.data_of(task)
    data.reader = replace(data.reader, cut=None)  # No warnings about prompts that are only tried.
    return data


def record_of(trials: Sequence[Trial]) -> Record:
    """The record of trials on the same rows, cheapest prompt first, and the chosen prompt.

    `behind` is the best prompt's accuracy minus this one's, `behind_error` its standard error.
    """
    rows = len(trials[0].scores.values)
    best = max(trials, key=lambda trial: trial.scores.accuracy).scores.values
    tried = list[Record]()
    for prompt, scores, tokens in ((t.prompt, t.scores, t.tokens) for t in trials):
        behind = best.astype(float) - scores.values
        tried.append(
            {
                "chat": prompt.chat,
                "shots": prompt.shots,
                "tokens": tokens,
                "accuracy": scores.accuracy,
                "standard_error": float(scores.values.std()) / sqrt(rows),
                "behind": float(behind.mean()),
                "behind_error": sqrt(float((behind**2).sum())) / rows,
                "right": int(scores.correct.sum()) if scores.binary else None,
            }
        )
    taken = next(trial for trial in tried if trial["behind"] <= trial["behind_error"])
    metric = trials[0].scores.metric.name
    return {"rows": rows, "metric": metric, "tried": tried} | {k: taken[k] for k in Prompt._fields}


def describe(record: Record) -> str:
    """What was measured and which prompt is used, as a sentence."""
    tried, binary = record["tried"], all(t["right"] is not None for t in record["tried"])
    verbs = ["is right on", "on"] if binary else [f"has {record['metric']}", ""]
    rows = f"{'of' if binary else 'on'} {record['rows']} rows"
    groups = list[str]()
    for chat in dict.fromkeys(trial["chat"] for trial in tried):
        trials = [trial for trial in tried if trial["chat"] == chat]
        values = [f"{t['right']}" if binary else f"{t['accuracy']:.3f}" for t in trials]
        words = [_name(trials[0]), verbs[bool(groups)], values[0], "" if groups else rows]
        more = [f"{v} with {t['shots']}" for v, t in zip(values[1:], trials[1:], strict=True)]
        words += [f"({', '.join([more[0] + ' shots', *more[1:]])})"] if more else []
        groups.append(" ".join(word for word in words if word))
    taken = next(t for t in tried if _name(t) == _name(record))
    reason = (
        ": longer ones are not better by more than one standard error" if taken["behind"] else ""
    )
    return f"{', '.join(groups)}; {_name(record)} is used{reason}."


def _name(trial: Record) -> str:
    return str(Prompt(trial["chat"], trial["shots"]))
