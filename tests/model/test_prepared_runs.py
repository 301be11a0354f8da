"""Whole runs of a GGUF file and an adapter equal runs of the checkpoint made of them by hand."""

import json
from pathlib import Path

import pytest
from models import tiny_tokenizer
from runs import finished, make_world, read_result, run_sieve

peft = pytest.importorskip("peft", exc_type=ImportError)
pytest.importorskip("gguf")
from gguf_writer import CHAT, write_gguf  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's, while a test makes an adapter


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_world(tmp_path_factory.mktemp("world"))
    model = write_gguf(root / "tiny.gguf", kind="Q8_0")
    settings = peft.LoraConfig(
        r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
    )
    adapted = peft.get_peft_model(model, settings)
    adapted.save_pretrained(root / "lora")
    adapted.merge_and_unload().save_pretrained(root / "by_hand")
    tiny_tokenizer(chat_template=CHAT).save_pretrained(root / "by_hand")
    return root


def source(world: Path) -> list[str]:
    return [f"model.path={world / 'tiny.gguf'}", f"model.adapter={world / 'lora'}"]


@pytest.mark.slow
def test_a_run_equals_that_of_the_checkpoint_made_by_hand(world: Path) -> None:
    whole = finished(world, "by_hand_run", f"model.path={world / 'by_hand'}", cache="one")
    done = run_sieve(world, world / "run", *source(world), cache="two")
    assert done.status == 0, done.stderr
    result = read_result(world / "run")
    for key in ("baseline", "pruned", "kept_fraction", "matrices", "bytes"):
        assert result[key] == whole[key]
    assert result["model"] == "tiny.gguf-lora" and "dense" not in whole["model"]
    assert result["dense"].endswith(f"tiny.gguf, dequantized and with {world / 'lora'} merged")
    assert whole["dense"] == ""
    assert f"The dense model is {result['dense']}" in done.stdout + done.stderr
    assert "dequantized" in (world / "run" / "report.html").read_text()
    assert "base_model:" not in (world / "run" / "export" / "README.md").read_text()


@pytest.mark.slow
def test_blocks_of_the_merged_model_are_streamed(world: Path) -> None:
    stream = ["calibration.strategy=stream", "until=fit"]
    done = run_sieve(world, world / "streamed", *source(world), *stream, cache="three")
    assert done.status == 0 and "Loading the whole model" not in done.stderr, done.stderr


@pytest.mark.slow
def test_a_forecast_reads_only_the_settings_in_the_file(world: Path) -> None:
    for flag, name in (("inspect=true", "matrices.json"), ("dry_run=true", "dry_run.json")):
        done = run_sieve(world, world / "forecast", *source(world), flag, cache="four")
        assert done.status == 0, done.stderr
        text = (world / "forecast" / name).read_text()
        assert "from the GGUF file" in text and "tiny.gguf-lora" in text
    record = json.loads(text)
    assert record["dtype"]["stored"] == "float32" and "measured on" in record["task"]["source"]
    assert not (world / "four").exists()


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["inspect=true", "dry_run=true", "seed=0"])
def test_an_absent_adapter_or_file_is_one_sentence(flag: str, world: Path) -> None:
    for override in (f"model.path={world / 'absent.gguf'}", "model.adapter=absent"):
        done = run_sieve(world, world / "refused", override, flag)
        assert done.status == 1 and "absent" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_ranks_of_a_sharded_run_share_one_checkpoint(world: Path) -> None:
    ranks = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]
    quick = ["search=uniform", "projection.refit=false", "speed.enabled=false", "batch_tokens=128"]
    alone = finished(world, "alone", *source(world), *quick, cache="alone")
    done = run_sieve(world, world / "sharded", *source(world), *ranks, *quick, cache="5", ranks=2)
    assert done.status == 0, done.stderr
    assert read_result(world / "sharded")["baseline"] == alone["baseline"]
    assert len(list((world / "5").glob("merged-*"))) == 1
