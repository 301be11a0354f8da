"""`inspect=data` shows rows, lengths, the first prompt and its answers, without any weights."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from runs import make_world

from sieve.config import Config, ModelConfig
from sieve.costs.rows import inspect_rows
from sieve.tasks import TaskConfig


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = make_world(tmp_path_factory.mktemp("world"))
    (world / "model" / "model.safetensors").unlink()
    return world


def shown(world: Path, model: str = "model", also: dict[str, str] | None = None) -> str:
    task = TaskConfig("toy", data_dir=str(world / "data"), prompt="Say:\\n{text}\nAnswer:")
    console = Console(width=100, file=io.StringIO())
    config = Config(task, ModelConfig(path=str(world / model)))
    for name, prompt in (also or {}).items():
        config.also[name] = TaskConfig(name, data_dir=str(world / "data"), prompt=prompt)
    console.print(inspect_rows(config), soft_wrap=True)
    return console.file.getvalue()


def test_the_first_prompt_is_shown_with_line_breaks_and_its_right_answer(world: Path) -> None:
    text = shown(world)
    assert "Rows: 120 calibration (60 no, 60 yes)" in text
    assert "The longest row has" in text and "; the model reads 128 tokens." in text
    assert "\nSay:\ntrain 0 " in text and "\nAnswer:\n" in text
    assert "\n' no' ← right\n' yes'\n" in text


def test_every_task_of_also_shows_its_rows_and_its_first_test_prompt(world: Path) -> None:
    text = shown(world, also={"other": "Tell me: {text}?"})
    assert "\nalso.other, on which both models are tested too\n" in text
    main, other = text.split("also.other")
    assert "Say:\ntrain 0 " in main and "Tell me" not in main
    assert "Rows: 120 calibration" in other and "The first test row as the model reads it" in other
    assert "\nTell me: test 0 " in other and " ← right" in other


def test_without_a_tokenizer_the_rows_are_shown(world: Path) -> None:
    text = shown(world, "nowhere")
    assert "nowhere is not on this machine, so no row is encoded." in text and "Say:" in text
