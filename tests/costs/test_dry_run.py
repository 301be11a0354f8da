"""`dry_run=true` forecasts every configuration of the paper, and shows the forecast."""

import json
import re

import pytest
from forecasting import CPU, forecast, stage, text_of
from hydra.types import RunMode
from models import tiny_llama
from runs import make_world, run_sieve
from test_conf_groups import EXPERIMENTS, compose_raw

from sieve.bank.genome import PivotedStorage
from sieve.config import DeviceConfig
from sieve.conversion import to_config
from sieve.costs.dry_run import NAME
from sieve.costs.inspection import inspect
from sieve.costs.plan import KEPT

PAPER = [name for name in EXPERIMENTS if name.startswith("paper_") and name != "paper_search"]
TASKS = ("medqa", "hotpotqa")


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("experiment", PAPER)
def test_a_configuration_of_the_paper_is_forecast(experiment, task, tmp_path):
    record = forecast(tmp_path, f"+experiment={experiment}", f"task={task}")
    stages = [row["name"] for row in record["stages"]]
    assert stages == ["calibrate", "fit", "search", "evaluate", "export"]
    assert stage(record, "search")["genomes"] == (1300, 3000)
    assert record["task"]["name"] == task and record["task"]["source"] == "stated in task.typical"
    assert 0 < record["total"]["seconds"] < record["total"]["most_seconds"]
    large = experiment.endswith("70b")
    assert record["fits"] is not large
    assert ("with trainer=fsdp" in record["verdict"]) is large
    if large:
        # A share of the weights and of the factors: 141 GB and as much again in the search.
        sentence = r"It fits on (\d+) × h100 with trainer=fsdp calibration"
        assert 4 <= int(re.search(sentence, record["verdict"])[1]) <= 8
    assert "Shapes: stated in model.architecture." in text_of(record)


def test_all_three_models_of_the_paper_are_configured():
    assert len(PAPER) == 3


@pytest.mark.parametrize("experiment", PAPER)
def test_uniform_pruning_and_later_stages_are_forecast(experiment, tmp_path):
    also = ("search=uniform", "recovery=lora", "quantization=int8", "tolerance=.01")
    record = forecast(tmp_path, f"+experiment={experiment}", "task=sst2", *also)
    expected, most = stage(record, "search")["genomes"]
    assert expected < most <= 30
    assert "recover" in {row["name"] for row in record["stages"]}


@pytest.mark.parametrize("experiment", PAPER)
def test_a_configuration_has_the_settings_of_the_paper(experiment):
    config = to_config(compose_raw(f"+experiment={experiment}", "task=sst2", "+sweep.job=prepare"))
    assert (config.projection.name, config.projection.storage) == ("output", "plain")
    assert config.calibration.tokens == 200_000 and not config.projection.refit
    assert config.search.levels == [1, 0.9, 0.75, 0.6, 0.5, 0.35, 0.25, 0.2, 0.1, 0.05]
    assert config.task.name == "sst2" and config.task.max_rows["selection"] == 500
    assert config.model.architecture["of"] == config.model.path
    own = config.model.path.lower().replace("-", "").replace(".", "").split("/")[1]
    assert own.startswith(experiment.removeprefix("paper_").replace("_", ""))


def test_a_genetic_search_is_a_sweep_unless_it_is_a_dry_run():
    raw = compose_raw("+experiment=paper_phi3_mini", return_hydra_config=True)
    assert raw.hydra.mode == RunMode.MULTIRUN
    raw = compose_raw("+task=sst2", "search=genetic", "inspect=true", return_hydra_config=True)
    assert raw.hydra.mode == RunMode.RUN


@pytest.mark.slow
def test_costs_grow_with_tokens_batches_and_passes(tmp_path):
    base = ("+experiment=paper_llama3_1_8b", "task=sst2", "batch_tokens=8_192")
    whole, half = forecast(tmp_path, *base), forecast(tmp_path, *base, "calibration.tokens=100_000")
    written = stage(whole, "calibrate")["written_bytes"] / 0.5e9
    seconds = [stage(r, "calibrate")["seconds"] - written for r in (whole, half)]
    assert seconds[0] == pytest.approx(2 * seconds[1], rel=0.01)
    wide = forecast(tmp_path, *base, "batch_tokens=16_384")
    parts = [stage(r, "calibrate")["parts_bytes"]["activations"] for r in (wide, whole)]
    assert parts[0] == pytest.approx(2 * parts[1])
    thrifty = forecast(tmp_path, *base, "calibration.layers_at_once=1")
    moments = [stage(r, "calibrate")["parts_bytes"]["moments"] for r in (whole, thrifty)]
    assert moments[0] == pytest.approx(32 * moments[1])
    again = stage(thrifty, "calibrate")["seconds"] - written
    # Passes are repeated, products of moments are not.
    assert 5 * seconds[0] < again < 32 * seconds[0]


