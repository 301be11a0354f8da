"""Runs with `export=onnx` of tasks whose graph does not score choices: classes, written answers."""

from pathlib import Path

import pytest
from classifiers import tiny_classifier
from models import tiny_tokenizer
from runs import finished, make_world, write_rows

import sieve

SETTINGS = "export=onnx tolerance=.9 projection.refit=false speed.enabled=false".split()


@pytest.mark.slow
def test_the_graph_of_a_classifier_is_checked_scored_and_served(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    tiny_classifier(num_labels=2).save_pretrained(world / "bert")
    tiny_tokenizer().save_pretrained(world / "bert")
    own = (f"model.path={world / 'bert'}", "export.check_rows=16")
    export = finished(world, "run", *SETTINGS, *own)["export"]
    assert export["server"] == "sieve.serve"
    assert (export["check"]["rows"], export["check"]["different"]) == (15, 0)
    card = (world / "run" / "export" / "README.md").read_text()
    assert "its output is `logits` (rows × classes)" in card
    assert sieve.load(world / "run" / "export")[0].names == ["input_ids", "attention_mask"]


@pytest.mark.slow
def test_the_graph_of_a_written_task_writes_the_answers_that_the_run_scored(
    tmp_path: Path,
) -> None:
    world = make_world(tmp_path)
    for split in ("train", "validation", "test"):
        rows = [{"text": f"{split} {i} ", "answer": "ab"[i % 2]} for i in range(60)]
        write_rows(world / "data" / f"{split}.jsonl", rows)
    own = ("task.kind=generation", "task.max_new_tokens=3", "task.metric=f1")
    result = finished(world, "run", *SETTINGS, *own, "task.prompt='{text}: '")
    assert result["export"]["accuracy"] == pytest.approx(result["pruned"]["accuracy"], abs=0.02)
    assert result["export"]["server"] == "sieve.serve"
    card = (world / "run" / "export" / "README.md").read_text()
    assert "past_key_values.0.key" in card
