"""How a generated answer ends, and which part of the text is the answer."""

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Writing:
    """How a model writes an answer, and how the answer is read from the text.

    Args:
        max_new_tokens: the longest answer.
        stop: strings that end an answer and are cut off.
        extract: regular expression; its first group, or else its match, is the answer.
        last: use the last match of `extract` instead of the first.
        strip: remove spaces around an answer, where there is no `extract`.
    """

    max_new_tokens: int = 32
    stop: tuple[str, ...] = ("\n",)
    extract: str | None = None
    last: bool = False
    strip: bool = True

    def cut(self, text: str) -> str:
        """The text before the first stop string."""
        ends = [index for stop in self.stop if (index := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text

    def extract_from(self, text: str) -> str | None:
        """The answer in a text; None where `extract` does not match."""
        if self.extract is None:
            return text.strip() if self.strip else text
        matches = list(re.finditer(self.extract, text))
        if not matches:
            return None
        match = matches[-1 if self.last else 0]
        answer: str | None = match.group(1) if match.re.groups else match.group()
        return (answer or "").strip()

    def targets(self, references: Sequence[str]) -> list[str]:
        """The answers in the references; a reference without a match is its own answer."""
        answers = [self.extract_from(reference) for reference in references]
        return [r if a is None else a for r, a in zip(references, answers, strict=True)]