def test_memory_is_that_of_weights_moments_and_bank(tmp_path):
    record = forecast(tmp_path, "+experiment=paper_llama3_1_8b", "task=sst2")
    parts = stage(record, "search")["parts_bytes"]
    assert parts["weights"] == 8_030_261_248 * 2
    # Plain factors at break-even have as many numbers as the prunable weights.
    assert parts["factors"] == pytest.approx(record["prunable"] * 2, rel=0.01)
    # One stream of 4096 or 1024 for each input.
    moments = 32 * (4 * 4096**2) * 4
    assert stage(record, "calibrate")["parts_bytes"]["moments"] == pytest.approx(moments, rel=0.001)
    cached = sum(stage(record, name)["written_bytes"] for name in ("calibrate", "fit"))
    assert cached == pytest.approx(moments + parts["bank (host)"], rel=0.001)


def test_devices_share_the_passes_and_take_the_blocks_of_the_fit_in_turn(tmp_path):
    base = ("+experiment=paper_llama3_1_8b", "task=sst2", "search=uniform")
    one = forecast(tmp_path, *base)
    four = forecast(tmp_path, *base, "trainer=ddp", "trainer.devices=4")
    assert four["devices"] == 4
    fits = [stage(r, "fit") for r in (one, four)]
    disk = DeviceConfig("").disk_gb * 1e9
    alone, shared = (fit["seconds"] - fit["written_bytes"] / disk for fit in fits)
    assert shared == pytest.approx(alone / 4)
    assert stage(four, "search")["seconds"] == pytest.approx(stage(one, "search")["seconds"] / 4)
    assert stage(four, "search")["peak_bytes"] == stage(one, "search")["peak_bytes"]


@pytest.mark.slow
def test_a_refit_that_fits_on_no_number_of_devices_is_named(tmp_path):
    base = ("+experiment=paper_llama3_1_70b", "task=sst2", "device=h100", "confidence=null")
    with_refit = forecast(tmp_path, *base, "projection.refit=true")["verdict"]
    without = forecast(tmp_path, *base, "projection.refit=false")["verdict"]
    assert "in refit" in with_refit and "projection.refit=false" not in without
    assert with_refit.split("It fits on")[1].removesuffix(" projection.refit=false.") == (
        without.split("It fits on")[1].removesuffix(".")
    )


def test_a_run_that_fits_where_blocks_are_read_in_turn_says_so(tmp_path):
    base = ("+experiment=paper_llama3_1_8b", "task=sst2", "device=h100", "device.memory_gib=16")
    one_level = (*base, "search=uniform", "projection.refit=false")
    whole = forecast(tmp_path, *one_level)
    assert whole["verdict"].endswith("It fits on 1 × h100 with calibration.strategy=stream.")
    streamed = forecast(tmp_path, *one_level, "calibration.strategy=stream")
    assert streamed["fits"] and streamed["total"]["host_bytes"] < 2**30
    grouped = forecast(tmp_path, *one_level, "calibration.layers_at_once=2")["verdict"]
    assert grouped.endswith("calibration.strategy=stream calibration.layers_at_once=null.")


def test_what_a_run_refuses_is_no_remedy(tmp_path):
    base = ("+experiment=paper_llama3_1_8b", "task=sst2", "device=h100", "search=uniform")
    streamed = (*base, "calibration.strategy=stream", "recovery=lora", "device.memory_gib=14")
    verdict = forecast(tmp_path, *streamed)["verdict"]  # A recovery needs the whole model.
    assert "fits on 1" not in verdict and "layers_at_once" not in verdict
    agreeing = (*base, "task.metric=agreement", "device.memory_gib=14")
    assert "strategy=stream" not in forecast(tmp_path, *agreeing)["verdict"]


