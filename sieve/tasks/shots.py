"""Few-shot prompts: calibration rows, shown with their answers before every prompt.

They are the same for all prompts, and no longer calibration rows themselves.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from sieve.tasks.config import TaskConfig
from sieve.tasks.example import Example
from sieve.tasks.splits import Splits, prompt_hash


def add_shots(
    splits: Mapping[str, list[Example]], config: TaskConfig, seed: int
) -> tuple[Splits, str]:
    """Put `config.shots` rows before every prompt; returns the splits and all that precedes them.

    The rows are those whose prompts hash lowest under the seed, taken from each answer in turn
    where answers are a few words.

    Raises:
        ValueError: there are not more calibration rows than that.
    """
    if not config.shots:
        begin = len(config.preamble)
        bare = {
            role: [replace(e, bare=e.prompt[begin:]) if begin else e for e in examples]
            for role, examples in splits.items()
        }
        return bare, config.preamble
    pool = splits["calibration"]
    if config.shots >= len(pool):
        raise ValueError(
            f"task '{config.name}': task.shots is {config.shots}, expected fewer than the "
            f"{len(pool)} calibration rows they are drawn from; lower it or give more rows."
        )
    shown = _drawn(pool, config, seed)
    begin = len(config.preamble)
    separator = config.shot_separator.replace("\\n", "\n")
    texts = [_context(shot)[begin:] + shot.choices[shot.answer] + separator for shot in shown]
    preamble = config.preamble + "".join(texts)
    taken = {id(shot) for shot in shown}
    rest = {
        role: [
            _behind(example, preamble, begin) for example in examples if id(example) not in taken
        ]
        for role, examples in splits.items()
    }
    return rest, preamble


def _drawn(pool: list[Example], config: TaskConfig, seed: int) -> list[Example]:
    ranked = sorted(pool, key=lambda example: prompt_hash(example.content, f"shots {seed}"))
    if config.kind != "classification":
        return ranked[: config.shots]
    by_answer = defaultdict(list)
    for example in ranked:
        by_answer[example.answer].append(example)
    turns = [
        (place, index, example)
        for index, answer in enumerate(sorted(by_answer))
        for place, example in enumerate(by_answer[answer])
    ]
    return [example for _, _, example in sorted(turns, key=lambda turn: turn[:2])][: config.shots]


def _context(example: Example) -> str:
    return example.contexts[example.answer] if example.contexts else example.prompt


def _behind(example: Example, preamble: str, begin: int) -> Example:
    """An example whose prompt stands behind a preamble in place of its first characters."""
    shift = len(preamble) - begin
    cut = None if example.cut is None else (example.cut[0] + shift, example.cut[1] + shift)
    contexts = tuple(preamble + context[begin:] for context in example.contexts)
    prompt = preamble + example.prompt[begin:]
    bare = example.prompt[begin:]
    return replace(example, prompt=prompt, contexts=contexts, cut=cut, bare=bare)
