"""`inspect=data`: the rows of every task, their lengths, and first prompts as a model reads them.

Takes seconds: it reads the rows, and the model's tokenizer if that is on this machine.
"""

from rich.console import Group, RenderableType
from rich.text import Text
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedTokenizerBase

from sieve.config import Config
from sieve.costs.lengths import local_tokenizer, reader_of
from sieve.costs.shape import build_without_weights
from sieve.tasks import Example, Task, task_by_shots
from sieve.tasks.config import AUTO, TaskConfig
from sieve.tasks.prompts import apply_chat, has_template
from sieve.tasks.shots import fewest_shots
from sieve.tasks.summary import describe_rows

SHOWN_ANSWERS = 30


def inspect_rows(config: Config) -> RenderableType:
    """The text to show.

    Raises:
        ValueError or RuntimeError: the rows or the settings are faulty, as in a run.
    """
    tokenizer = local_tokenizer(config.model)
    task = _task(config.task, config.seed)
    others = {name: _task(other, config.seed) for name, other in config.also.items()}
    return Group(
        *_shown(task, "calibration", config, tokenizer),
        *(
            part
            for name, other in others.items()
            for part in (
                Text(f"\nalso.{name}, on which both models are tested too\n", style="bold"),
                *_shown(other, "test", config, tokenizer),
            )
        ),
    )


def _task(settings: TaskConfig, seed: int) -> Task:
    return task_by_shots(settings, seed)(fewest_shots(settings))


def _shown(
    task: Task, role: str, config: Config, tokenizer: PreTrainedTokenizerBase | None
) -> list[Text]:
    """The rows of a task, the first prompt of a split, and its answers."""
    lines = [*describe_rows(task), _lengths(config, task, tokenizer)]
    first = task.splits[role][0]
    prompt, note = _prompt(first, task, tokenizer)
    return [
        Text("\n".join(lines)),
        Text(f"\nThe first {role} row as the model reads it{note}:\n", style="bold"),
        Text(prompt),
        Text("\nIts answers, as they follow the prompt:\n", style="bold"),
        Text("\n".join(_answers(first, task))),
    ]


def _lengths(config: Config, task: Task, tokenizer: PreTrainedTokenizerBase | None) -> str:
    if tokenizer is None:
        return f"The tokenizer of {config.model.path} is not on this machine, so no row is encoded."
    with FakeTensorMode():
        model, _ = build_without_weights(config.model)
    reader = reader_of(config, tokenizer, model)
    longest = reader.longest(task, [row for rows in task.splits.values() for row in rows])
    limit = f"{reader.context_length:,}" if reader.context_length else "any number of"
    return f"The longest row has {longest:,} tokens; the model reads {limit} tokens."


def _prompt(
    first: Example, task: Task, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[str, str]:
    """The prompt of a row, and a remark on the chat template."""
    prompt = first.contexts[0] if first.contexts else first.prompt
    if tokenizer is None or task.kind == "perplexity" or task.chat == "never":
        return prompt, ""
    if task.chat == AUTO:
        tried = ", without the chat template, which a run tries too (task.chat=auto)"
        return prompt, tried if has_template(tokenizer) else ""
    return apply_chat(prompt, tokenizer, task.chat)[0], ""


def _answers(first: Example, task: Task) -> list[str]:
    """The answers of a row in quotes, the right one marked."""
    right = -1 if task.metric.agreement else first.answer
    return [
        f"{choice!r}{' ← right' if index == right else ''}"
        for index, choice in enumerate(first.choices[:SHOWN_ANSWERS])
    ]
