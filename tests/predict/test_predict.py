"""The answers beside the rows of a file equal an evaluation, also after a kill."""

import csv
import json
import math
import shutil
from pathlib import Path

import pytest
from models import tiny_llama, tiny_tokenizer
from pyarrow import Table, parquet
from runs import finished, make_world, write_rows
from served import QUESTIONS, REVIEWS, offline, rows_of

import sieve
import sieve.run
from sieve.data.text import text_batches
from sieve.evaluation.evaluation import score
from sieve.exports.task_file import write_task
from sieve.predict.__main__ import main, parse
from sieve.predict.journal import Journal
from sieve.tasks.config import TaskConfig
from sieve.tasks.metrics import metric_of

LABELS = ("negative", "positive")


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_jsonl(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def with_task(exported: Path, folder: Path, config: TaskConfig) -> Path:
    """A copy of the export for another task."""
    shutil.copytree(exported, folder)
    write_task(config, tuple(config.labels), folder)
    return folder


def refused(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, *words: object):
    """The message of a command that fails, which has one line and no traceback."""
    caplog.clear()
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code in (1, 2)
    message = caplog.text + capsys.readouterr().err
    assert "Traceback" not in message
    return message


def test_a_table_keeps_its_cells_and_gets_the_answers_of_an_evaluation(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": f"{n:04d}", **row, "note": "1.50"} for n, row in enumerate(rows_of(40))]
    main([str(exported.parent), str(write_csv(tmp_path / "a.csv", rows)), "--batch-tokens", "64"])
    answered = read_csv(tmp_path / "a.answers.csv")
    assert [{key: row[key] for key in rows[0]} for row in answered] == rows
    expected = [LABELS[index] for index in offline(exported, rows)]
    assert [row["predicted"] for row in answered] == expected
    for row in answered:
        probabilities = {label: float(row[f"probability_{label}"]) for label in LABELS}
        assert math.isclose(sum(probabilities.values()), 1, abs_tol=1e-6)
        assert max(probabilities, key=lambda label: probabilities[label]) == row["predicted"]
    counts = ", ".join(f"{label} {expected.count(label)}" for label in LABELS)
    shown = capsys.readouterr().out
    assert "40 rows with answers" in shown and "Accuracy" not in shown
    assert sorted(counts.split(", ")) == sorted(shown.split("Answers: ")[1][:-2].split(", "))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.answers.csv", "a.csv"]


def test_every_type_of_file_gets_the_same_answers(exported: Path, tmp_path: Path) -> None:
    rows = rows_of(9)
    write_rows(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    parquet.write_table(Table.from_pylist(rows), tmp_path / "a.parquet")
    write_csv(tmp_path / "a.csv", rows)
    for suffix in ("jsonl", "json", "parquet", "csv"):
        main([str(exported), str(tmp_path / f"a.{suffix}")])
    lines = read_jsonl(tmp_path / "a.answers.jsonl")
    assert lines == json.loads((tmp_path / "a.answers.json").read_text())
    flat = [
        {k: v for k, v in line.items() if k != "probabilities"}
        | {f"probability_{label}": value for label, value in line["probabilities"].items()}
        for line in lines
    ]
    assert parquet.read_table(tmp_path / "a.answers.parquet").to_pylist() == flat
    assert read_csv(tmp_path / "a.answers.csv") == [
        {key: str(value) for key, value in row.items()} for row in flat
    ]


def test_the_accuracy_is_that_of_the_rows_with_a_right_answer(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(20)
    predicted = [LABELS[index] for index in offline(exported, rows)]
    wrong = {"negative": "positive", "positive": "negative"}
    labels = [wrong[p] if n < 5 else p for n, p in enumerate(predicted)]
    labels[-4:] = [""] * 4
    labelled = [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]
    main([str(exported), str(write_csv(tmp_path / "a.csv", labelled))])
    assert "Accuracy: 68.8 % of 16 rows with a right answer." in capsys.readouterr().out
    for row in labelled:
        row["label"] = "perhaps"
    main([str(exported), str(write_csv(tmp_path / "b.csv", labelled))])
    assert "No row has a right answer in label that fits the task." in capsys.readouterr().out


def test_a_dense_model_answers_by_the_task_of_an_export(exported: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", rows_of(6))
    dense = tmp_path / "dense"
    tiny_llama(seed=7).save_pretrained(dense)
    tiny_tokenizer().save_pretrained(dense)
    write_task(REVIEWS, LABELS, dense)
    expected = [LABELS[index] for index in offline(dense, rows_of(6))]
    (dense / "task.json").unlink()
    for task in (exported, exported.parent, exported / "task.json"):
        out = tmp_path / "out.jsonl"
        command = ["--model", dense, "--task", task, tmp_path / "a.jsonl", "--out", out]
        main([str(word) for word in command])
        assert [row["predicted"] for row in read_jsonl(out)] == expected
        out.unlink()


def test_rows_with_options_of_their_own_get_a_probability_for_each(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"question": "Good or bad?", "options": ["good film", "bad film"], "answer_idx": "A"},
        {"question": "True?", "options": ["yes", "no", "true"], "answer_idx": "C"},
    ]
    for style in ("text", "letter"):
        config = TaskConfig(**{**vars(QUESTIONS), "answer_style": style, "name": style})
        folder = with_task(exported, tmp_path / style, config)
        write_rows(tmp_path / f"{style}.jsonl", rows)
        main([str(folder), str(tmp_path / f"{style}.jsonl")])
        answers = read_jsonl(tmp_path / f"{style}.answers.jsonl")
        words = [["A", "B"], ["A", "B", "C"]] if style == "letter" else [r["options"] for r in rows]
        assert [list(answer["probabilities"]) for answer in answers] == words
        right = [own["ABC".index(r["answer_idx"])] for own, r in zip(words, rows, strict=True)]
        share = sum(a["predicted"] == r for a, r in zip(answers, right, strict=True)) / 2
        assert f"Accuracy: {100 * share:.1f} % of 2 rows" in capsys.readouterr().out
    table = [{k: json.dumps(v) if k == "options" else v for k, v in row.items()} for row in rows]
    main([str(tmp_path / "text"), str(write_csv(tmp_path / "text.csv", table))])
    cells = [json.loads(row["probabilities"]) for row in read_csv(tmp_path / "text.answers.csv")]
    assert cells == [a["probabilities"] for a in read_jsonl(tmp_path / "text.answers.jsonl")]


def test_written_answers_are_what_the_model_generates(exported: Path, tmp_path: Path) -> None:
    config = TaskConfig(name="w", kind="generation", prompt="{text}", max_new_tokens=5, stop=[])
    folder = with_task(exported, tmp_path / "export", config)
    write_rows(tmp_path / "a.jsonl", [{"text": "a good movie"}, {"text": "the film"}])
    main([str(folder), str(tmp_path / "a.jsonl")])
    model, tokenizer = sieve.load(folder)
    for row in read_jsonl(tmp_path / "a.answers.jsonl"):
        prompt = tokenizer(row["text"], return_tensors="pt")
        ids = model.generate(**prompt, max_new_tokens=5, do_sample=False)
        new = ids[0, prompt.input_ids.shape[1] :]
        assert row["predicted"] == tokenizer.decode(new, skip_special_tokens=True).strip()


def test_texts_get_nats_per_token_and_the_perplexity_of_an_evaluation(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TaskConfig(name="t", kind="perplexity", prompt="{text}")
    folder = with_task(exported, tmp_path / "export", config)
    texts = ["a good movie", "", "the question is true or false"]
    write_rows(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    main([str(folder), str(tmp_path / "a.jsonl")])
    model, tokenizer = sieve.load(folder)
    examples = [sieve.Example("", (text,), 0) for text in texts if text]
    batches = text_batches(examples, tokenizer, metric_of("perplexity", None))
    scores = score(model, batches)
    answers = read_jsonl(tmp_path / "a.answers.jsonl")
    nats = [row["nats_per_token"] for row in answers]
    assert nats.pop(1) is None and answers[1]["scored_tokens"] == 0
    assert nats == pytest.approx([-value for value in scores.values])
    assert f"Perplexity: {scores.accuracy:.4g} per token" in capsys.readouterr().out


def test_a_killed_prediction_goes_on_where_it_stopped(
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    write_rows(tmp_path / "a.jsonl", rows_of(30))
    write_rows(tmp_path / "b.jsonl", rows_of(30))
    command = [str(exported), str(tmp_path / "a.jsonl"), "--batch-tokens", "64"]
    main([str(exported), str(tmp_path / "b.jsonl"), "--batch-tokens", "64"])
    add, kept = Journal.add, []

    def killed(self: Journal, answers: dict) -> None:
        add(self, answers)
        kept.append(len(answers))
        if len(kept) == 3:
            with self.path.open("ab") as file:  # A kill in the middle of a line.
                file.write(b'{"5": {"pre')
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", killed)
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 130 and "Run the same command again to resume." in caplog.text
    assert not (tmp_path / "a.answers.jsonl").exists()
    answered: list[int] = []
    monkeypatch.setattr(Journal, "add", lambda *a: (answered.append(len(a[1])), add(*a)))
    main(command)
    assert f"{sum(kept)} of 30 rows are answered already." in caplog.text
    assert sum(answered) == 30 - sum(kept)
    expected = read_jsonl(tmp_path / "b.answers.jsonl")
    resumed = read_jsonl(tmp_path / "a.answers.jsonl")
    assert [row["predicted"] for row in resumed] == [row["predicted"] for row in expected]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".jsonl"] * 4


@pytest.mark.parametrize("changed", ["model", "task", "rows"])
def test_another_model_task_or_file_does_not_reuse_answers(
    changed: str, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_task(exported, tmp_path / "export", REVIEWS)
    write_rows(tmp_path / "a.jsonl", rows_of(8))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("sieve.predict.journal.Journal.remove", stop)  # All answers stay in it.
        main([str(folder), str(tmp_path / "a.jsonl")])
    (tmp_path / "a.answers.jsonl").unlink()
    if changed == "model":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"note": 1}))
    elif changed == "task":
        write_task(TaskConfig(**{**vars(REVIEWS), "prompt": "{text} {what}:"}), LABELS, folder)
    else:
        write_rows(tmp_path / "a.jsonl", rows_of(9)[1:])
    added: list[int] = []
    add = Journal.add
    monkeypatch.setattr(Journal, "add", lambda *a: (added.append(len(a[1])), add(*a)))
    main([str(folder), str(tmp_path / "a.jsonl")])
    assert sum(added) == 8


def test_bad_files_get_one_sentence(
    exported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "empty.csv").write_text("text,what\n")
    (tmp_path / "rows.xlsx").write_text("no table")
    (tmp_path / "broken.jsonl").write_text('{"text": "a", "what": "film"}\nnothing\n')
    (tmp_path / "columns.csv").write_text("sentence,label\ngood,positive\n")
    (tmp_path / "again.csv").write_text("text,what,predicted\ngood,film,positive\n")
    (tmp_path / "done.csv").write_text("text,what\ngood,film\n")
    (tmp_path / "done.answers.csv").write_text("")
    write_rows(tmp_path / "long.jsonl", [*rows_of(2), {"text": "a " * 300, "what": "film"}])
    for name, sentence in (
        ("nothing.csv", "nothing.csv does not exist, expected a file that ends with .jsonl, .json"),
        ("rows.xlsx", "rows.xlsx is no table, expected a file that ends with .jsonl, .json"),
        ("empty.csv", "empty.csv has no rows, expected at least one; add rows."),
        ("broken.jsonl", "broken.jsonl cannot be read (line 2 is not JSON"),
        ("columns.csv", "row 1 of columns.csv has no field 'what' that the prompt names; it has"),
        ("again.csv", "again.csv has a column 'predicted' already"),
        ("done.csv", "done.answers.csv exists already; delete it, or name another file with --out"),
        ("long.jsonl", "row 3 of long.jsonl is longer than the model's context: it has "),
    ):
        message = refused(capsys, caplog, exported, tmp_path / name)
        assert sentence in message and len(message.strip().splitlines()) == 1, message
    file = tmp_path / "columns.csv"
    other = refused(capsys, caplog, exported, file, "--out", tmp_path / "out.parquet")
    assert "expected a file of the same type as the rows; end it with .csv." in other
    assert "has no task.json" in refused(capsys, caplog, tmp_path, file)
    assert "--model needs --task" in refused(capsys, caplog, "--model", exported, file)
    assert "expected a run's export and a file" in refused(capsys, caplog, file)
    assert not list(tmp_path.glob("*.partial"))


def test_options_may_stand_between_export_and_file() -> None:
    options = parse(["runs/x", "--out", "b.csv", "a.csv", "--dtype", "float32"])
    assert (options.export, options.file, options.out) == ("runs/x", Path("a.csv"), Path("b.csv"))


@pytest.mark.slow
def test_a_predicted_test_split_has_the_accuracy_that_the_run_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world(tmp_path)
    result = finished(world, "run", "tolerance=0.9", "speed.enabled=false", "task.shots=2")
    out = tmp_path / "out.jsonl"
    words = ["predict", world / "run", world / "data" / "test.jsonl", "--out", out]
    monkeypatch.setattr("sys.argv", ["sieve", *map(str, words)])
    sieve.run.main()
    rows = read_jsonl(out)
    right = sum(row["predicted"] == row["label"] for row in rows) / len(rows)
    assert right == pytest.approx(result["pruned"]["accuracy"], abs=1e-9)
    assert "of 60 rows with a right answer." in capsys.readouterr().out
