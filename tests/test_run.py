"""Whole runs from the command line on tiny models: results, caching, kills and bad input."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from logged import metrics
from models import build, tiny_llama, tiny_tokenizer
from runs import (
    execute,
    finished,
    make_world,
    read_result,
    run_sieve,
    write_rows,
)
from transformers import AutoModelForCausalLM

import sieve.factorized.modeling_sieve  # noqa: F401  registers what exports are made of
from sieve.bank.bank import Bank
from sieve.config import LEVELS
from sieve.projections.moments import Moments

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and a two-label data set."""
    return make_world(tmp_path_factory.mktemp("world"))


def test_two_runs_agree_byte_for_byte_and_a_second_tolerance_reuses_the_bank(world: Path) -> None:
    for name, cache in (("a", "one"), ("b", "two")):
        finished(world, name, cache=cache)
    assert (world / "a/genome.json").read_bytes() == (world / "b/genome.json").read_bytes()
    result = finished(world, "c", "tolerance=0.3", cache="one")
    assert result["cached"]["calibrate"] and result["cached"]["fit"]
    assert not result["cached"]["search"]
    for name in ("report.html", "metrics.jsonl", "export/model.safetensors"):
        assert (world / "c" / name).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tolerance=2"], "tolerance is 2.0, expected a fraction"),
        (["tolerance=none"], "tolerance is 'none', expected a number."),
        (["model.path=./nowhere"], "there is no such directory"),
        (["model.path=somebody/something"], "for a Hub model the network, its name"),
        (["task.data_dir=nowhere"], "nowhere"),
        (["task.prompt='{review} is'"], "has no field 'review'"),
        (["task.labels=[yes,yes]"], "expected distinct words"),
        (["task.prompt='" + "{text}" * 20 + "'"], "shorten a field of the prompt"),
        (["projection.name=magic"], "got projection 'magic'"),
        (["trainer=gpu", "trainer.accelerator=tpu"], "Choose trainer=cpu, gpu, ddp or fsdp"),
        (["paths.cache_dir=/proc/nowhere"], "paths.cache_dir to a writable folder"),
    ],
)
def test_bad_input_gets_one_sentence_and_no_traceback(
    world: Path, overrides: list[str], message: str
) -> None:
    refused(world, message, *overrides)


def refused(world: Path, message: str, *overrides: str, **options: Any) -> None:
    """A run that ends with status 1 and a message, without a traceback or half a result."""
    run_dir = world / "bad"
    shutil.rmtree(run_dir, ignore_errors=True)
    done = run_sieve(world, run_dir, *overrides, **options)
    assert done.status == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not {"result.json", "report.html", "export"} & {path.name for path in run_dir.iterdir()}


