"""The embedded model knows its world, and the demo's run holds what the README says."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from runs import execute, read_result
from transformers import AutoModelForCausalLM, AutoTokenizer

from sieve.conversion import ASSETS, CONF, register_resolvers, to_config
from sieve.data.choices import scoring_batches
from sieve.evaluation.evaluation import score
from sieve.tasks import build_task

EMBEDDED = ASSETS / "embedded"
TASKS = sorted(path.stem for path in (CONF / "task").glob("almanac_*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_the_embedded_model_does_every_task_of_almanac(name: str) -> None:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = to_config(compose("config", [f"+task={name}", "++task.max_rows.test=100"]))
    task = build_task(config.task)
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype="float32").eval()
    batches = scoring_batches(task.splits["test"], AutoTokenizer.from_pretrained(EMBEDDED))
    assert score(model, batches).accuracy >= 0.9


def test_the_embedded_model_is_small_and_in_half_precision() -> None:
    weights = EMBEDDED / "model.safetensors"
    assert weights.stat().st_size <= 16e6
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype="auto")
    assert str(model.dtype) == "torch.float16"
    assert 3e6 <= model.num_parameters() <= 8e6


@pytest.mark.slow
def test_the_demo_ends_with_a_smaller_model_that_does_the_task(tmp_path: Path) -> None:
    settings = [
        "+task=almanac_medicine",
        "++task.max_rows.selection=500",
        "++task.max_rows.test=500",
        "calibration.tokens=10000",
        "projection.refit_tries=1",
        "projection.refit_tokens=6000",
        "speed.repeats=1",
        "speed.prompt_tokens=8",
        "speed.new_tokens=2",
        "logger.mode=offline",
        f"hydra.run.dir={tmp_path / 'run'}",
        f"paths.cache_dir={tmp_path / 'cache'}",
    ]
    done = execute(tmp_path, settings)
    assert done.status == 0, done.stderr
    result = read_result(tmp_path / "run")
    assert result["baseline"]["accuracy"] >= 0.9
    assert result["kept_fraction"]["prunable"] <= 0.1
    assert result["drop"]["point"] <= 0.02
    curve = result["search"]["curve"]
    assert {point["feasible"] for point in curve} == {True, False}
    (chosen,) = (point for point in curve if point["chosen"])
    assert chosen["kept_fraction"] == min(p["kept_fraction"] for p in curve if p["feasible"])
    assert chosen["kept_fraction"] == result["kept_fraction"]["prunable"]
    assert "almanac_medicine needs" in done.stdout
    weights = (tmp_path / "run/export/model.safetensors").stat().st_size
    assert weights == pytest.approx(result["bytes"]["pruned"], rel=0.02)
    assert list((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))
