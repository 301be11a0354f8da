"""Every file of `conf/` composes into settings that hold, and defaults stand where they should."""

import inspect
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

from sieve.config import Config, ModelConfig
from sieve.conversion import ASSETS, register_resolvers, to_config
from sieve.run import main
from sieve.tasks import TaskConfig, build_task

CONF = Path(__file__).parent.parent / "conf"
TASKS = sorted(path.stem for path in (CONF / "task").glob("[!_]*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("[!_]*.yaml"))
ALMANAC = [name for name in TASKS if name.startswith("almanac_")]
OPTIONS = sorted(
    (path.parent.name, path.stem)
    for path in CONF.glob("*/[!_]*.yaml")
    if path.parent.name not in ("task", "hydra", "experiment")
)
# Groups whose options share a base.
BASED = (
    *("task", "model", "projection", "search", "recovery", "vocabulary", "quantization", "export"),
    *("device", "launcher"),
)
# Of groups that are an experiment's own, the experiment.
COMPARED = {
    "domain": "generalization",
    "subject": "kept",
    "method": "kept",
    "source": "calibration",
}
# What a user has to say beside the name of a task.
NEEDED = {"jsonl": ["task.data_dir=my_data"], "lm_eval": ["task.name=arc_easy"]}
# What the sweeper says to a job of its own.
SAID = {("search", name): ["+sweep.job=prepare"] for name in ("genetic", "genetic_margin", "paper")}


def compose_raw(*overrides: str, **settings: Any) -> DictConfig:
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides), **settings)


def load(*overrides: str) -> Config:
    return to_config(compose_raw(*overrides))


@pytest.mark.parametrize("name", TASKS)
def test_a_task_composes(name: str) -> None:
    config = load(f"+task={name}", *NEEDED.get(name, []))
    assert config.task.name == {"lm_eval": "arc_easy", "jsonl": "my_data"}.get(name, name)
    source = config.task
    assert source.data_dir or source.hub or source.almanac or source.lm_eval


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_an_option_of_a_group_composes(group: str, option: str) -> None:
    said = SAID.get((group, option), [])
    # A domain, or what an experiment compares, is one of an experiment, which has a task.
    experiment = COMPARED.get(group)
    task = f"+experiment={experiment}" if experiment else "+task=sst2"
    assert isinstance(load(task, f"{group}={option}", *said), Config)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_composes_and_takes_another_task(name: str) -> None:
    for task in ([], ["task=sst2"]):
        assert load(f"+experiment={name}", "+sweep.job=prepare", *task).task.name


def test_the_paper_s_search_is_plain_unseeded_and_of_its_levels() -> None:
    raw = compose_raw("+experiment=paper_search", return_hydra_config=True)
    assert (raw.projection.name, raw.projection.storage) == ("output", "plain")
    assert raw.search.levels == [1, 0.9, 0.75, 0.6, 0.5, 0.35, 0.25, 0.2, 0.1, 0.05]
    assert raw.search.seeds == [] and raw.search.confirmation == 0
    sweeper = raw.hydra.sweeper
    assert (sweeper.population, sweeper.crossover, sweeper.mutation) == (100, 0.5, 0.2)
    assert (sweeper.stagnation_generations, sweeper.stagnation_improvement) == (10, 0.05)


def test_every_file_stands_in_a_group() -> None:
    known = {CONF / group / f"{option}.yaml" for group, option in OPTIONS}
    known |= {CONF / "task" / f"{name}.yaml" for name in TASKS}
    known |= {CONF / "config.yaml", *(CONF / group / "_base.yaml" for group in BASED)}
    known |= {CONF / "search" / "_genetic.yaml", CONF / "subject" / "_smollm2.yaml"}
    known |= set((CONF / "hydra").glob("*.yaml")) | set((CONF / "experiment").glob("*.yaml"))
    assert set(CONF.rglob("*.yaml")) == known


@pytest.mark.parametrize("name", ALMANAC)
def test_an_almanac_task_brings_the_embedded_model(name: str) -> None:
    assert load(f"+task={name}").model.path == str(ASSETS / "embedded")


@pytest.mark.slow
def test_the_command_line_has_the_last_word_on_the_model() -> None:
    for overrides in (
        ("+task=almanac_medicine", "model=phi3_mini"),
        ("model=phi3_mini", "+task=almanac_medicine"),
    ):
        assert load(*overrides).model.path == "microsoft/Phi-3-mini-4k-instruct"
    assert load("+task=almanac_medicine", "model.path=mine").model.path == "mine"


