"""Tuning a dense model: the adapter is what a run prunes, and held-out rows choose its state."""

from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from runs import arguments, make_world, write_rows

from sieve.config import Config
from sieve.conversion import CONF, register_resolvers, to_config
from sieve.data.batches import count_rows
from sieve.evaluation.evaluation import score
from sieve.stages import opened
from sieve.tune import DEFAULTS, divided, main, tune

QUICK = ("recovery.steps=60", "recovery.check_every=20", "recovery.learning_rate=1e-2")


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A tiny model, and reviews whose only word tells the label."""
    make_world(tmp_path)
    for split, number in (("train", 100), ("validation", 40), ("test", 40)):
        words = [("good", "yes"), ("bad", "no")]
        rows = [(f"{split} {i} {words[i % 2][0]}", words[i % 2][1]) for i in range(number)]
        path = tmp_path / "data" / f"{split}.jsonl"
        write_rows(path, [{"text": text, "label": label} for text, label in rows])
    return tmp_path


def config_of(world: Path, *overrides: str) -> Config:
    given = [a for a in arguments(world, world) if not a.startswith(("hydra", "logger"))]
    register_resolvers()
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return to_config(compose("config", [*DEFAULTS, *given, *QUICK, *overrides]))


def test_a_run_prunes_the_tuned_model_that_was_reported(world: Path) -> None:
    config = config_of(world)
    before, after = tune(config, world / "adapter")["selection"]
    assert after > max(before, 0.9)
    adapted = replace(config, model=replace(config.model, adapter=str(world / "adapter")))
    with opened(adapted, world / "run") as run:
        assert score(run.backbone.model, run.data.scoring("selection")).accuracy == after


def test_rows_that_choose_the_step_are_not_trained_on(world: Path) -> None:
    with opened(config_of(world), world / "run") as run:
        held_out, batches = divided(run)
        assert sum(len(batch.examples) for batch in held_out) == 15
        assert count_rows(batches) == len(run.task.splits["calibration"]) - 15
        scored = {tuple(row[row > 0].tolist()) for batch in held_out for row in batch.input_ids}
        trained = {tuple(row[row > 0].tolist()) for batch in batches for row in batch.input_ids}
        assert not scored & trained


@pytest.mark.slow
def test_training_without_gain_saves_nothing(world: Path) -> None:
    config = config_of(world)
    frozen = replace(config, recovery=replace(config.recovery, learning_rate=0.0))
    with pytest.raises(ValueError, match="raise recovery.steps"):
        tune(frozen, world / "adapter")
    assert not (world / "adapter" / "adapter_config.json").exists()


def test_an_adapter_is_not_overwritten(world: Path) -> None:
    (world / "adapter").mkdir()
    (world / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="choose another folder"):
        tune(config_of(world), world / "adapter")


def test_only_an_adapter_can_be_tuned(world: Path) -> None:
    with pytest.raises(ValueError, match="expected lora"):
        tune(config_of(world, "recovery.method=full"), world / "adapter")


def test_there_is_nothing_to_tune_on_without_labels(world: Path) -> None:
    with pytest.raises(ValueError, match="agreement reads none"):
        tune(config_of(world, "task.metric=agreement"), world / "adapter")


def test_a_setting_in_place_of_the_folder_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["tune", "+task=jsonl", "model.path=m"])
    with pytest.raises(SystemExit):
        main()
    assert "expected the folder of the adapter first, got +task=jsonl" in capsys.readouterr().err
