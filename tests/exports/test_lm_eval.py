"""lm-evaluation-harness scores every row of an export as Sieve does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from models import tiny_llama, tiny_tokenizer
from runs import make_world
from sieved import banked, mixed

import sieve
from sieve.evaluation.evaluation import score
from sieve.exports.lm_eval_task import main, write_lm_eval_task
from sieve.tasks import Example, Task
from sieve.tasks.metrics import ACCURACY


def task_of(rows: list[Example], normalize: str = "none") -> Task:
    return Task("odd name/1", "general", ACCURACY, {"test": rows}, {}, normalize=normalize)


def some_rows() -> list[Example]:
    """Rows with two or three answers of one or more tokens, one of which begins another.

    Templates and file readers could misread some of the prompts.
    """
    words = ("good movie", "bad film", "question 7", "{{ doc }}", "true or false?", "né à 3 %")
    choices = [(" yes", " no"), (" positive", " negative", " positively bad"), (" A", " B", " C")]
    prompts = [f"{word}, {number}\nAnswer:" for number in range(4) for word in words]
    prompts += ["007", "2026-11-25", "2026-11-25 10:00:00", "1e3", "answer"]
    return [Example(text, choices[i % 3], i % 2) for i, text in enumerate(prompts)]


@pytest.mark.slow
def test_the_harness_and_sieve_predict_the_same_for_every_row(tmp_path: Path) -> None:
    model = tiny_llama()
    bank = banked(model, storage="pivoted")
    sieve.apply(model, bank, mixed(bank))
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export")
    rows = some_rows()
    name = write_lm_eval_task(task_of(rows), tmp_path / "tasks")
    scores = score(model, sieve.scoring_batches(rows, tiny_tokenizer()))
    assert len(set(scores.predicted.tolist())) > 1
    environment = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "lm_eval",
            "--model",
            "hf",
            "--model_args",
            f"pretrained={folder},trust_remote_code=True,dtype=float32",
            "--include_path",
            str(tmp_path / "tasks"),
            "--tasks",
            name,
            "--device",
            "cpu",
            "--batch_size",
            "8",
            "--log_samples",
            "--output_path",
            str(tmp_path / "out"),
        ],
        env=os.environ | environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [path] = (tmp_path / "out").rglob("samples_*.jsonl")
    samples = sorted(map(json.loads, path.read_text().splitlines()), key=lambda s: s["doc_id"])
    for sample, predicted, row in zip(samples, scores.predicted, rows, strict=True):
        likelihoods = [float(pair[0]) for pair in sample["filtered_resps"]]
        assert len(likelihoods) == len(row.choices)
        assert likelihoods.index(max(likelihoods)) == predicted
        assert -likelihoods[row.answer] == pytest.approx(
            float(scores.losses[sample["doc_id"]]), abs=1e-3
        )
    accuracy = sum(sample["acc"] for sample in samples) / len(samples)
    assert accuracy == pytest.approx(scores.accuracy)


def test_the_command_writes_the_test_rows_of_a_run(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    overrides = ["+task=jsonl", f"task.data_dir={world / 'data'}", f"model.path={world / 'model'}"]
    main([str(tmp_path / "tasks"), *overrides])
    rows = pd.read_parquet(tmp_path / "tasks/sieve_data.parquet").to_dict("records")
    assert len(rows) == 60 and list(rows[0]["choices"]) == ["no", "yes"]
    assert {row["answer"] for row in rows} == {0, 1}
    text = (tmp_path / "tasks/sieve_data.yaml").read_text()
    written = json.loads(text.replace("!function sieve_results.acc", '""'))
    assert written["dataset_kwargs"]["data_files"]["test"].endswith("sieve_data.parquet")


@pytest.mark.parametrize("normalize", ["none", "characters", "bytes"])
def test_the_harness_refuses_numbers_that_are_not_finite(normalize: str, tmp_path: Path) -> None:
    tasks = pytest.importorskip("lm_eval.tasks")
    row = Example("prompt", (" a", " ééééé"), 1)
    name = write_lm_eval_task(task_of([row], normalize), tmp_path)
    manager = tasks.TaskManager(include_path=str(tmp_path), include_defaults=False)
    task = manager.load(name)["tasks"][name]
    [document] = task.test_docs()
    scored = task.process_results(document, [(-1.0, False), (-6.0, False)])
    right = {"none": 0.0, "characters": 0.0, "bytes": 1.0}[normalize]
    assert scored == {next(iter(task.aggregation())): right}
    for broken in (float("nan"), float("-inf")):
        with pytest.raises(ValueError, match="are not finite.*begins 'prompt'"):
            task.process_results(document, [(-1.0, False), (broken, False)])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["+task=nothing"], "nothing"),
        (["+task=jsonl", "task.data_dir=/nowhere", "model.path=x"], "/nowhere"),
        (["seed=1"], "no task was chosen"),
    ],
)
def test_an_unusable_task_gets_one_sentence(
    overrides: list[str], sentence: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path / "tasks"), *overrides])
    [record] = caplog.records
    assert sentence in record.getMessage() and "\n" not in record.getMessage()


def test_a_metric_that_the_harness_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set task.normalize=none"):
        write_lm_eval_task(task_of(some_rows(), normalize="tokens"), tmp_path)
    assert not list(tmp_path.iterdir())