def test_a_real_task_brings_the_default_model() -> None:
    assert load("+task=sst2").model.path == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_a_run_without_a_task_is_told_to_add_one() -> None:
    with pytest.raises(ValueError, match=r"add one, such as \+task=almanac_medicine"):
        load()


def test_every_key_of_a_model_can_be_set() -> None:
    defaults = asdict(ModelConfig()) | {"path": "???"}
    assert OmegaConf.to_container(OmegaConf.load(CONF / "model" / "_base.yaml")) == defaults
    assert load("+task=almanac_medicine", "model.dtype=float32").model.dtype == "float32"


def test_jsonl_without_a_folder_is_told_to_name_one() -> None:
    with pytest.raises(ValueError, match=r"set task\.data_dir to a folder"):
        build_task(load("+task=jsonl").task)


@pytest.mark.slow
def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValueError, match="tokns"):
        load("+task=sst2", "+calibration.tokns=3")
    with pytest.raises(ConfigCompositionException, match="tokns"):
        load("+task=sst2", "calibration.tokns=3")


@pytest.mark.parametrize("word", ["guarantee=true", "+guarantee=false", "~guarantee"])
def test_a_removed_key_is_refused_with_what_to_write_instead(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sieve", "+task=sst2", word])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    environment = dict(os.environ)
    with pytest.raises(SystemExit, match="1"):
        main()
    said = r"the setting guarantee .*confidence=0\.9 instead.*=null instead of g.*=false"
    assert re.match(said, capsys.readouterr().err)
    assert dict(os.environ) == environment


def test_a_removed_key_of_a_file_is_refused_with_what_to_write_instead() -> None:
    with pytest.raises(ValueError, match=r"write confidence=0\.9 instead of guarantee=true"):
        load("+task=sst2", "+guarantee=true")


def test_the_defaults_of_yaml_and_of_the_dataclasses_are_the_same() -> None:
    composed = asdict(load("+task=sst2"))
    defaults = asdict(Config(task=TaskConfig(name="sst2")))
    assert set(composed) == set(defaults)
    # A dataclass has no say in these: they name a thing, a place or a machine.
    chosen = {"task", "model", "trainer", "paths"}
    for name in set(defaults) - chosen:
        assert composed[name] == defaults[name], name


def test_every_trainer_is_made_of_keywords_of_lightning() -> None:
    from lightning import Trainer

    known = set(inspect.signature(Trainer.__init__).parameters) | {"_target_"}
    for path in (CONF / "trainer").glob("*.yaml"):
        assert set(OmegaConf.load(path)) <= known, path.name


def test_runs_stand_under_their_task() -> None:
    raw = compose_raw("+task=sst2", "hydra.job.num=0", return_hydra_config=True)
    assert Path(raw.hydra.run.dir).parent == Path("runs/sst2")


@pytest.mark.parametrize(
    "overrides",
    [
        ["+experiment=kept", "recovery=lora"],
        ["+experiment=paper_phi3_mini", "search=uniform"],
        ["+task=sst2", "search=paper", "+sweep.job=prepare"],
    ],
)
def test_what_is_compared_with_the_paper_takes_the_point_estimate(overrides: list[str]) -> None:
    assert load(*overrides).confidence is None


@pytest.mark.parametrize(
    ("overrides", "rows"),
    [
        # About .1 · (1.2816 / .01)² rows, so that the bound of the drop is .01 above the drop.
        ((), pytest.approx(1_642, rel=0.02)),
        (("tolerance=.05",), pytest.approx(263, rel=0.06)),
        (("tolerance=.001",), 4_000),
        (("tolerance=0",), 4_000),
        (("confidence=null",), 0),
        (("search.rows=500",), 500),
        (("task.selection_rows=300",), 300),
        # A row can lose ten times the tolerance's unit, so this is as ε = .05 of an accuracy.
        (
            ("tolerance=.5", "+task.metric={_target_:math.hypot,best:10}"),
            pytest.approx(263, rel=0.06),
        ),
    ],
)
def test_a_confidence_asks_for_the_selection_rows_that_it_needs(
    overrides: tuple[str, ...], rows: int
) -> None:
    assert load("+task=sst2", *overrides).task.selection_rows == rows
    assert load("+task=perplexity", "task.name=texts").task.selection_rows == 0