def test_each_device_of_fsdp_holds_less_of_the_model(tmp_path):
    base = ("+experiment=paper_llama3_1_8b", "task=sst2", "device=h100", "search=uniform")
    one = forecast(tmp_path, *base)
    four = forecast(tmp_path, *base, "trainer=fsdp", "trainer.devices=4")
    assert "on 4 × h100" in four["verdict"] and four["fits"]
    weights, factors = 8_030_261_248 * 2, one["prunable"] * 2
    saved = stage(one, "search")["peak_bytes"] - stage(four, "search")["peak_bytes"]
    table = 4096 * 128_256 * 2  # Gathered, as the factors of two blocks are.
    assert saved == pytest.approx(0.75 * (weights + factors) - table - factors / 16, rel=0.01)
    moments = [stage(r, "calibrate")["parts_bytes"]["moments"] for r in (one, four)]
    assert moments[0] == moments[1]
    kept = KEPT * factors
    held = [stage(r, "evaluate")["parts_bytes"]["factors"] for r in (one, four)]
    assert held == pytest.approx([kept, kept / 4 + kept / 16])
    export = stage(four, "export")["parts_bytes"]
    assert export["factors (host)"] == pytest.approx(kept) and "factors" not in export


@pytest.mark.slow
def test_a_streamed_model_that_only_runs_has_its_ends_and_a_block(tmp_path):
    base = ("+experiment=paper_llama3_1_8b", "task=sst2", "search=uniform", "export=factorized")
    base += ("projection=loss_aware",)
    stream = "calibration.strategy=stream"
    runs = forecast(tmp_path, *base, stream, "projection.refit=true")
    tuned = forecast(tmp_path, *base, stream, "projection.tune_steps=10")
    weights = [
        [stage(record, name)["parts_bytes"]["weights"] for name in ("search", "refit", "export")]
        for record in (runs, tuned)
    ]
    ends = 2 * (runs["parameters"] - runs["prunable"])
    assert weights[0] == pytest.approx([ends + runs["prunable"] * 2 / 32] * 3)
    assert weights[1] == [2 * runs["parameters"]] * 3
    parts = [stage(record, "refit")["parts_bytes"] for record in (runs, tuned)]
    assert parts[0]["factors"] == pytest.approx(4 * KEPT * runs["prunable"] * 2 / 32, rel=0.01)
    assert parts[0]["factors (host)"] == parts[0]["factors"] and "factors (host)" not in parts[1]
    assert parts[0]["activations"] < parts[1]["activations"] / 10
    whole = forecast(tmp_path, *base, "projection.refit=true")
    assert stage(runs, "refit")["seconds"] > stage(whole, "refit")["seconds"]  # It reads blocks.


def test_a_pass_of_a_streamed_model_has_room_for_more_tokens(tmp_path):
    base = ("+experiment=paper_llama3_1_8b", "task=sst2", "projection=loss_aware", "device=h100")
    base += ("device.memory_gib=40", "projection.refit=false")
    whole, streamed = (
        forecast(tmp_path, *base, f"calibration.strategy={strategy}")
        for strategy in ("whole", "stream")
    )
    rows = [stage(r, "search")["parts_bytes"]["activations"] for r in (whole, streamed)]
    assert rows[1] > 2 * rows[0]


@pytest.mark.slow
def test_streaming_holds_a_block_and_its_moments(tmp_path):
    base = ("+experiment=paper_llama3_1_8b", "task=sst2", "projection=loss_aware")
    whole, streamed = (
        forecast(tmp_path, *base),
        forecast(tmp_path, *base, "calibration.strategy=stream"),
    )
    parts = stage(streamed, "calibrate")["parts_bytes"]
    block = whole["prunable"] / 32 * 2
    assert parts["weights of two blocks"] == pytest.approx(2 * block)
    held = stage(whole, "calibrate")["parts_bytes"]
    sums = held["moments"] + held["moments of gradients"]
    block_sums = parts["moments"] + parts["moments of gradients"]
    assert block_sums == pytest.approx(sums / 32)
    assert (
        stage(streamed, "calibrate")["peak_bytes"] < 0.15 * stage(whole, "calibrate")["peak_bytes"]
    )
    assert stage(streamed, "fit")["parts_bytes"]["weights of a matrix"] == pytest.approx(
        4096 * 14336 * 2
    )
    kept = forecast(tmp_path, *base, "calibration.strategy=stream", "calibration.hidden=memory")
    states = 34 * 200_000 * 4096 * 2
    assert stage(kept, "calibrate")["host_bytes"] == pytest.approx(states)
    assert stage(streamed, "calibrate")["host_bytes"] == 0


