"""Prompt and answers are encoded together, with special tokens once, and split at the boundary."""

import pytest
from token_helpers import make_examples, make_tokenizer

from sieve.data.encoding import EncodedExample, encode_examples, special_prefix
from sieve.tasks import Example

CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def whole(encoded: EncodedExample, choice: int) -> list[int]:
    return list(encoded.prefix + encoded.choices[choice])


@pytest.mark.parametrize(("begin", "end"), [(True, False), (True, True), (False, True)])
def test_begin_tokens_come_once_and_end_tokens_never(begin: bool, end: bool) -> None:
    tokenizer = make_tokenizer(begin, end)
    (encoded,) = encode_examples(make_examples(" positive", count=1), tokenizer)
    ids = whole(encoded, 0)
    assert ids.count(0) == int(begin) and ids[0] == 0 or not begin
    assert 1 not in ids
    assert special_prefix(tokenizer) == ((0,) if begin else ())
    assert tokenizer.decode(ids[begin:]) == "Review: the\nSentiment: positive"


def test_answer_tokens_are_what_follows_the_prompt() -> None:
    tokenizer = make_tokenizer()
    example = make_examples(" positive", " negative", count=1)[0]
    (encoded,) = encode_examples([example], tokenizer)
    assert list(encoded.prefix) == tokenizer(example.prompt)["input_ids"]
    assert [tokenizer.decode(choice) for choice in encoded.choices] == [" positive", " negative"]


@pytest.mark.parametrize("choices", [(" yes", " bad", "!"), ("!", " bad", " yes")])
def test_a_merge_across_the_boundary_moves_it_back_for_all_choices(
    choices: tuple[str, ...],
) -> None:
    tokenizer = make_tokenizer(merge_across_words=True)
    example = Example("Question: who was it?\nAnswer:", choices, 0)
    prompt = tokenizer(example.prompt)["input_ids"]
    merged = tokenizer(example.prompt + " yes")["input_ids"]
    assert merged[: len(prompt)] != prompt, "the corpus must make the boundary merge"
    (encoded,) = encode_examples([example], tokenizer)
    assert len(encoded.prefix) < len(prompt)
    for index, choice in enumerate(example.choices):
        assert whole(encoded, index) == tokenizer(example.prompt + choice)["input_ids"]


def test_single_token_labels_need_one_row_the_prompt() -> None:
    example = EncodedExample((1, 2), ((7,), (8,), (9,)), 0)
    assert example.rows() == [(1, 2)]
    assert example.answer_row() == (1, 2)


def test_rows_are_the_distinct_maximal_beginnings() -> None:
    example = EncodedExample((1,), ((5, 6, 7), (5, 6, 8), (5, 9), (4,), (3, 3)), 2)
    assert example.rows() == [(1, 5, 6), (1, 3)]
    assert example.answer_row() == (1, 5)


def test_a_chat_template_adds_its_own_special_tokens_and_drops_the_delimiter() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT
    example = make_examples(" positive", " negative", count=1)[0]
    (encoded,) = encode_examples([example], tokenizer, chat="auto")
    ids = whole(encoded, 0)
    assert ids.count(0) == 1
    assert tokenizer.decode(ids[1:]) == "[user] Review: the\nSentiment: [assistant] positive"
    (plain,) = encode_examples([example], tokenizer, chat="never")
    assert tokenizer.decode(whole(plain, 0)[1:]) == "Review: the\nSentiment: positive"


def test_labels_may_start_alike_but_equal_ones_are_refused() -> None:
    tokenizer = make_tokenizer()
    (encoded,) = encode_examples(make_examples(" positive", " positive not", count=1), tokenizer)
    assert encoded.choices[0][0] == encoded.choices[1][0]
    with pytest.raises(ValueError, match="' yes' and ' yes' encode to the same tokens"):
        encode_examples(make_examples(" yes", " no", " yes", count=1), tokenizer)


def test_an_empty_prompt_becomes_a_begin_or_end_token_or_is_refused() -> None:
    example = Example("", (" yes", " no"), 0)
    assert len(encode_examples([example], make_tokenizer())) == 1
    tokenizer = make_tokenizer(begin=False)
    (encoded,) = encode_examples([example], tokenizer)
    assert encoded.prefix == (tokenizer.bos_token_id,)
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(ValueError, match="encodes to no token before the answer"):
        encode_examples([example], tokenizer)


def test_prompts_longer_than_the_context_are_counted() -> None:
    tokenizer = make_tokenizer()
    examples = make_examples(" positive", " negative", count=7)
    lengths = [max(map(len, e.rows())) for e in encode_examples(examples, tokenizer)]
    limit = sorted(lengths)[4]
    encode_examples(examples, tokenizer, context_length=max(lengths))
    with pytest.raises(ValueError) as caught:
        encode_examples(examples, tokenizer, context_length=limit)
    message = str(caught.value)
    assert message.startswith("2 of 7 prompts are longer than the model's context")
    assert f"longest has {max(lengths)} tokens, expected at most {limit};" in message
    assert "task.max_words" in message
