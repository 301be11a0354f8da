"""An example: what a model is asked, and what is right."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Example:
    """A rendered prompt, the continuations to choose from, and which one is right."""

    prompt: str  # without any chat template
    choices: tuple[str, ...]  # whole continuations with their leading delimiter, as " positive"
    answer: int  # index into choices
    references: tuple[str, ...] = ()  # written answers that count as right, without a delimiter
    relevance: tuple[float, ...] = ()  # of the choices, where more than the answer is right
    # Contexts of their own, one for each choice, which `prompt` begins; else all follow `prompt`.
    contexts: tuple[str, ...] = ()
    cut: tuple[int, int] | None = None  # begin and end in `prompt` of what may be shortened
    bare: str = ""  # the prompt without what precedes that of every row, such as shots
    size: tuple[int, ...] = ()  # words and bytes of a text, where another counted them

    @property
    def content(self) -> str:
        """What tells examples apart: the prompt, or what follows where nothing precedes it."""
        return self.bare or self.prompt or "\n".join(self.choices)

    @property
    def key(self) -> str:
        """Stable hash of prompt and choices: 16 hexadecimal characters."""
        parts: list[Any] = [self.prompt, list(self.choices)]
        for more in (self.references, self.relevance, self.contexts):
            if more:
                parts.append(list(more))
        text = json.dumps(parts, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
