"""task.json renders a row as the run did, and does not say where the data is."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from task_helpers import make_config, write_splits

from sieve.exports.task_file import find_export, read_task, write_task
from sieve.tasks import build_task


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 2, "task": {}}',
        '{"format": 1, "task": {"nam": "x"}}',
        '{"format": 1, "task": {"name": "x", "kind": "sorting"}}',
    ],
)
def test_a_damaged_task_file_gets_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text(text)
    with pytest.raises(ValueError, match="is invalid .*; export the model again"):
        read_task(tmp_path)


def test_the_task_file_does_not_say_where_the_data_is(tmp_path: Path) -> None:
    write_task(make_config(tmp_path / "data"), ("negative", "positive"), tmp_path)
    assert str(tmp_path) not in (tmp_path / "task.json").read_text()
    held = json.loads((tmp_path / "task.json").read_text())["task"]
    assert not {"hub", "data_dir", "cache_dir", "almanac"} & set(held)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("prompt", 3, "prompt is 3, expected a str"),
        ("normalize", "no", "task.normalize is 'no', expected one of none, tokens"),
        ("labels", ["a", 1], "labels and fields must be lists of texts"),
        ("fields", {"text": "sentence"}, "labels and fields must be lists of texts"),
        ("max_words", {"text": "9"}, "max_words is {'text': '9'}, expected whole numbers"),
        ("labels", [], "labels is [], expected at least two"),
        ("chat", "maybe", "task.chat is 'maybe'"),
    ],
)
def test_a_setting_of_the_wrong_type_is_refused(
    key: str, value: Any, told: str, tmp_path: Path
) -> None:
    write_task(make_config(), ("negative", "positive"), tmp_path)
    held = json.loads((tmp_path / "task.json").read_text())
    held["task"][key] = value
    (tmp_path / "task.json").write_text(json.dumps(held))
    with pytest.raises(ValueError, match=re.escape(told)):
        read_task(tmp_path)


CHOICES: dict[str, Any] = {"kind": "multiple_choice", "prompt": "{text}\n{options}\nAnswer:"}
TWO = ["yes", "no"]


@pytest.mark.parametrize(
    ("settings", "row", "answers"),
    [
        ({}, {"text": "#"}, {"label": (0, 1)}),
        ({"labels": []}, {"text": "#"}, {"label": ("good", "bad")}),
        ({"max_words": {"text": 2}}, {"text": "# a b c"}, {"label": (0, 1)}),
        ({"fields": {"text": ["sentence"]}}, {"text": "a", "sentence": "#"}, {"label": (0, 1)}),
        ({"fields": {"text": ["c.parts"]}}, {"c": {"parts": ["#", "b"]}}, {"label": (0, 1)}),
        ({"prompt": "{text}\\n{{x}}:", "delimiter": ""}, {"text": "#"}, {"label": (0, 1)}),
        (CHOICES, {"text": "#", "options": TWO}, {"answer_idx": (0, 1)}),
        ({**CHOICES, "answer_style": "text"}, {"text": "#", "options": TWO}, {"answer_idx": TWO}),
        (
            {**CHOICES, "option_columns": ["a", "b"], "fields": {"b": ["second"]}},
            {"text": "#", "a": "yes", "second": "no"},
            {"answer_idx": ("A", "B")},
        ),
    ],
)
def test_the_task_file_renders_a_row_as_the_run_did(
    settings: dict[str, Any], row: dict[str, Any], answers: dict[str, Any], tmp_path: Path
) -> None:
    def asked(split: str) -> list[dict[str, Any]]:
        return [json.loads(json.dumps(row).replace("#", f"{split}{n}")) for n in range(4)]

    def labelled(split: str) -> list[dict[str, Any]]:
        [(name, values)] = answers.items()
        return [one | {name: values[n % 2]} for n, one in enumerate(asked(split))]

    splits = {name: labelled(name) for name in ("train", "validation", "test")}
    config = make_config(write_splits(tmp_path / "data", **splits), **settings)
    task = build_task(config)
    write_task(config, task.labels, tmp_path)
    held = read_task(tmp_path)
    assert len(task.splits["test"]) == 4
    for one, example in zip(asked("test"), task.splits["test"], strict=True):
        assert replace(held.question(one), answer=example.answer) == example


def test_the_task_file_has_no_metric_and_imports_none(tmp_path: Path) -> None:
    config = make_config(metric={"_target_": "no.such.module"}, judge={"url": "u", "model": "m"})
    write_task(config, ("negative", "positive"), tmp_path)
    held = (tmp_path / "task.json").read_text("utf-8")
    assert "no.such.module" not in held and "judge" not in held
    assert read_task(tmp_path).config.metric is None


def test_a_run_stands_for_its_export_and_the_newest_of_several_is_named(tmp_path: Path) -> None:
    runs = [tmp_path / "toy" / day for day in ("2026-01-01", "2026-01-02")]
    for run in runs:
        (run / "export").mkdir(parents=True)
        write_task(make_config(), ("no", "yes"), run / "export")
    assert find_export(runs[0]) == find_export(runs[0] / "export") == runs[0] / "export"
    with pytest.raises(ValueError, match=f"2 runs.*the newest is {runs[1]}/export"):
        find_export(tmp_path / "toy")
    assert find_export(tmp_path) == tmp_path  # `read_task` says what is missing.