@pytest.mark.slow
def test_a_local_config_overrides_the_stated_shapes(tmp_path):
    model = tiny_llama()
    model.config.save_pretrained(tmp_path / "mine")
    own = ("model=llama3_1_8b", f"model.path={tmp_path / 'mine'}", *CPU)
    record = forecast(tmp_path, "+task=sst2", *own)
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
    assert record["assumptions"][0] == "Shapes: from its config.json."


LLAMA = ("+task=sst2", "model=llama3_1_8b")
MISTAKES = {
    ("+task=sst2", "model.path=no/model", "device=h100"): (
        "could not be loaded.*or state its shapes in model.architecture"
    ),
    ("+task=trec", "model=llama3_1_8b", "device=h100"): (
        "A dry run does without the rows of 'trec' if you set '.task.typical"
    ),
    (*LLAMA, "trainer=gpu"): "has none to measure.*device=h100",
    (*LLAMA, "device.accelerator=tpu"): "'tpu', expected one of cpu, gpu",
    (*LLAMA, "device=h100", "device.memory_gib=null"): "h100 does not state device.memory_gib",
    (
        *LLAMA,
        "device=h100",
        "device.utilization=0",
    ): "device.utilization is 0.0, expected a number above 0",
    (*LLAMA, "device=h100", "task.typical.tokens=-1"): "task.typical is .*above 0",
    (*LLAMA, "device=h100", "+task.typical.tokns=3"): "tokns",
    (*LLAMA, "device=h100", "model.architecture.model_type=lama"): (
        "model.architecture of .* is not valid .*'lama'"
    ),
}


@pytest.mark.parametrize(("overrides", "sentence"), MISTAKES.items())
def test_a_mistake_is_reported_in_one_sentence(overrides, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=sentence) as raised:
        forecast(tmp_path, *overrides)
    assert str(raised.value).count("\n") == 0 and str(raised.value).endswith(".")
    assert not (tmp_path / NAME).exists()


@pytest.mark.slow
def test_inspection_uses_the_stated_shapes(tmp_path):
    raw = compose_raw("+task=sst2", "model=phi3_mini", "inspect=true")
    inspect(to_config(raw), tmp_path)
    assert json.loads((tmp_path / "matrices.json").read_text())["parameters"] == 3_821_079_552


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_keeps_its_lines_within_the_terminal(width, tmp_path):
    text = text_of(forecast(tmp_path, "+experiment=paper_llama3_1_70b"), width)
    assert max(map(len, text.splitlines())) <= width
    for name in ("calibrate", "fit", "search", "evaluate", "export", "total"):
        assert sum(line.startswith(name) for line in text.splitlines()) == 1


@pytest.mark.slow
def test_a_dry_run_of_a_genetic_search_is_one_short_job(tmp_path):
    world = make_world(tmp_path)
    (world / "model" / "model.safetensors").unlink()
    done = run_sieve(world, world / "run", "search=genetic", "dry_run=true", *CPU)
    assert done.status == 0, done.stderr
    assert (world / "run" / NAME).is_file() and not (world / "cache").exists()
    assert not (world / "run" / "result.json").exists()
    assert not list(world.rglob("generations.jsonl"))


@pytest.mark.parametrize(("float32", "named"), [(0.2, True), (0.11, False)])
def test_a_dtype_that_computes_much_faster_is_named(float32, named, tmp_path):
    rates = f"++device.tflops={{float64: .05, bfloat16: .1, float32: {float32}}}"
    record = forecast(tmp_path, "+experiment=paper_llama3_1_8b", "task=sst2", rates)
    sentence = "With model.dtype=float32 passes are 2.0 times as fast here."
    assert (sentence in " ".join(record["assumptions"])) == named


@pytest.mark.slow
def test_neurons_count_in_the_bank_and_in_the_time_of_the_fit(tmp_path):
    asked = "+experiment=demo", "speed.enabled=false", *CPU
    plain = forecast(tmp_path, *asked)
    narrow = forecast(tmp_path, *asked, "projection.narrow=true")
    a, b = (stage(record, "fit") for record in (plain, narrow))
    assert b["seconds"] > a["seconds"]
    assert b["written_bytes"] > a["written_bytes"] + 6 * 4 * 688**2


@pytest.mark.slow
def test_a_gguf_file_is_forecast_as_large_as_dense_weights(tmp_path):
    def written(*overrides: str) -> float:
        record = forecast(tmp_path, "+task=almanac_medicine", *CPU, *overrides)
        return stage(record, "export")["written_bytes"]

    dense = written("export=dense", "projection.dtype=float32")
    assert written("export=gguf", "projection.dtype=float32") == dense
    assert written("export=gguf", "export.gguf_dtype=float16") == dense / 2
    assert written("export=gguf", "export.gguf_dtype=q8_0") == pytest.approx(dense * 34 / 128)


