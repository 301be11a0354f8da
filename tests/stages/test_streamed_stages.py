"""Streaming until fit never loads the whole model."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from runs import arguments, make_world

from sieve import stages
from sieve.config import Config
from sieve.conversion import CONF, register_resolvers, to_config
from sieve.run import run
from sieve.stages import opening

STREAM = "calibration.strategy=stream"
SHARED_PREFIX = ("task.prompt='A line of text: {text} Its label:'", "share_prefix=0.01")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def configured(world: Path, run_dir: Path, *overrides: str) -> Config:
    register_resolvers()
    given = [a for a in arguments(world, run_dir, *overrides) if not a.startswith("hydra.")]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return to_config(compose("config", given))


def refuse(*_: object) -> None:
    pytest.fail("the whole model was loaded")


@pytest.mark.parametrize("overrides", [(), SHARED_PREFIX, ("projection=svd",)])
def test_streaming_until_fit_never_loads_the_whole_model(
    overrides: tuple[str, ...], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "load_backbone", refuse)
    options = (STREAM, "until=fit", *overrides)
    assert run(configured(world, tmp_path, *options), tmp_path) == {}
    assert list((world / "cache").glob("**/index.json"))


def test_a_run_that_trains_loads_the_whole_model_after_the_fit(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "load_backbone", refuse)
    config = configured(world, tmp_path, STREAM, "recovery=lora")
    with stages.opened(config, tmp_path) as session:
        bank = stages.fit(session, stages.calibrate(session))
        with pytest.raises(pytest.fail.Exception, match="whole model"):
            stages.search(session, bank)


@pytest.mark.parametrize(
    ("override", "only_runs"),
    [
        ("projection.refit_target=residual", True),
        ("export=dense", True),
        ("projection.narrow=true", False),  # Narrow layers are made of the dense weights.
        ("projection.tune_steps=2", False),
        ("recovery=lora", False),
        ("quantization=int8", False),
        ("export=gguf", False),
    ],
)
def test_the_whole_model_is_loaded_only_where_a_stage_needs_it(
    override: str, only_runs: bool, world: Path, tmp_path: Path
) -> None:
    assert configured(world, tmp_path, STREAM, override).only_runs == only_runs
