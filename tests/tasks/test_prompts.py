"""A row becomes exactly the prompt that the template says."""

from typing import Any

import pytest
from task_helpers import make_config

from sieve.tasks.prompts import RowReader, apply_chat, as_text, lookup


def render(row: dict[str, Any], **settings: Any) -> str:
    return RowReader(make_config(**settings)).render(row, "row 3 of train")


class ChatTokenizer:
    """The two attributes of a tokenizer that a chat needs."""

    def __init__(self, chat_template: str | None) -> None:
        self.chat_template = chat_template

    def apply_chat_template(
        self, messages: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool
    ) -> str:
        assert not tokenize and add_generation_prompt and len(messages) == 1
        return f"<{messages[0]['role']}>{messages[0]['content']}<assistant>"


def test_backslash_n_typed_on_a_command_line_is_a_line_break() -> None:
    assert render({"text": "so\\n so"}, prompt=r"A: {text}\nB:") == "A: so\\n so\nB:"


def test_braces_in_texts_and_doubled_in_templates_stay() -> None:
    assert render({"text": "{label}"}, prompt='{{"t": {text}}} {{1}}') == '{"t": {label}} {1}'


def test_a_column_of_any_name_is_a_placeholder() -> None:
    row = {"Review Text": "fine", "текст": "gut", "a-b/c?": "x"}
    assert render(row, prompt="{Review Text}, {текст}, {a-b/c?}") == "fine, gut, x"
    with pytest.raises(ValueError, match=r"no field '\"k\": 1'.*For braces in a prompt write {{"):
        render(row, prompt='{"k": 1}')


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("Review: {text", "has a brace without its pair at '{text', expected"),
        ("Review: text}", "has a brace without its pair at '}', expected"),
        ("Review: {}", "has a brace without its pair at '{}', expected"),
        ("Review: text", "names no column, so that all rows would have the same prompt"),
        ("Review: {{text}}", "names no column"),
        ("{text} {label}", "shows {label}, the column with the answer"),
        ("{text} {gold}", "shows {gold}, the column with the answer"),
    ],
)
def test_a_prompt_that_cannot_work_is_refused_before_rows_are_read(prompt: str, words: str) -> None:
    config = make_config(prompt=prompt, fields={"gold": ["label"]})
    with pytest.raises(ValueError) as caught:
        config.validate()
    assert f"task.prompt is {prompt!r}, which {words}" in str(caught.value) or words in str(
        caught.value
    )


@pytest.mark.parametrize("name", ["../../x", "a/b", ".hidden", "", "two words", "a\\b"])
def test_a_name_that_would_leave_the_folder_of_runs_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="because it names a folder; set task.name=my_task"):
        make_config(name=name).validate()


def test_the_first_present_candidate_wins_and_lists_are_joined() -> None:
    fields = {"context": ["context.contexts", "context"]}
    prompt = "{context}!"
    assert render({"context": {"contexts": ["a", "b"]}}, prompt=prompt, fields=fields) == "a\nb!"
    assert render({"context": "plain"}, prompt=prompt, fields=fields) == "plain!"


def test_a_dotted_path_enters_structs_and_lists_of_structs() -> None:
    assert lookup({"a": {"b": {"c": 1}}}, "a.b.c") == 1
    assert lookup({"a": [{"b": 1}, {"b": 2}]}, "a.b") == [1, 2]
    assert lookup({"a.b": 3}, "a.b") == 3
    assert lookup({"a": "text"}, "a.b") is None
    assert as_text([1, ["x", "y"]]) == "1\nx\ny"


def test_max_words_truncates_and_counts() -> None:
    reader = RowReader(make_config(prompt="{text}.", max_words={"text": 2}))
    assert reader.render({"text": "one  two\nthree"}, "row 1") == "one two."
    assert reader.render({"text": "one  two"}, "row 2") == "one  two."
    assert reader.truncated == {"text": 1}


def test_a_missing_field_says_what_the_row_has() -> None:
    with pytest.raises(ValueError) as caught:
        render({"text": "t", "label": 1, "empty": None}, name="x", prompt="{foo}")
    assert str(caught.value) == (
        "task 'x': row 3 of train has no field 'foo' that the prompt names; "
        "it has 'text', 'label'; set task.prompt or ++task.fields.foo=[column]."
    )


def test_a_struct_where_text_is_expected_is_refused() -> None:
    with pytest.raises(ValueError, match=r"is a struct of contexts.*\[text.contexts\]"):
        render({"text": {"contexts": ["a"]}})


def test_auto_applies_a_chat_template_only_where_there_is_one() -> None:
    with_template: Any = ChatTokenizer("{{ ... }}")
    without: Any = ChatTokenizer(None)
    assert apply_chat("hi", with_template, "auto") == ("<user>hi<assistant>", True)
    assert apply_chat("hi", without, "auto") == ("hi", False)
    assert apply_chat("hi", with_template, "never") == ("hi", False)
    with pytest.raises(ValueError, match="no chat template.*task.chat=never"):
        apply_chat("hi", without, "always")