@pytest.mark.slow
def test_an_export_in_another_form_is_forecast_with_the_squares_of_its_ranks(tmp_path):
    def written(*overrides: str) -> float:
        record = forecast(tmp_path, "+task=almanac_medicine", *CPU, *overrides)
        return stage(record, "export")["written_bytes"]

    storage, shapes = PivotedStorage(), [(256, 256), (128, 256), (688, 256), (256, 688)]
    ranks = {s: storage.largest_rank(*s, KEPT * s[0] * s[1]) for s in shapes}
    # q and o, k and v, gate and up, down, in each of six blocks.
    squares = 6 * sum(n * ranks[s] ** 2 for n, s in zip((2, 2, 2, 1), shapes, strict=True))
    own = "projection.rank_multiple=1", "projection.dtype=float32"
    assert written(*own, "export.storage=plain") - written(*own) == 4 * squares
    assert written(*own, "export.storage=pivoted") == written(*own)
    own = *own, "projection.storage=plain"
    assert written(*own, "export.storage=pivoted") < written(*own)


@pytest.mark.slow
def test_a_merged_head_is_forecast_dense(tmp_path):
    def record(*overrides: str) -> dict:
        own = "projection.prune_head=true", "projection.dtype=float32"
        return forecast(tmp_path, "+task=almanac_medicine", *CPU, *own, *overrides)

    plain, merged = (record(f"export.merge_head={word}") for word in ("false", "true"))
    head = plain["prunable"] - forecast(tmp_path, "+task=almanac_medicine", *CPU)["prunable"]
    more = stage(merged, "export")["written_bytes"] - stage(plain, "export")["written_bytes"]
    assert head > 0 and more == pytest.approx((1 - KEPT) * head * 4)


@pytest.mark.slow
def test_choosing_pivot_rows_at_the_export_alone_takes_time(tmp_path):
    def choosing(*overrides: str) -> float:
        own = *CPU, "projection.storage=plain", "export.check_rows=0", *overrides
        export = stage(forecast(tmp_path, "+task=almanac_medicine", *own), "export")
        return export["seconds"] - export["written_bytes"] / (DeviceConfig("").disk_gb * 1e9)

    assert choosing() == pytest.approx(0, abs=1e-9)
    assert choosing("export.storage=pivoted") > 1e-6


def test_the_streamed_run_of_the_cookbook_fits_in_16_gib(tmp_path):
    base = ("+task=medqa", "model=llama3_1_8b", "model.dtype=bfloat16", "confidence=.9")
    default = ("device=h100", "device.memory_gib=16")
    streamed = forecast(tmp_path, *base, *default, "calibration.strategy=stream")
    assert streamed["fits"] and streamed["total"]["host_bytes"] < 6 * 2**30
    refit = stage(streamed, "refit")["parts_bytes"]
    assert refit["sums of other tokens (host)"] == 2 * 4 * 14_336**2
    whole = stage(forecast(tmp_path, *base, *default), "refit")["parts_bytes"]
    assert whole["sums of other tokens"] == refit["sums of other tokens (host)"]


def test_a_pruned_head_of_a_streamed_model_is_whole_on_the_device(tmp_path):
    base = ("+experiment=paper_llama3_1_8b", "task=sst2", "search=uniform", "device=h100")
    base += ("calibration.strategy=stream", "projection.refit=false")
    with_head, without = (
        stage(forecast(tmp_path, *base, f"projection.prune_head={head}"), "evaluate")
        for head in ("true", "false")
    )
    assert with_head["parts_bytes"]["factors"] - without["parts_bytes"]["factors"] == (
        pytest.approx(KEPT * 4096 * 128_256 * 2)
    )


def test_temporary_files_of_pivoted_factors_take_room_on_the_disk(tmp_path):
    base = ("+experiment=paper_llama3_1_8b", "task=sst2", "search=uniform", "device=h100")
    base += ("calibration.strategy=stream", "projection.refit=false")
    pivoted, plain = (
        forecast(tmp_path, *base, f"projection.storage={storage}")
        for storage in ("pivoted", "plain")
    )
    assert stage(plain, "evaluate")["written_bytes"] == 0
    assert stage(pivoted, "evaluate")["written_bytes"] == KEPT * pivoted["prunable"] * 2
