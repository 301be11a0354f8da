"""Few-shot prompts: calibration rows, shown with their answers before every prompt.

All prompts show the same rows, and these rows leave the calibration split.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from sieve.tasks.config import AUTO, TaskConfig
from sieve.tasks.example import Example
from sieve.tasks.splits import prompt_hash

COUNTS = (0, 2, 4, 8)  # the numbers of shots that task.shots=auto measures


def counts_to_measure(config: TaskConfig, rows: int) -> list[int]:
    """The numbers of shots to measure, fewest first; only one unless task.shots=auto.

    rows: the number of calibration rows; at most half of them become shots.
    """
    if config.shots != AUTO:
        return [int(config.shots)]
    return [count for count in COUNTS if 2 * count <= rows]


def fewest_shots(config: TaskConfig) -> int:
    """The fewest shots that the settings of a task allow."""
    return counts_to_measure(config, 0)[0]


def add_shots(
    splits: Mapping[str, list[Example]], config: TaskConfig, count: int, seed: int
) -> tuple[dict[str, list[Example]], str]:
    """Show `count` calibration rows before every prompt.

    Returns:
        The splits, and the text before every prompt: the preamble and the shown rows.

    Raises:
        ValueError: there are too few calibration rows.
    """
    pool = splits["calibration"]
    if count >= len(pool):
        raise ValueError(
            f"task '{config.name}': task.shots is {count}, expected fewer than the "
            f"{len(pool)} calibration rows they are drawn from; lower it or give more rows."
        )
    shots = _draw(pool, config, seed)[:count] if count else []
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
    """The rows in the order of their hashes under the seed; label words take turns."""
    ranked = sorted(pool, key=lambda example: prompt_hash(example.content, f"shots {seed}"))
    if config.kind == "classification":
        seen: dict[int, int] = defaultdict(int)
        turns = []
        for example in ranked:
            turns.append((seen[example.answer], example.answer))
            seen[example.answer] += 1
        ranked = [ranked[i] for i in sorted(range(len(ranked)), key=turns.__getitem__)]
    return ranked


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
