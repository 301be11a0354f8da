"""What a run goes by on W&B."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sieve.config import (
    Config,
    LoggerConfig,
    ModelConfig,
    QuantizationConfig,
    RecoveryConfig,
    SearchConfig,
    SweepConfig,
)
from sieve.tasks import TaskConfig
from sieve.tracking import labels

CONFIG = Config(TaskConfig("sst2"), ModelConfig("models/reader-6m"), seed=3)


def test_a_title_tells_runs_apart() -> None:
    assert labels.title(CONFIG, "reader-6m") == "sst2-reader-6m-loss_aware-waterfill-seed3"
    more = replace(CONFIG, recovery=RecoveryConfig("lora"), quantization=QuantizationConfig("int8"))
    assert labels.title(more, "m") == "sst2-m-loss_aware-waterfill-lora-int8-seed3"


def test_tags_are_short_and_stand_once() -> None:
    logger = LoggerConfig(tags=["mine", "sst2", "", "x" * 80])
    found = labels.tags(replace(CONFIG, logger=logger), "reader-6m")
    assert found == ["sst2", "reader-6m", "waterfill", "loss_aware", "mine", "x" * 64]


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ({}, "sieve"),
        ({"search": SearchConfig("evopress")}, "search"),
        ({"search": SearchConfig("genetic"), "recovery": RecoveryConfig("full")}, "recover"),
    ],
)
def test_the_kind_of_job_is_what_takes_its_time(parts: dict[str, Any], kind: str) -> None:
    assert labels.job_type(replace(CONFIG, **parts)) == kind


@pytest.mark.parametrize(
    ("asked", "choices", "job", "swept", "group"),
    [
        ("mine", {"experiment": "generalization"}, "", True, "mine"),
        (None, {"experiment": "generalization"}, "", False, "generalization"),
        (None, {}, "", True, "sweep-2026-11-25_12-00-00"),
        (None, {"experiment": None}, "finalize", True, None),
        (None, {}, "", False, None),
    ],
)
def test_the_group_is_the_one_asked_for_the_experiment_s_or_the_sweep_s(
    asked: str | None, choices: dict[str, Any], job: str, swept: bool, group: str | None
) -> None:
    config = replace(CONFIG, logger=LoggerConfig(group=asked), sweep=SweepConfig(job))
    folder = Path("runs/sst2/multirun/2026-11-25_12-00-00/0")
    assert labels.group(config, choices, folder, swept) == group


def test_settings_name_the_model_even_where_its_path_alone_was_given() -> None:
    settings = labels.logged_settings(CONFIG, "reader-6m")
    assert settings["model"] == {
        **settings["model"],
        "path": "models/reader-6m",
        "name": "reader-6m",
    }
    assert CONFIG.model.name is None
