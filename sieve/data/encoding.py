"""Encode examples as token ids: prompt and choices together, split at the boundary.

As in lm-evaluation-harness, the tokens of an answer are the tokens of prompt + answer after the
tokens of the prompt. Where the tokenizer merges across the boundary, all choices are scored from
the last token boundary that they share, which is exact for each whole text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import TypedDict

from transformers import PreTrainedTokenizerBase

from sieve.tasks.example import Example
from sieve.tasks.prompts import apply_chat

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class EncodedExample:
    """The tokens of a prompt and of each choice."""

    prefix: Tokens  # the prompt with special tokens; empty only if each choice skips some tokens
    choices: tuple[Tokens, ...]  # at least one token each
    answer: int  # index of the right choice
    sizes: tuple[float, ...] = ()  # divisors of the log-likelihoods of the choices; () means 1
    skipped: tuple[int, ...] = ()  # tokens at the start of each choice that are not scored

    def scored(self, choice: int) -> Tokens:
        """The tokens of a choice that are scored."""
        return self.choices[choice][self.skipped[choice] if self.skipped else 0 :]

    def rows(self) -> list[Tokens]:
        """The fewest rows whose logits predict every token of every choice.

        The model reads all tokens of a choice except the last. A choice whose read tokens begin
        another row needs no row of its own.
        """
        read = {choice[:-1] for choice in self.choices}
        longest: list[Tokens] = []
        for tokens in sorted(read, key=lambda tokens: (-len(tokens), tokens)):
            if not any(row[: len(tokens)] == tokens for row in longest):
                longest.append(tokens)
        return [self.prefix + tokens for tokens in longest]

    @property
    def vocabulary(self) -> set[int]:
        """The different tokens of the prompt and of all choices."""
        return {token for tokens in (self.prefix, *self.choices) for token in tokens}

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return max(map(len, self.rows()))

    def windows(self, length: int | None) -> list["EncodedExample"]:
        """A text as rows of at most `length` tokens that together predict each token once.

        As in lm-evaluation-harness, the last row repeats earlier tokens until it is full.
        """
        text, first = self.prefix + self.choices[0], len(self.prefix)
        if length is None or len(text) - 1 <= length:
            return [self]
        windows = []
        for start in range(first, len(text), length):
            end = min(start + length, len(text))
            context = text[max(0, end - 1 - length) : start]
            windows.append(EncodedExample(context, (text[start:end],), 0))
        return windows

    def truncated_left(self, length: int) -> "EncodedExample":
        """The same example in rows of at most `length` tokens: prompts lose their first tokens.

        Each choice loses only as many as it must, so shorter choices follow more of the prompt.
        """
        texts = [self.prefix + choice for choice in self.choices]
        if max(map(len, texts)) - 1 <= length:
            return self
        rows = tuple(text[-(length + 1) :] for text in texts)
        skipped = tuple(len(row) - len(self.scored(index)) for index, row in enumerate(rows))
        return replace(self, prefix=(), choices=rows, skipped=skipped)

    def answer_row(self) -> Tokens:
        """The prompt and the right answer without its last token."""
        return self.prefix + self.choices[self.answer][:-1]


class EncodingOptions(TypedDict, total=False):
    """The keyword arguments of `encode_examples`."""

    chat: str
    delimiter: str
    context_length: int | None
    normalize: str
    cut: Callable[[int], None] | None
    harness: bool
    rolling: bool


def common_tokens(rows: Sequence[Tokens]) -> Tokens:
    """The tokens that all rows begin with."""
    return tuple(commonprefix(list(rows)))


def encode_examples(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat: str = "auto",
    delimiter: str = " ",
    context_length: int | None = None,
    normalize: str = "none",
    cut: Callable[[int], None] | None = None,
    harness: bool = False,
    rolling: bool = False,
) -> list[EncodedExample]:
    """Encode prompts and choices, without an end-of-text token.

    Args:
        chat: whether to apply the chat template: "auto", "always" or "never".
        delimiter: what separates a prompt from its choices; dropped behind a chat template.
        context_length: the most tokens of a row; None does not check.
        normalize: what log-likelihoods are divided by: "none", "tokens", "characters" or "bytes".
        cut: called with the number of prompts whose field was shortened (see `Example.cut`).
        harness: split and truncate as lm-evaluation-harness does: a prompt has as many tokens as
            it has alone, and loses its first ones if it is too long.
        rolling: the examples are texts that follow a single begin token, used with `harness`.

    Raises:
        ValueError: a row is longer than `context_length`, two choices have the same tokens, or a
            choice has none.
    """
    if not examples:
        return []
    encoder = _Encoder(tokenizer, chat, delimiter, harness, rolling)
    if context_length is None:
        encoded = encoder.encode(examples)
    elif harness:
        encoded = [one.truncated_left(context_length) for one in encoder.encode(examples)]
    else:
        encoded = fit_context(encoder.encode, examples, context_length, cut)
    if normalize == "none":
        return encoded
    return [
        replace(one, sizes=_sizes(one, example, normalize, delimiter))
        for one, example in zip(encoded, examples, strict=True)
    ]


def fit_context(
    encode: Callable[[Sequence[Example]], list[EncodedExample]],
    examples: Sequence[Example],
    limit: int | None,
    cut: Callable[[int], None] | None,
) -> list[EncodedExample]:
    """Encode examples; where a row is too long, shorten the field that the example names.

    Raises:
        ValueError: a row is still longer than `limit`.
    """
    encoded = encode(examples)
    if limit is None:
        return encoded
    shortened = 0
    for index, example in enumerate(examples):
        before = encoded[index]
        while (length := encoded[index].length) > limit:
            shorter = _shorten(example, length, limit)
            if shorter is None:
                break
            example = shorter
            (encoded[index],) = encode([example])
        shortened += encoded[index] is not before
    if shortened and cut is not None:
        cut(shortened)
    too_long = [example.length for example in encoded if example.length > limit]
    if too_long:
        raise ValueError(
            f"{len(too_long)} of {len(encoded)} prompts are longer than the model's context: the "
            f"longest has {max(too_long)} tokens, expected at most {limit}; shorten a field of the "
            "prompt with task.truncate=FIELD or ++task.max_words.FIELD=100, or use a model with a "
            "longer context."
        )
    return encoded


def _shorten(example: Example, length: int, limit: int) -> Example | None:
    """An example of `length` tokens with a shorter field; None if nothing of it would be left."""
    if example.cut is None:
        return None
    start, end = example.cut
    # Cut characters in proportion to tokens, and 5 % more, to need few iterations.
    characters = int((end - start) * max(0.0, 1 - 1.05 * (length - limit) / length)) - 1
    if characters < 1:
        return None
    prompt = example.prompt[: start + characters] + example.prompt[end:]
    return replace(example, prompt=prompt, cut=(start, start + characters))


def special_prefix(tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """The special tokens that the tokenizer sets before a text, without the ones it appends.

    Raises:
        ValueError: the tokenizer does more than set tokens around a text.
    """
    probe = "a"
    plain = _tokenize(tokenizer, [probe])[0]
    framed = _tokenize(tokenizer, [probe], add_special_tokens=True)[0]
    for start in range(len(framed) - len(plain) + 1):
        if framed[start : start + len(plain)] == plain:
            return framed[:start]
    raise ValueError(
        f"the tokenizer {type(tokenizer).__name__} encodes '{probe}' as {list(framed)} with and "
        f"{list(plain)} without special tokens, expected the same tokens within; use another "
        "tokenizer."
    )


@dataclass(frozen=True)
class _Encoder:
    """Encodes examples; the fields are arguments of `encode_examples`."""

    tokenizer: PreTrainedTokenizerBase
    chat: str
    delimiter: str
    harness: bool
    rolling: bool

    def encode(self, examples: Sequence[Example]) -> list[EncodedExample]:
        """Prompts and choices, split at the boundary."""
        contexts, texts, templated = list[str](), list[str](), False
        for example in examples:
            for index, choice in enumerate(example.choices):
                prompt = example.contexts[index] if example.contexts else example.prompt
                context, templated = apply_chat(prompt, self.tokenizer, self.chat)
                if self.harness:  # Spaces at the end of a prompt belong to the answer.
                    choice = context[len(context.rstrip()) :] + choice
                    context = context.rstrip()
                contexts.append(context)
                texts.append(
                    context + (choice.removeprefix(self.delimiter) if templated else choice)
                )
        # A chat template writes the special tokens itself.
        special = () if templated else special_prefix(self.tokenizer)
        distinct = list(dict.fromkeys(contexts))
        context_tokens = dict(zip(distinct, _tokenize(self.tokenizer, distinct), strict=True))
        text_tokens = _tokenize(self.tokenizer, texts)
        encoded, start = list[EncodedExample](), 0
        for example in examples:
            end = start + len(example.choices)
            context_rows = [special + context_tokens[text] for text in contexts[start:end]]
            text_rows = [special + tokens for tokens in text_tokens[start:end]]
            encoded.append(self._split(example, *self._begun(context_rows, text_rows, special)))
            start = end
        return encoded

    def _begun(
        self, contexts: list[Tokens], texts: list[Tokens], special: Tokens
    ) -> tuple[list[Tokens], list[Tokens]]:
        """Contexts and texts that start with at least one token that is not scored."""
        begin = self._begin_token()
        if self.harness and self.rolling:
            return [begin] * len(texts), [begin + text for text in texts]
        if self.harness and all(context == special for context in contexts):
            bare = [text[len(special) :] for text in texts]
            return [begin] * len(texts), [begin + text for text in bare]
        if self.harness:
            pairs = zip(contexts, texts, strict=True)
            return contexts, [context + text[len(context) :] for context, text in pairs]
        if not any(contexts):
            return [begin] * len(texts), [begin + text for text in texts]
        return contexts, texts

    def _begin_token(self) -> Tokens:
        """The token before a text that follows nothing, as in lm-evaluation-harness."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return (token,)
        return ()

    def _split(
        self, example: Example, contexts: Sequence[Tokens], texts: Sequence[Tokens]
    ) -> EncodedExample:
        """Cut the texts after the tokens that all of them share with all contexts.

        Where choices have contexts of their own, the rest of each context is read but not scored.
        """
        shared = [common_tokens(pair) for pair in zip(contexts, texts, strict=True)]
        ends = [len(tokens) for tokens in shared]
        start = len(common_tokens(shared))
        # With contexts of their own, the scored tokens follow a context even if start is 0.
        if start == 0 and not (example.contexts and min(ends) > 0):
            raise ValueError(
                f"the prompt {example.prompt[:60]!r} encodes to no token before the answer, "
                "expected at least one; write words in task.prompt."
            )
        choices = tuple(text[start:] for text in texts)
        first_text: dict[Tokens, str] = {}
        for text, tokens in zip(example.choices, choices, strict=True):
            if not tokens:
                raise ValueError(
                    f"the answer {text!r} encodes to no tokens, expected at least one; change "
                    "task.labels."
                )
            if tokens in first_text and not example.contexts and not self.harness:
                raise ValueError(
                    f"the answers {first_text[tokens]!r} and {text!r} encode to the same tokens "
                    f"{list(tokens)}, expected different ones; choose other task.labels or another "
                    "tokenizer."
                )
            first_text[tokens] = text
        skipped = tuple(end - start for end in ends) if example.contexts else ()
        return EncodedExample(texts[0][:start], choices, example.answer, skipped=skipped)


def _sizes(
    encoded: EncodedExample, example: Example, normalize: str, delimiter: str
) -> tuple[float, ...]:
    """Tokens, characters or bytes of the choices, without the delimiter."""
    if normalize == "tokens":
        return tuple(len(encoded.scored(index)) for index in range(len(encoded.choices)))
    texts = [choice.removeprefix(delimiter) for choice in example.choices]
    lengths = [len(text if normalize == "characters" else text.encode()) for text in texts]
    return tuple(float(max(1, length)) for length in lengths)


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], add_special_tokens: bool = False
) -> list[Tokens]:
    rows = tokenizer(
        texts,
        add_special_tokens=add_special_tokens,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    return [tuple(row) for row in rows]
