"""How an answer is written and what is taken of it: length, stop strings, an expression."""

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Writing:
    """max_new_tokens: of an answer at most; stop: strings that end it and are cut off; extract: a
    regular expression whose first group, or whole match, is the answer; last: of several matches
    the last one, else the first; strip: take the spaces around an answer away."""

    max_new_tokens: int = 32
    stop: tuple[str, ...] = ("\n",)
    extract: str | None = None
    last: bool = False
    strip: bool = True

    def cut(self, text: str) -> str:
        """The text before the first stop string in it."""
        ends = [index for stop in self.stop if (index := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text

    def extract_from(self, text: str) -> str | None:
        """What counts of a text; None where the expression is not found in it."""
        if self.extract is None:
            return text.strip() if self.strip else text
        matches = list(re.finditer(self.extract, text))
        if not matches:
            return None
        match = matches[-1 if self.last else 0]
        found: str | None = match.group(1) if match.re.groups else match.group()
        return (found or "").strip()

    def targets(self, references: Sequence[str]) -> list[str]:
        """References as answers are read: what the expression takes from them, if anything."""
        found = [self.extract_from(reference) for reference in references]
        return [r if f is None else f for r, f in zip(references, found, strict=True)]
