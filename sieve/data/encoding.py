"""From an example to token ids: prompt and answers encoded together, split at the boundary.

As in lm-evaluation-harness an answer's tokens are those of prompt + answer that follow the
prompt's. Where the tokenizer merges across the boundary, all choices are scored from the last
token boundary that the prompt and all of them share, which is exact for each whole string.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from sieve.tasks.example import Example
from sieve.tasks.prompts import apply_chat

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class EncodedExample:
    """A prompt's tokens and those of each continuation."""

    prefix: Tokens  # at least one token, special tokens included, but where each choice skips some
    choices: tuple[Tokens, ...]  # at least one token each, all different
    answer: int
    sizes: tuple[float, ...] = ()  # what a choice's log-likelihood is divided by; () is nothing
    skipped: tuple[int, ...] = ()  # tokens at a choice's begin that are not scored; () is none

    def scored(self, choice: int) -> Tokens:
        """The tokens of a choice that count."""
        return self.choices[choice][self.skipped[choice] if self.skipped else 0 :]

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

    def windows(self, length: int | None) -> list["EncodedExample"]:
        """Text as rows of at most `length` tokens, in which each of its tokens is predicted once.

        As in lm-evaluation-harness: the last row is filled up with what stands before it.
        """
        whole, begin = self.prefix + self.choices[0], len(self.prefix)
        if length is None or len(whole) - 1 <= length:
            return [self]
        parts = []
        for start in range(begin, len(whole), length):
            end = min(start + length, len(whole))
            first = max(0, end - 1 - length)
            parts.append(EncodedExample(whole[first:start], (whole[start:end],), 0))
        return parts

    def behind(self, length: int) -> "EncodedExample":
        """The same with rows of at most `length` tokens: each choice's prompt loses its first ones.

        Choices that are shorter than others then follow more of the prompt.
        """
        wholes = [self.prefix + choice for choice in self.choices]
        if max(map(len, wholes)) - 1 <= length:
            return self
        rows = tuple(whole[-(length + 1) :] for whole in wholes)
        scored = [len(self.scored(index)) for index in range(len(rows))]
        skipped = tuple(len(row) - count for row, count in zip(rows, scored, strict=True))
        return replace(self, prefix=(), choices=rows, skipped=skipped)

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
    normalize: str = "none",
    cut: Callable[[int], None] | None = None,
    harness: bool = False,
    rolling: bool = False,
) -> list[EncodedExample]:
    """Encode prompts and choices; no end-of-text token is appended.

    cut: is told how many prompts were too long and had a field shortened, those whose example says
    which (`Example.cut`). normalize: what log-likelihoods are to be divided by, see
    `scoring_batches`. harness: as lm-evaluation-harness does it: an answer begins behind as many
    tokens as its context has alone; too long a context loses its beginning; rolling: of text, which
    the harness lets a begin token of its own precede.

    Raises:
        ValueError: rows are longer than `context_length`, or two choices encode alike, or one to
            nothing.
    """
    if not examples:
        return []
    renderer = _Renderer(tokenizer, chat, delimiter, harness, rolling)
    encoded = renderer.encode(examples)
    if harness and context_length is not None and not rolling:
        encoded = [one.behind(context_length) for one in encoded]
    if context_length is not None:
        encoded = _fitted(renderer, examples, encoded, context_length, cut)
        _check_lengths(encoded, context_length)
    if normalize == "none":
        return encoded
    return [
        replace(one, sizes=_sizes(one, example, normalize, delimiter))
        for one, example in zip(encoded, examples, strict=True)
    ]


class _Renderer:
    """Encodes examples for a tokenizer, with its chat template where it is to be used."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat: str,
        delimiter: str,
        harness: bool = False,
        rolling: bool = False,
    ) -> None:
        self.tokenizer, self.chat, self.delimiter = tokenizer, chat, delimiter
        self.harness, self.rolling = harness, rolling

    def encode(self, examples: Sequence[Example]) -> list[EncodedExample]:
        """Prompts and choices, split at the boundary."""
        contexts, wholes, templated = list[str](), list[str](), False
        for example in examples:
            for index, choice in enumerate(example.choices):
                text = example.contexts[index] if example.contexts else example.prompt
                context, templated = apply_chat(text, self.tokenizer, self.chat)
                if self.harness:  # Spaces at its end belong to the answer.
                    choice = context[len(context.rstrip()) :] + choice
                    context = context.rstrip()
                contexts.append(context)
                bare = choice.removeprefix(self.delimiter) if templated else choice
                wholes.append(context + bare)
        # A chat template writes the special tokens itself.
        special = () if templated else special_prefix(self.tokenizer)
        context_ids = _each(self.tokenizer, contexts)
        whole_ids = iter(_encode(self.tokenizer, wholes))
        encoded, start = list[EncodedExample](), 0
        for example in examples:
            count = len(example.choices)
            own = [special + context_ids[text] for text in contexts[start : start + count]]
            whole = [special + next(whole_ids) for _ in range(count)]
            start += count
            if self.harness:
                own, whole = self._as_harness(own, whole, len(special))
            elif not any(own):
                first = self._first()
                own, whole = [first], [first + ids for ids in whole]
            encoded.append(_split(example, own, whole, self.harness))
        return encoded

    def _as_harness(
        self, contexts: list[Tokens], wholes: list[Tokens], special: int
    ) -> tuple[list[Tokens], list[Tokens]]:
        """What is fed, and what of it is context, as the harness cuts it."""
        first = self._first()
        if self.rolling:
            return [first] * len(wholes), [first + whole for whole in wholes]
        if all(len(context) == special for context in contexts):
            return [first] * len(wholes), [first + whole[special:] for whole in wholes]
        fed = [c + whole[len(c) :] for c, whole in zip(contexts, wholes, strict=True)]
        return contexts, fed

    def _first(self) -> Tokens:
        """What stands before a text that follows nothing, as in lm-evaluation-harness."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return (token,)
        return ()


