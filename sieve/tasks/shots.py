"""Few-shot prompts: calibration rows, shown with their answers before every prompt.

All prompts show the same rows, and these rows leave the calibration split.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from sieve.tasks.config import TaskConfig
from sieve.tasks.example import Example
from sieve.tasks.splits import prompt_hash


def add_shots(
    splits: Mapping[str, list[Example]], config: TaskConfig, seed: int
) -> tuple[dict[str, list[Example]], str]:
    """Show `config.shots` rows before every prompt.

    Returns:
        The splits, and the text before every prompt: the preamble and the shown rows.

    Raises:
        ValueError: there are too few calibration rows.
    """
    pool = splits["calibration"]
    if config.shots >= len(pool):
        raise ValueError(
            f"task '{config.name}': task.shots is {config.shots}, expected fewer than the "
            f"{len(pool)} calibration rows they are drawn from; lower it or give more rows."
        )
    shots = _draw(pool, config, seed) if config.shots else []
    begin, separator = len(config.preamble), config.shot_separator.replace("\\n", "\n")
    texts = [_prompt(shot)[begin:] + shot.choices[shot.answer] + separator for shot in shots]
    preamble = config.preamble + "".join(texts)
    if not preamble:
        return dict(splits), ""
    shown = {id(shot) for shot in shots}
    rest = {
        role: [_with_preamble(e, preamble, begin) for e in examples if id(e) not in shown]
        for role, examples in splits.items()
    }
    return rest, preamble


def _draw(pool: list[Example], config: TaskConfig, seed: int) -> list[Example]:
    """The rows with the lowest hashes under the seed; of label words each in turn."""
    ranked = sorted(pool, key=lambda example: prompt_hash(example.content, f"shots {seed}"))
    if config.kind == "classification":
        seen: dict[int, int] = defaultdict(int)
        turns = []
        for example in ranked:
            turns.append((seen[example.answer], example.answer))
            seen[example.answer] += 1
        ranked = [ranked[i] for i in sorted(range(len(ranked)), key=turns.__getitem__)]
    return ranked[: config.shots]


def _prompt(example: Example) -> str:
    return example.contexts[example.answer] if example.contexts else example.prompt


def _with_preamble(example: Example, preamble: str, begin: int) -> Example:
    """The example with `preamble` in place of the first `begin` characters of its prompts."""
    shift = len(preamble) - begin
    bare = example.prompt[begin:]
    return replace(
        example,
        prompt=preamble + bare,
        contexts=tuple(preamble + context[begin:] for context in example.contexts),
        cut=None if example.cut is None else (example.cut[0] + shift, example.cut[1] + shift),
        bare=bare,
    )
