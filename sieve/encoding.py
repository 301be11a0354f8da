"""From an example to token ids: prompt and answers encoded together, split at the boundary.

As in lm-evaluation-harness an answer's tokens are those of prompt + answer that follow the
prompt's. Where the tokenizer merges across the boundary, all choices are scored from the last
token boundary that the prompt and all of them share, which is exact for each whole string.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from sieve.tasks.example import Example
from sieve.tasks.prompts import apply_chat

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class EncodedExample:
    """A prompt's tokens and those of each continuation."""

    prefix: Tokens  # at least one token, special tokens included
    choices: tuple[Tokens, ...]  # at least one token each, all different
    answer: int

    @property
    def start(self) -> int:
        """Tokens before the first scored one."""
        return len(self.prefix)

    def rows(self) -> list[Tokens]:
        """The fewest rows whose logits predict every token of every choice.

        A choice feeds its tokens but the last; what begins another choice's feed needs no row.
        """
        feeds = {choice[:-1] for choice in self.choices}
        needed: list[Tokens] = []
        for feed in sorted(feeds, key=lambda feed: (-len(feed), feed)):
            if not any(other[: len(feed)] == feed for other in needed):
                needed.append(feed)
        return [self.prefix + feed for feed in needed]

    def answer_row(self) -> Tokens:
        """The prompt and the right answer without its last token."""
        return self.prefix + self.choices[self.answer][:-1]


def special_prefix(tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """The special tokens that the tokenizer sets before a text; what it appends is left out.

    Raises:
        ValueError: the tokenizer does not simply set tokens around a text.
    """
    probe = "a"
    plain = _encode(tokenizer, [probe])[0]
    framed = _encode(tokenizer, [probe], add_special_tokens=True)[0]
    for begin in range(len(framed) - len(plain) + 1):
        if framed[begin : begin + len(plain)] == plain:
            return framed[:begin]
    raise ValueError(
        f"the tokenizer {type(tokenizer).__name__} encodes '{probe}' as {list(framed)} with and "
        f"{list(plain)} without special tokens, expected the same tokens within; use another "
        "tokenizer."
    )


def encode_examples(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat: str = "auto",
    delimiter: str = " ",
    context_length: int | None = None,
) -> list[EncodedExample]:
    """Encode prompts and choices; no end-of-text token is appended.

    Raises:
        ValueError: rows are longer than `context_length`, or two choices encode alike, or one to
            nothing.
    """
    if not examples:
        return []
    prompts: list[str] = []
    wholes: list[str] = []
    templated = False
    for example in examples:
        prompt, templated = apply_chat(example.prompt, tokenizer, chat)
        prompts.append(prompt)
        for choice in example.choices:
            wholes.append(prompt + (choice.removeprefix(delimiter) if templated else choice))
    # A chat template writes the special tokens itself.
    special = () if templated else special_prefix(tokenizer)
    prompt_ids = _encode(tokenizer, prompts)
    whole_ids = iter(_encode(tokenizer, wholes))
    encoded = [
        _split(example, special + ids, [special + next(whole_ids) for _ in example.choices])
        for example, ids in zip(examples, prompt_ids, strict=True)
    ]
    if context_length is not None:
        _check_lengths(encoded, context_length)
    return encoded


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], add_special_tokens: bool = False
) -> list[Tokens]:
    ids = tokenizer(
        texts,
        add_special_tokens=add_special_tokens,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    return [tuple(row) for row in ids]


def _split(example: Example, prompt: Tokens, wholes: Sequence[Tokens]) -> EncodedExample:
    """Cut prompt + choice after the tokens that the prompt and every whole text share."""
    start = min(_shared(prompt, whole) for whole in wholes)
    if start == 0:
        raise ValueError(
            f"the prompt {example.prompt[:60]!r} encodes to no token that stands before the "
            "answer, expected at least one; write words in task.prompt."
        )
    choices = tuple(whole[start:] for whole in wholes)
    seen: dict[Tokens, str] = {}
    for text, tokens in zip(example.choices, choices, strict=True):
        if not tokens:
            raise ValueError(
                f"the answer {text!r} encodes to no tokens, expected at least one; mend "
                "task.labels."
            )
        if tokens in seen:
            raise ValueError(
                f"the answers {seen[tokens]!r} and {text!r} encode to the same tokens "
                f"{list(tokens)}, expected different ones; choose other task.labels or another "
                "tokenizer."
            )
        seen[tokens] = text
    return EncodedExample(wholes[0][:start], choices, example.answer)


def _shared(left: Tokens, right: Tokens) -> int:
    """Length of the common beginning."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


def _check_lengths(encoded: Sequence[EncodedExample], limit: int) -> None:
    lengths = [max(map(len, example.rows())) for example in encoded]
    longest = max(lengths)
    if longest > limit:
        count = sum(length > limit for length in lengths)
        raise ValueError(
            f"{count} of {len(encoded)} prompts are longer than the model's context, the longest "
            f"has {longest} tokens, expected at most {limit}; shorten a field that the prompt "
            "names, as ++task.max_words.FIELD=100, or use a model with a longer context."
        )