def _each(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> dict[str, Tokens]:
    """The tokens of every text; those that stand there often are encoded once."""
    distinct = list(dict.fromkeys(texts))
    return dict(zip(distinct, _encode(tokenizer, distinct), strict=True))


def _fitted(
    renderer: _Renderer,
    examples: Sequence[Example],
    encoded: list[EncodedExample],
    limit: int,
    cut: Callable[[int], None] | None,
) -> list[EncodedExample]:
    """Shorten the field that an example names until it fits; others stay as they are."""
    result, changed = list(encoded), 0
    for index, example in enumerate(examples):
        while (length := _length(result[index])) > limit:
            shorter = shortened(example, length, limit)
            if shorter is None:
                break
            changed += result[index] is encoded[index]
            example = shorter
            (result[index],) = renderer.encode([example])
    if changed and cut is not None:
        cut(changed)
    return result


def shortened(example: Example, length: int, limit: int) -> Example | None:
    """An example of `length` tokens with its field cut towards `limit`; None where none is left."""
    if example.cut is None:
        return None
    start, end = example.cut
    # Characters go in proportion to tokens, and some more, so that few steps are taken.
    keep = int((end - start) * max(0.0, 1 - 1.05 * (length - limit) / length)) - 1
    if keep < 1:
        return None
    prompt = example.prompt[: start + keep] + example.prompt[end:]
    return replace(example, prompt=prompt, cut=(start, start + keep))


def _length(encoded: EncodedExample) -> int:
    return max(map(len, encoded.rows()))


def _sizes(
    encoded: EncodedExample, example: Example, normalize: str, delimiter: str
) -> tuple[float, ...]:
    """Tokens, characters or bytes of the choices, a delimiter not counted."""
    if normalize == "tokens":
        skipped = encoded.skipped or (0,) * len(encoded.choices)
        return tuple(len(c) - s for c, s in zip(encoded.choices, skipped, strict=True))
    texts = [choice.removeprefix(delimiter) for choice in example.choices]
    lengths = [len(t if normalize == "characters" else t.encode()) for t in texts]
    return tuple(float(max(1, length)) for length in lengths)


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


def _split(
    example: Example, contexts: Sequence[Tokens], wholes: Sequence[Tokens], alike: bool = False
) -> EncodedExample:
    """Cut context + choice after the tokens that all contexts and every whole text share.

    Where choices have contexts of their own, the rest of these is fed but not scored. alike: two
    choices may be the same.
    """
    ends = [_shared(c, whole) for c, whole in zip(_cycled(contexts, wholes), wholes, strict=True)]
    start = min(_shared(wholes[0][: ends[0]], w[:end]) for w, end in zip(wholes, ends, strict=True))
    alone = example.contexts and min(ends) > 0  # What is scored follows a context of its own.
    if start == 0 and not alone:
        raise ValueError(
            f"the prompt {example.prompt[:60]!r} encodes to no token that stands before the "
            "answer, expected at least one; write words in task.prompt."
        )
    choices = tuple(whole[start:] for whole in wholes)
    skipped = tuple(end - start for end in ends) if example.contexts else ()
    seen: dict[Tokens, str] = {}
    for text, tokens in zip(example.choices, choices, strict=True):
        if not tokens:
            raise ValueError(
                f"the answer {text!r} encodes to no tokens, expected at least one; mend "
                "task.labels."
            )
        if tokens in seen and not example.contexts and not alike:
            raise ValueError(
                f"the answers {seen[tokens]!r} and {text!r} encode to the same tokens "
                f"{list(tokens)}, expected different ones; choose other task.labels or another "
                "tokenizer."
            )
        seen[tokens] = text
    return EncodedExample(wholes[0][:start], choices, example.answer, skipped=skipped)


def _cycled(contexts: Sequence[Tokens], wholes: Sequence[Tokens]) -> list[Tokens]:
    return [contexts[index % len(contexts)] for index in range(len(wholes))]


def _shared(left: Tokens, right: Tokens) -> int:
    """Length of the common beginning."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


def _check_lengths(encoded: Sequence[EncodedExample], limit: int) -> None:
    lengths = [_length(example) for example in encoded]
    longest = max(lengths)
    if longest > limit:
        count = sum(length > limit for length in lengths)
        raise ValueError(
            f"{count} of {len(encoded)} prompts are longer than the model's context, the longest "
            f"has {longest} tokens, expected at most {limit}; shorten a field that the prompt "
            "names, as task.truncate=FIELD or ++task.max_words.FIELD=100, or use a model with a "
            "longer context."
        )