def test_a_run_without_a_task_is_told_to_choose_one(tmp_path: Path) -> None:
    done = execute(tmp_path, [])
    assert done.status == 1
    assert "no task was chosen; add one, such as +task=almanac_medicine" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_split_of_one_class_is_refused(world: Path, tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        labels = ["yes"] if split == "test" else ["no", "yes"]
        rows = [{"text": f"{split} {i}", "label": labels[i % len(labels)]} for i in range(20)]
        write_rows(tmp_path / f"{split}.jsonl", rows)
    refused(world, "all 20 rows of the test split have the label", f"task.data_dir={tmp_path}")


def test_two_roles_of_the_same_rows_are_refused(world: Path) -> None:
    refused(world, "carve it out of the calibration split", "task.splits.test=train")


@pytest.mark.slow
def test_weights_that_are_not_finite_are_named(world: Path) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    model.save_pretrained(world / "nan")
    tiny_tokenizer().save_pretrained(world / "nan")
    refused(world, "up_proj.weight are not finite", f"model.path={world / 'nan'}")


@pytest.mark.slow
def test_a_model_without_a_prunable_matrix_is_refused(world: Path) -> None:
    build(
        "Llama", hidden_size=32, intermediate_size=32, num_hidden_layers=0, num_attention_heads=2
    ).save_pretrained(world / "bare")
    tiny_tokenizer().save_pretrained(world / "bare")
    refused(world, "has no prunable matrix", f"model.path={world / 'bare'}")


@pytest.mark.slow
def test_a_damaged_artifact_is_named(world: Path) -> None:
    assert run_sieve(world, world / "fitted", "until=fit", cache="damaged").status == 0
    bank = next((world / "damaged").glob("bank-*/*.safetensors"))
    bank.write_bytes(bank.read_bytes()[:1000])
    refused(world, f"{bank} is damaged", cache="damaged")


@pytest.mark.slow
def test_a_genome_of_another_bank_is_refused(world: Path) -> None:
    finished(world, "mixed", "speed.enabled=false", "export=none", cache="mixed")
    genome = next((world / "mixed").glob("genome-*"))
    genome.write_text(
        genome.read_text().replace(next((world / "mixed").glob("bank-*")).stem[5:], "0" * 16)
    )
    refused(world, "the genome belongs to bank", cache="mixed")


@pytest.mark.slow
def test_a_disk_that_is_full_is_named(world: Path) -> None:
    refused(world, "could not be written", cache="full", file_size=20_000)
    assert not list((world / "full").iterdir())  # Nothing is left half written.


@pytest.mark.slow
def test_a_sweep_over_many_devices_is_refused(world: Path) -> None:
    refused(
        world,
        "a sweep takes one device per job",
        "hydra.mode=MULTIRUN",
        "trainer.devices=2",
        f"hydra.sweep.dir={world / 'bad'}",
    )


@pytest.mark.slow
def test_a_multirun_leaves_a_result_per_job(world: Path) -> None:
    folder = world / "sweep"
    done = run_sieve(
        world,
        world / "none",
        "hydra.mode=MULTIRUN",
        f"hydra.sweep.dir={folder}",
        "projection=output,svd",
        "speed.enabled=false",
        "export=none",
    )
    assert done.status == 0, done.stderr
    results = [read_result(folder / str(job)) for job in range(2)]
    assert [result["projection"] for result in results] == ["output", "svd"]


@pytest.mark.slow
def test_dense_weights_without_room_for_a_bias_are_searched_without_rank_zero(
    world: Path,
) -> None:
    result = finished(world, "merged", "export=dense", "tolerance=0.9")
    assert min(row["rank"] for row in result["matrices"]) == 1
    assert result["bytes"]["pruned"] == result["bytes"]["dense"]
    config = json.loads((world / "merged/export/config.json").read_text())
    assert config["model_type"] == "llama"
    refused(world, "use export=factorized", "export=dense", "projection=affine")


@pytest.mark.slow
def test_without_a_mean_and_at_level_zero_the_model_still_runs(world: Path) -> None:
    result = finished(world, "affine", "projection=affine", "search.levels=[1,0]", "tolerance=0.99")
    genome = json.loads((world / "affine/genome.json").read_text())
    assert {row["rank"] for row in result["matrices"]} == {0}
    assert genome["bank"] and result["kept_fraction"]["prunable"] < 0.1
    model = AutoModelForCausalLM.from_pretrained(world / "affine/export")
    tokens = torch.arange(3, 20)[None]
    assert model(tokens).logits.isfinite().all()
    assert model.generate(tokens, max_new_tokens=3, do_sample=False).shape == (1, 20)


DDP = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
SMALL = ("batch_tokens=128", "tolerance=.3", "search.levels=[1,.6]", "speed.enabled=false")
RECOVERY = (
    *SMALL,
    "projection.refit_tries=1",
    "recovery=lora",
    "search.recover=false",
    "recovery.steps=4",
    "recovery.check_every=2",
    "recovery.batch_tokens=128",
    "recovery.learning_rate=3e-2",
    "export=none",
)


@pytest.fixture(scope="module")
def alone_and_joined(world: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The results of a run with recovery on one process, and on two (DDP with gloo)."""
    alone = finished(world, "alone", *RECOVERY, "recovery.accumulate=2", cache="alone")
    return alone, finished(world, "joined", *RECOVERY, *DDP, cache="joined", ranks=2)


def test_two_processes_find_what_one_finds(
    world: Path, alone_and_joined: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    """Each row is seen once: there are many batches, and an odd number of them."""
    alone, joined = alone_and_joined
    moments = [
        Moments.load(next((world / cache).glob("moments-*"))) for cache in ("alone", "joined")
    ]
    assert moments[0].tokens == moments[1].tokens
    for name, entry in moments[0].entries.items():
        other = moments[1].entries[name]
        assert entry.count == other.count
        torch.testing.assert_close(entry.second, other.second, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(entry.mean, other.mean, rtol=1e-5, atol=1e-6)
    for key in ("baseline", "kept_fraction"):
        assert alone[key] == joined[key], key
    genomes = [json.loads((world / n / "genome.json").read_text()) for n in ("alone", "joined")]
    assert genomes[0]["levels"] == genomes[1]["levels"]


@pytest.mark.slow
def test_recovery_trains_the_same_on_two_processes_as_on_one(
    world: Path, alone_and_joined: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    alone, joined = (result["recovery"] for result in alone_and_joined)
    assert [len(record["history"]) for record in (alone, joined)] == [3, 3]
    for one, other in zip(alone["history"], joined["history"], strict=True):
        assert one["step"] == other["step"]
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-3)
    losses = [entry["loss"] for entry in alone["history"]]
    assert len(set(losses)) == 3
    # A second run takes the recovery from the cache, and keeps the size of the genome.
    again = finished(world, "again", *RECOVERY, "recovery.accumulate=2", cache="alone")
    assert again["cached"]["recover"] and again["recovery"] == alone
    assert again["kept_fraction"] == alone_and_joined[0]["kept_fraction"]
    for name in ("alone", "joined", "again"):
        [*noted] = (line for line in metrics(world / name) if "recovery/loss" in line)
        assert [line["recovery/loss"] for line in noted] == pytest.approx(losses, abs=1e-3)
        assert [line["step"] for line in noted] == [0, 2, 4]
    # One process takes half as many rows a step as two, so its training is another one.
    other = finished(world, "other", *RECOVERY, cache="joined")
    assert not other["cached"]["recover"]


@pytest.mark.slow
def test_fewer_batches_than_processes_are_refused(world: Path) -> None:
    refused(world, "got 1 batches for 2 processes", *DDP, cache="few", ranks=2)


@pytest.mark.slow
def test_layer_by_layer_calibration_gives_the_same_bank(world: Path) -> None:
    found = {}
    for name, overrides in (("all", ()), ("one", ("calibration.layers_at_once=1",))):
        options = ("projection.prune_head=true", *overrides)
        done = run_sieve(world, world / name, *options, "until=fit", cache=f"layers-{name}")
        assert done.status == 0, done.stderr
        (bank,) = (world / f"layers-{name}").glob("bank-*")
        found[name] = Bank.load(bank)
    assert len(list((world / "layers-one").glob("moments-*"))) == 3  # Two blocks and the head.
    assert "lm_head" in found["all"].names
    for name, factors in found["all"].factors.items():
        assert torch.equal(factors.u, found["one"].factors[name].u)
        assert torch.equal(factors.v, found["one"].factors[name].v)


@pytest.mark.slow
def test_the_paper_s_learning_from_the_command_line(world: Path) -> None:
    options = ("projection=learned", "projection.learning.level=0.4", "tolerance=0.9")
    result = finished(world, "learned", *options, "search=uniform", cache="learned")
    assert result["projection"] == "learned"
    assert {p["level"] for p in result["search"]["curve"]} <= {0, *LEVELS[LEVELS.index(0.4) :]}
    again = finished(world, "learned-again", *options, "search=uniform", cache="learned-again")
    assert again["matrices"] == result["matrices"]
    bank = Bank.load(next((world / "learned").glob("bank-*.safetensors")))
    for matrix in bank.matrices:
        assert bank.factors[matrix.name].rank == bank.sizing.rank(matrix, 0.4)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(world: Path) -> None:
    """Each process learns some of the matrices; gradients are never averaged."""
    options = (
        *SMALL,
        "projection=learned",
        "projection.learning.epochs=1",
        "projection.learning.batch_tokens=500",
        "export=none",
        "until=fit",
    )
    assert run_sieve(world, world / "learns", *options, cache="learns").status == 0
    done = run_sieve(world, world / "learn-joined", *options, *DDP, cache="learn-joined", ranks=2)
    assert done.status == 0, done.stderr
    banks = [
        Bank.load(next((world / cache).glob("bank-*"))) for cache in ("learns", "learn-joined")
    ]
    for name in banks[0].names:
        products = [bank.factors[name].u @ bank.factors[name].v for bank in banks]
        torch.testing.assert_close(products[0], products[1], rtol=1e-3, atol=1e-4)


def test_a_pruned_head_and_embedding_are_counted_exported_and_drawn(world: Path) -> None:
    pruned = ["projection.prune_head=true", "projection.prune_embedding=true"]
    result = finished(world, "head", *pruned, "tolerance=0.9", cache="head")
    kinds = [matrix["kind"] for matrix in result["matrices"]]
    assert (kinds[0], kinds[-1]) == ("embedding", "head")
    loaded = AutoModelForCausalLM.from_pretrained(world / "head/export")
    held = sum(parameter.numel() for parameter in loaded.parameters())
    assert held == result["parameters"]["model_kept"]
    vocabulary = result["data"]["vocabulary"]
    assert 0 < vocabulary["answers"] < vocabulary["prompts"] <= vocabulary["size"]
    page = (world / "head/report.html").read_text()
    assert f"The answers use {vocabulary['answers']} of them" in page
