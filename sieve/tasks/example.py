"""An example: a prompt, the possible answers, and which of them is right."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

# A row of a data set as its file has it: column -> value, nested or not.
Row = Mapping[str, object]
NO_ANSWER = "\n"  # stands for a written answer that is empty or not known


@dataclass(frozen=True)
class Example:
    """A rendered prompt, the possible answers, and which of them is right."""

    prompt: str  # without a chat template
    choices: tuple[str, ...]  # each answer with its leading delimiter, as " positive"
    answer: int  # index of the right choice
    references: tuple[str, ...] = ()  # generation: all right answers, without the delimiter
    relevance: tuple[float, ...] = ()  # ranking: a grade of each choice, 0 for wrong ones
    contexts: tuple[str, ...] = ()  # a prompt for each choice; empty: `prompt` precedes them all
    cut: tuple[int, int] | None = None  # begin and end in `prompt` of the text to shorten
    bare: str = ""  # the prompt without the preamble and shots that precede every prompt
    size: tuple[int, ...] = ()  # numbers of words and bytes of a text, if counted elsewhere
    # The same row with the prompt of the other model: a dense model's example has that of the
    # pruned model, and the reverse. None if both read one prompt.
    twin: "Example | None" = None

    def __post_init__(self) -> None:
        if isinstance(self.choices, str):
            raise ValueError(
                f"the choices of an Example are {self.choices!r}, expected a tuple of texts, as "
                "(' no', ' yes')."
            )
        answers = max(1, len(self.choices))
        if not hasattr(self.answer, "__index__") or not 0 <= self.answer < answers:
            raise ValueError(
                f"the answer of an Example is {self.answer!r}, expected the index of the right "
                f"choice, 0 to {answers - 1}; for a word write choices.index(word)."
            )

    @property
    def content(self) -> str:
        """What tells examples apart: the prompt itself, or the text where there is no prompt."""
        return self.bare or self.prompt or "\n".join(self.choices)

    @property
    def right(self) -> str:
        """The right choice."""
        return self.choices[self.answer]

    @property
    def key(self) -> str:
        """Stable hash of the prompt and all that is scored: 16 hexadecimal characters."""
        parts: list[object] = [self.prompt, list(self.choices)]
        parts += [list(x) for x in (self.references, self.relevance, self.contexts) if x]
        text = json.dumps(parts, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
