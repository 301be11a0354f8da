"""Calibration rows of several tasks, and other tasks' test rows."""

from dataclasses import replace
from pathlib import Path

import pytest
from models import tiny_tokenizer
from runs import finished, make_world, run_sieve, write_rows

from sieve.checks import check
from sieve.config import CalibrationConfig, Config
from sieve.data.datamodule import SieveDataModule
from sieve.stages.splits import mixed_tasks, split_key
from sieve.tasks import TaskConfig, build_task


def rows_of(name: str, count: int = 40) -> list[dict[str, object]]:
    return [
        {"text": f"{name} text number {i}", "label": i % 2, "id": f"{name} {i}"}
        for i in range(count)
    ]


def task_config(folder: Path, name: str) -> TaskConfig:
    for split in ("train", "validation", "test"):
        write_rows(folder / name / f"{split}.jsonl", rows_of(f"{name} {split}"))
    return TaskConfig(
        name, prompt="{text}\nAnswer:", labels=["no", "yes"], data_dir=str(folder / name)
    )


def config(folder: Path, **calibration: object) -> Config:
    mix = {"other": task_config(folder, "other"), "third": task_config(folder, "third")}
    own = task_config(folder, "own")
    return Config(own, calibration=CalibrationConfig(mix=mix, **calibration))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({}, {"own": 1 / 3, "other": 1 / 3, "third": 1 / 3}),
        ({"self": 2, "third": 0}, {"own": 2 / 3, "other": 1 / 3}),
        ({"self": 0, "other": 3}, {"other": 3 / 4, "third": 1 / 4}),
    ],
)
def test_tokens_are_shared_out_by_weight(tmp_path: Path, weights, expected) -> None:
    found = config(tmp_path, weights=weights)
    own = build_task(found.task)
    parts = mixed_tasks(found, own)
    assert {task.name: share for task, share in parts} == pytest.approx(expected)
    data = SieveDataModule(
        own,
        tiny_tokenizer(),
        batch_tokens=10_000,
        calibration_tokens=1200,
        mix=lambda: parts,
    )
    seen = {name: 0 for name in ("own", "other", "third")}
    for batch in data.calibration:
        for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
            seen[tiny_tokenizer().decode(row[mask.bool()]).split()[0]] += int(mask.sum())
    longest = 40
    for name, tokens in seen.items():
        assert abs(tokens - 1200 * expected.get(name, 0)) <= longest


def test_rows_held_out_of_a_training_are_not_mixed_in(tmp_path: Path) -> None:
    found = config(tmp_path)
    own = build_task(found.task)
    folder = Path(str(found.calibration.mix["other"].data_dir))
    write_rows(folder / "train.jsonl", [*rows_of("own train"), *rows_of("clean", 5)])
    held_out = own.splits["calibration"][:10]
    parts = {task.name: task for task, _ in mixed_tasks(found, own, held_out)}
    mixed = {e.content for e in parts["other"].splits["calibration"]}
    assert len(mixed) == 35 and not mixed & {e.content for e in held_out}


@pytest.mark.parametrize("changes", [{}, {"shots": 2}, {"preamble": "Answer.\n"}])
def test_rows_that_are_selected_or_tested_on_are_not_mixed_in(tmp_path: Path, changes) -> None:
    found = config(tmp_path)
    plain = build_task(found.task)
    found.task = replace(found.task, **changes)
    own = build_task(found.task)
    leaked = [
        {"text": e.prompt.removesuffix("\nAnswer:"), "label": 0} for e in plain.splits["test"]
    ]
    folder = Path(str(found.calibration.mix["other"].data_dir))
    write_rows(folder / "train.jsonl", [*leaked, *rows_of("clean", 5)])
    parts = {task.name: task for task, _ in mixed_tasks(found, own)}
    held = {e.prompt for role in ("selection", "test") for e in plain.splits[role]}
    prompts = {e.prompt for e in parts["other"].splits["calibration"]}
    assert len(prompts) == 5 and not prompts & held


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"nobody": 1}, "calibration.weights.nobody names no task of calibration.mix"),
        (
            {"self": 0, "other": 0, "third": 0},
            "at least 0, one of them above 0",
        ),
        ({"self": -1}, "expected numbers of at least 0"),
    ],
)
def test_weights_that_do_not_hold_are_refused(tmp_path: Path, weights, said) -> None:
    found = config(tmp_path, weights=weights)
    found.model.path = "model"
    with pytest.raises(ValueError, match=said):
        check(found)


def first_letter(prediction: str, references: list[str], letters: int = 1) -> float:
    return float(prediction[:letters] == references[0][:letters])


METRIC = {"_target_": f"{__name__}.first_letter"}
JUDGE = {"url": "http://x/v1", "model": "m"}
WRITTEN = {
    "kind": "generation",
    "prompt": "Text of {id}:",
    "answer_field": "text",
    "labels": [],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({}, {"normalize": "tokens"}, False),
        ({"metric": METRIC}, {"metric": METRIC | {"letters": 2}}, False),
        ({"metric": METRIC}, {"metric": METRIC}, True),
        (
            WRITTEN | {"metric": "judge", "judge": JUDGE},
            WRITTEN | {"metric": "judge", "judge": JUDGE | {"model": "n"}},
            False,
        ),
        (
            WRITTEN | {"metric": "judge", "judge": JUDGE},
            WRITTEN | {"metric": "judge", "judge": JUDGE | {"workers": 2}},
            True,
        ),
        (WRITTEN, WRITTEN | {"metric": "f1"}, False),
        (WRITTEN, WRITTEN | {"truncate": "id"}, False),
    ],
)
def test_a_split_is_told_by_all_that_its_score_depends_on(tmp_path: Path, one, other, same) -> None:
    tasks = [build_task(replace(task_config(tmp_path, "own"), **c)) for c in (one, other)]
    keys = [split_key(task, "test") for task in tasks]
    assert (keys[0] == keys[1]) == same
    if "truncate" not in other:
        moments = [split_key(task, "calibration") for task in tasks]
        assert moments[0] == moments[1], "what a row is worth is no matter of its moments"


@pytest.mark.slow
def test_a_run_mixes_rows_and_tests_on_another_task(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    rows = [{"text": f"text {i} " + "the good movie " * (i % 3)} for i in range(60)]
    write_rows(world / "texts" / "train.jsonl", rows)
    texts = f"data_dir={world / 'texts'}"
    quick = ["projection.refit=false", "tolerance=.5", "speed.enabled=false", "export=none"]
    other = [
        "+task@calibration.mix.text=perplexity",
        f"calibration.mix.text.{texts}",
        "+calibration.weights.text=3",
        "+task@also.text=perplexity",
        f"also.text.{texts}",
    ]
    alone = finished(world, "alone", *quick)
    both = finished(world, "both", *quick, *other)
    assert alone["also"] == {} and alone["calibration"]["mix"] is None
    assert both["calibration"]["mix"] == {"data": 0.25, "perplexity": 0.75}
    found = both["also"]["text"]
    assert found["metric"] == "perplexity" and found["relative"] and found["examples"] == 12
    ratio = found["pruned"]["accuracy"] / found["baseline"]["accuracy"]
    assert found["drop"]["point"] == pytest.approx(ratio - 1, rel=1e-4)
    assert "The same models on the test rows of other tasks" in (
        world / "both" / "report.html"
    ).read_text("utf-8")
    refused = run_sieve(
        world, world / "bad", *quick, "+task@also.text=perplexity", "also.text.kind=x"
    )
    assert refused.status == 1 and "task.kind is 'x'" in refused.stderr
