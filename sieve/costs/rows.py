"""`inspect=data`: the rows of a task, their lengths, and the first prompt as a model reads it.

Takes seconds: it reads the rows, and the model's tokenizer if that is on this machine.
"""

from rich.console import Group, RenderableType
from rich.text import Text
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedTokenizerBase

from sieve.config import Config
from sieve.costs.lengths import local_tokenizer, reader_of
from sieve.costs.shape import build_without_weights
from sieve.tasks import Task, task_by_shots
from sieve.tasks.config import AUTO
from sieve.tasks.prompts import apply_chat, has_template
from sieve.tasks.shots import fewest_shots
from sieve.tasks.summary import describe_rows

SHOWN_ANSWERS = 30


def inspect_rows(config: Config) -> RenderableType:
    """The text to show.

    Raises:
        ValueError or RuntimeError: the rows or the settings are faulty, as in a run.
    """
    task = task_by_shots(config.task, config.seed)(fewest_shots(config.task))
    tokenizer = local_tokenizer(config.model)
    lines = [*describe_rows(task), _lengths(config, task, tokenizer)]
    prompt, note = _first_prompt(task, tokenizer)
    return Group(
        Text("\n".join(lines)),
        Text(f"\nThe first calibration row as the model reads it{note}:\n", style="bold"),
        Text(prompt),
        Text("\nIts answers, as they follow the prompt:\n", style="bold"),
        Text("\n".join(_answers(task))),
    )


def _lengths(config: Config, task: Task, tokenizer: PreTrainedTokenizerBase | None) -> str:
    if tokenizer is None:
        return f"The tokenizer of {config.model.path} is not on this machine, so no row is encoded."
    with FakeTensorMode():
        model, _ = build_without_weights(config.model)
    reader = reader_of(config, tokenizer, model)
    longest = reader.longest(task, [row for rows in task.splits.values() for row in rows])
    limit = f"{reader.context_length:,}" if reader.context_length else "any number of"
    return f"The longest row has {longest:,} tokens; the model reads {limit} tokens."


def _first_prompt(task: Task, tokenizer: PreTrainedTokenizerBase | None) -> tuple[str, str]:
    """The prompt of the first calibration row, and a remark on the chat template."""
    first = task.splits["calibration"][0]
    prompt = first.contexts[0] if first.contexts else first.prompt
    if tokenizer is None or task.kind == "perplexity" or task.chat == "never":
        return prompt, ""
    if task.chat == AUTO:
        tried = ", without the chat template, which a run tries too (task.chat=auto)"
        return prompt, tried if has_template(tokenizer) else ""
    return apply_chat(prompt, tokenizer, task.chat)[0], ""


def _answers(task: Task) -> list[str]:
    """The answers of the first calibration row in quotes, the right one marked."""
    first = task.splits["calibration"][0]
    right = -1 if task.metric.agreement else first.answer
    return [
        f"{choice!r}{' ← right' if index == right else ''}"
        for index, choice in enumerate(first.choices[:SHOWN_ANSWERS])
    ]
