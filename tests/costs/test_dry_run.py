"""`dry_run=true`: every paper configuration reckoned with, and what is told of it."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hydra.types import RunMode
from models import tiny_llama
from omegaconf import OmegaConf
from rich.console import Console
from runs import make_world, run_sieve
from test_conf_groups import EXPERIMENTS, compose_raw

import sieve.costs.dry_run
from sieve.conversion import to_config
from sieve.costs.dry_run import NAME, dry_run
from sieve.costs.inspection import inspect
from sieve.costs.table import dry_run_table, duration

PAPER = [name for name in EXPERIMENTS if name.startswith("paper_") and name != "paper_search"]
TASKS = ("medqa", "pubmedqa", "hotpotqa", "sst2")
# Seconds of work that a test need not measure: the processor's figures.
CPU = (
    "device.memory_gib=24", "device.bandwidth_gb=10",
    "++device.tflops={float64: .05, float32: .1}",
)  # fmt: skip


_numbers: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def each_model_is_built_once(monkeypatch):
    build = sieve.costs.dry_run.in_numbers

    def once(config):
        key = str((config.model, config.projection.prune_head))
        if key not in _numbers:
            _numbers[key] = build(config)
        return _numbers[key]

    monkeypatch.setattr(sieve.costs.dry_run, "in_numbers", once)


def dried(folder: Path, *overrides: str) -> dict[str, Any]:
    raw = compose_raw(*overrides, "dry_run=true", return_hydra_config=True)
    assert raw.hydra.mode != RunMode.MULTIRUN
    sweeper = OmegaConf.to_container(raw.hydra.sweeper, resolve=True)
    OmegaConf.set_struct(raw, False)
    del raw["hydra"]
    record = dry_run(to_config(raw), folder, sweeper)
    assert json.loads((folder / NAME).read_text()) == json.loads(json.dumps(record))
    return record


def stage(record: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in record["stages"] if row["stage"] == name)


def shown(record: dict[str, Any], width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(dry_run_table(record))
    return console.file.getvalue()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("experiment", PAPER)
def test_a_configuration_of_the_paper_is_reckoned_with(experiment, task, tmp_path):
    record = dried(tmp_path, f"+experiment={experiment}", f"task={task}")
    assert [row["stage"] for row in record["stages"]] == [
        "calibrate", "fit", "search", "evaluate", "export",
    ]  # fmt: skip
    assert stage(record, "search")["evaluations"] == {"expected": 1300, "at_most": 3000}
    assert record["task"]["name"] == task and record["task"]["source"] == "as stated in the task"
    assert stage(record, "calibrate")["tokens"] == pytest.approx(200_000) or task == "medqa"
    assert 0 < record["total"]["hours"] < record["total"]["hours_at_most"]
    large = experiment.endswith("70b")
    assert record["fits"] is not large
    assert ("of them with trainer=fsdp" in record["verdict"]) is large
    if large:  # Beside its share of all weights each holds a pruned model, half of 141 GB.
        count = record["needed_thrifty"]
        assert record["needed"] is None and 16 <= count <= 64
        assert f"it needs {count} of them with trainer=fsdp search=waterfill" in record["verdict"]
    assert "model.architecture" in record["shapes"] and record["shapes"] in shown(record)


def test_all_of_the_paper_s_models_and_tasks_are_there():
    assert len(PAPER) == 3


@pytest.mark.parametrize("experiment", PAPER)
def test_the_paper_s_uniform_pruning_and_what_follows_are_switches(experiment, tmp_path):
    also = ("search=uniform", "recovery=lora", "quantization=int8", "tolerance=.01")
    record = dried(tmp_path, f"+experiment={experiment}", "task=sst2", *also)
    found = stage(record, "search")["evaluations"]
    assert found["expected"] < found["at_most"] <= 30
    assert {"recover", "quantize"} <= {row["stage"] for row in record["stages"]}


@pytest.mark.parametrize("experiment", PAPER)
def test_a_configuration_of_the_paper_is_as_it_says(experiment):
    config = to_config(compose_raw(f"+experiment={experiment}", "task=sst2", "search.job=prepare"))
    assert (config.projection.name, config.projection.storage) == ("output", "plain")
    assert config.calibration.tokens == 200_000 and not config.projection.refit
    assert config.search.levels == [1, 0.9, 0.75, 0.6, 0.5, 0.35, 0.25, 0.2, 0.1, 0.05]
    assert config.task.name == "sst2" and config.task.max_rows["selection"] == 500
    assert config.model.architecture["of"] == config.model.path
    own = config.model.path.lower().replace("-", "").replace(".", "").split("/")[1]
    assert own.startswith(experiment.removeprefix("paper_").replace("_", ""))


def test_without_a_dry_run_a_genetic_search_is_a_sweep():
    raw = compose_raw("+experiment=paper_phi3_mini", return_hydra_config=True)
    assert raw.hydra.mode == RunMode.MULTIRUN
    raw = compose_raw("+task=sst2", "search=genetic", "inspect=true", return_hydra_config=True)
    assert raw.hydra.mode == RunMode.RUN


def test_a_larger_batch_and_fewer_tokens_cost_what_they_should(tmp_path):
    base = ("+experiment=paper_llama3_1_8b", "task=sst2")
    whole, half = dried(tmp_path, *base), dried(tmp_path, *base, "calibration.tokens=100_000")
    ratio = stage(whole, "calibrate")["flops"] / stage(half, "calibrate")["flops"]
    assert ratio == pytest.approx(2, rel=0.01)
    wide = dried(tmp_path, *base, "batch_tokens=16_384")
    parts = [stage(r, "calibrate")["parts_gib"]["activations"] for r in (wide, whole)]
    assert parts[0] == pytest.approx(2 * parts[1])
    thrifty = dried(tmp_path, *base, "calibration.layers_at_once=1")
    moments = [stage(r, "calibrate")["parts_gib"]["moments"] for r in (whole, thrifty)]
    assert moments[0] == pytest.approx(32 * moments[1])
    flops = [stage(r, "calibrate")["flops"] for r in (thrifty, whole)]
    assert 10 * flops[1] < flops[0] < 32 * flops[1]


def test_the_memory_of_a_closed_form_run_is_that_of_weights_moments_and_bank(tmp_path):
    record = dried(tmp_path, "+experiment=paper_llama3_1_8b", "task=sst2")
    gib = 8_030_261_248 * 2 / 2**30
    parts = stage(record, "search")["parts_gib"]
    assert parts["weights"] == pytest.approx(gib)
    # Of plain factors at their break-even rank as many numbers as of the prunable weights.
    assert parts["factors"] == pytest.approx(record["prunable"] * 2 / 2**30, rel=0.01)
    # One stream of 4096 or 1024 for each of seven matrices but those that share an input.
    moments = 32 * (4 * 4096**2) * 4 / 2**30
    assert stage(record, "calibrate")["parts_gib"]["moments"] == pytest.approx(moments, rel=0.001)
    assert record["total"]["cache_gib"] == pytest.approx(moments + parts["bank (host)"], rel=0.001)


def test_more_devices_share_the_passes_but_not_the_solves(tmp_path):
    base = ("+experiment=paper_llama3_1_8b", "task=sst2", "search=uniform")
    one = dried(tmp_path, *base)
    four = dried(tmp_path, *base, "trainer=ddp", "trainer.devices=4")
    assert four["devices"] == 4
    hours = [stage(r, "fit")["hours"] for r in (one, four)]
    assert hours[0] == hours[1]
    assert stage(four, "search")["hours"] == pytest.approx(stage(one, "search")["hours"] / 4)
    assert stage(four, "search")["peak_gib"] == stage(one, "search")["peak_gib"]


def test_devices_that_share_out_the_model_hold_less_of_it(tmp_path):
    base = ("+experiment=paper_llama3_1_8b", "task=sst2", "device=h100", "search=uniform")
    one = dried(tmp_path, *base)
    four = dried(tmp_path, *base, "trainer=fsdp", "trainer.devices=4")
    assert "of each of 4 h100" in four["verdict"] and four["fits"]
    asks = ("quantization=int8", "batch_tokens=4_194_304")
    large = dried(tmp_path, *base[:2], "device=h100", *asks)["verdict"]
    assert "trainer=fsdp search=waterfill quantization=none" in large or "no number" in large
    weights, factors = 8_030_261_248 * 2 / 2**30, one["prunable"] * 2 / 2**30
    saved = stage(one, "search")["peak_gib"] - stage(four, "search")["peak_gib"]
    table = 4096 * 128_256 * 2 / 2**30  # Is put together, as two blocks' factors are.
    assert saved == pytest.approx(0.75 * (weights + factors) - table - factors / 16, rel=0.01)
    moments = [stage(r, "calibrate")["parts_gib"]["moments"] for r in (one, four)]
    assert moments[0] == moments[1]


def test_streaming_holds_a_block_and_its_moments(tmp_path):
    base = ("+experiment=paper_llama3_1_8b", "task=sst2", "projection=loss_aware")
    whole, streamed = dried(tmp_path, *base), dried(tmp_path, *base, "calibration.strategy=stream")
    parts = stage(streamed, "calibrate")["parts_gib"]
    block = whole["prunable"] / 32 * 2 / 2**30
    assert parts["weights of two blocks"] == pytest.approx(2 * block)
    held = stage(whole, "calibrate")["parts_gib"]
    sums = held["moments"] + held["moments of gradients"]
    assert parts["moments of a block"] == pytest.approx(sums / 32)
    assert stage(streamed, "calibrate")["peak_gib"] < 0.15 * stage(whole, "calibrate")["peak_gib"]
    assert stage(streamed, "fit")["parts_gib"]["weights of a matrix"] == pytest.approx(
        4096 * 14336 * 2 / 2**30
    )
    # Blocks run once more on the way back: four passes in place of three.
    ratio = stage(streamed, "calibrate")["flops"] / stage(whole, "calibrate")["flops"]
    assert 1 < ratio < 4 / 3
    kept = dried(tmp_path, *base, "calibration.strategy=stream", "calibration.hidden=memory")
    states = 34 * stage(whole, "calibrate")["tokens"] * 4096 * 2 / 2**30
    assert stage(kept, "calibrate")["host_gib"] == pytest.approx(states)
    assert stage(streamed, "calibrate")["host_gib"] == 0


def test_the_embedded_model_s_rows_are_measured(tmp_path):
    record = dried(tmp_path, "+task=almanac_medicine", *CPU)
    assert record["task"]["source"] == "measured on 192 rows" and record["fits"]
    assert record["shapes"] == "by its config.json"
    assert record["task"]["rows"] == {"calibration": 3000, "selection": 1000, "test": 1500}
    assert record["parameters"] == 4_812_288
    assert "kept" not in record["verdict"] and "fits" in shown(record)


def test_a_shared_prefix_is_reckoned_with_where_rows_are_scored_and_nowhere_else(tmp_path):
    shots = ("+task=almanac_reviews", "task.shots=4", *CPU)
    shared, whole = dried(tmp_path, *shots), dried(tmp_path, *shots, "share_prefix=2")
    for name in ("search", "evaluate"):
        assert stage(shared, name)["tokens"] < 0.5 * stage(whole, name)["tokens"]
        assert stage(shared, name)["hours"] < 0.7 * stage(whole, name)["hours"]
    assert stage(shared, "calibrate")["tokens"] == stage(whole, "calibrate")["tokens"]


def test_a_model_with_a_config_of_its_own_needs_no_stated_shapes(tmp_path):
    model = tiny_llama()
    model.config.save_pretrained(tmp_path / "mine")
    own = ("model=llama3_1_8b", f"model.path={tmp_path / 'mine'}", *CPU)
    record = dried(tmp_path, "+task=sst2", *own)
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
    assert record["shapes"] == "by its config.json"


def test_rows_without_a_tokenizer_are_counted(tmp_path):
    make_world(tmp_path)
    shutil.rmtree(tmp_path / "model")
    task = ("+task=jsonl", f"task.data_dir={tmp_path / 'data'}", "model=llama3_1_8b", *CPU)
    record = dried(tmp_path, *task)
    assert record["task"]["rows"] == {"calibration": 120, "selection": 60, "test": 60}
    assert record["task"]["source"].startswith("rows counted, tokens guessed")


def test_other_sizes_and_a_map_cost_their_passes_over_the_test_rows(tmp_path):
    base = ("+task=almanac_medicine", "model=embedded", *CPU)
    plain = dried(tmp_path, *base)
    asked = dried(tmp_path, *base, "curve=[.5,.1]")
    mapped = dried(tmp_path, *base, "search.bottlenecks=true")
    assert all(row["stage"] != "curve" for row in plain["stages"])
    for record in (asked, mapped):
        assert stage(record, "curve")["rows"] == 3 * plain["task"]["rows"]["test"]
    assert stage(mapped, "search")["rows"] > 2 * stage(plain, "search")["rows"]


def test_another_task_is_evaluated_too(tmp_path):
    base = ("+task=almanac_medicine", "model=embedded", *CPU)
    alone = dried(tmp_path, *base)
    also = dried(tmp_path, *base, "+task@also.other=almanac_reviews")
    assert stage(also, "evaluate")["rows"] == 2 * stage(alone, "evaluate")["rows"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["+task=sst2", "trainer=gpu", "model=llama3_1_8b"], "none is at hand.*device=h100"),
        (["+task=sst2", "model=llama3_1_8b", "device=h100", "device.memory_gib=null"],
         "device=h100 does not say device.memory_gib"),
        (["+task=sst2", "model=llama3_1_8b", "device=h100", "device.utilization=0"],
         "device.utilization is 0.*above 0"),
        (["+task=sst2", "model=llama3_1_8b", "device.accelerator=tpu"], "expected cpu or gpu"),
        (["+task=sst2", "model.path=no/model", "device=h100"],
         "could not be loaded.*or state its shapes as model.architecture"),
        (["+task=sst2", "model=llama3_1_8b", "model.architecture.model_type=lama", "device=h100"],
         "model.architecture of .* does not hold .*'lama'"),
        (["+task=sst2", "model=llama3_1_8b", "device=h100", "task.typical.tokens=-1"],
         "task.typical is .*above 0"),
        (["+task=sst2", "model=llama3_1_8b", "device=h100", "+task.typical.tokns=3"], "tokns"),
        (["+task=trec", "model=llama3_1_8b", "device=h100"],
         "task 'trec' has neither rows at hand nor task.typical"),
    ],
)  # fmt: skip
def test_what_cannot_be_known_is_said_in_one_sentence(overrides, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=sentence) as told:
        dried(tmp_path, *overrides)
    assert str(told.value).count("\n") == 0 and str(told.value).endswith(".")
    assert not (tmp_path / NAME).exists()


def test_inspection_goes_by_stated_shapes_too(tmp_path):
    raw = compose_raw("+task=sst2", "model=phi3_mini", "inspect=true")
    inspect(to_config(raw), tmp_path)
    assert json.loads((tmp_path / "matrices.json").read_text())["parameters"] == 3_821_079_552


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_table_keeps_its_lines_within_the_terminal(width, tmp_path):
    text = shown(dried(tmp_path, "+experiment=paper_llama3_1_70b"), width)
    assert max(map(len, text.splitlines())) <= width
    for name in ("calibrate", "fit", "search", "evaluate", "export", "total"):
        assert sum(line.startswith(name) for line in text.splitlines()) == 1


def test_durations_are_told_in_a_unit_that_reads_well():
    assert [duration(h) for h in (0.003, 0.5, 12, 240)] == ["11 s", "30 min", "12 h", "10 d"]


@pytest.mark.slow
def test_a_dry_run_of_a_genetic_search_is_one_short_job(tmp_path):
    world = make_world(tmp_path)
    (world / "model" / "model.safetensors").unlink()
    done = run_sieve(world, world / "run", "search=genetic", "dry_run=true", *CPU)
    assert done.status == 0, done.stderr
    assert (world / "run" / NAME).is_file() and not (world / "cache").exists()
    assert not (world / "run" / "result.json").exists()
    assert not list(world.rglob("generations.jsonl"))
