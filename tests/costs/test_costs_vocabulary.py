"""`dry_run=true` and `inspect=true` say how many tokens vocabulary=task keeps."""

import json
from pathlib import Path

import pytest
from forecasting import CPU, forecast, text_of
from runs import arguments, make_world, write_rows
from sessions import session
from test_conf_groups import compose_raw

from sieve.conversion import to_config
from sieve.costs.inspection import NAME, inspect

TASK = "vocabulary=task"
FREQUENT = (TASK, "vocabulary.min_rows=1000", "vocabulary.fill=0")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def sentence(world: Path) -> str:
    """The expected sentence, from a run that loads the model."""
    with session(world, TASK) as run:
        assert run.cut is not None
        dense, parameters = run.cut.parameters, run.backbone.parameters
        tokens, dense_tokens = len(run.cut.stays), len(run.cut.original.tokenizer)
    assert tokens < dense_tokens
    return (
        f"The whole model has {parameters:,} of {dense:,} parameters before it is pruned, "
        f"{100 * (1 - parameters / dense):.1f} points fewer: its vocabulary keeps {tokens} of "
        f"{dense_tokens} tokens."
    )


def _settings(world: Path, *overrides: str) -> list[str]:
    settings = arguments(world, world / "run", *overrides)
    return [setting for setting in settings if not setting.startswith("hydra.")]


@pytest.mark.slow
def test_a_dry_run_counts_the_tokens_of_the_run(world: Path, sentence: str) -> None:
    record = forecast(world, *CPU, *_settings(world, TASK))
    assert record["vocabulary"] == sentence and sentence in text_of(record, width=400)
    assert forecast(world, *CPU, *_settings(world))["vocabulary"] == ""


@pytest.mark.slow
def test_a_dry_run_leaves_out_the_tokens_of_few_rows(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    rows = [{"text": f"{i} film", "label": ["no", "yes"][i % 2]} for i in range(120)]
    write_rows(world / "data" / "train.jsonl", rows)
    with session(world, *FREQUENT) as run:
        assert run.cut is not None
        kept = f"its vocabulary keeps {len(run.cut.stays)} of"
    sentence = forecast(world, *CPU, *_settings(world, *FREQUENT))["vocabulary"]
    every = forecast(world, *CPU, *_settings(world, TASK, FREQUENT[-1]))["vocabulary"]
    assert kept in sentence and kept not in every


def test_an_inspection_counts_the_tokens_of_the_run(world: Path, sentence: str) -> None:
    inspect(to_config(compose_raw(*_settings(world, TASK, "inspect=true"))), world)
    assert json.loads((world / NAME).read_text())["vocabulary"] == sentence


def test_rows_that_are_elsewhere_are_not_downloaded(world: Path) -> None:
    task = ("+task=medqa", f"model.path={world / 'model'}", TASK)
    record = forecast(world, *CPU, *task)
    assert "not known, because the rows or the tokenizer are not on" in record["vocabulary"]
