"""Rows come from files, the Hub or the embedded world; errors name the file and say what to do."""

import json
import os
import random
import sys
import tracemalloc
import types
from pathlib import Path

import datasets
import pandas as pd
import pytest
from task_helpers import build, make_config, message_of, prompts, rows_of, write_jsonl, write_splits

from sieve.tasks import Task, build_task
from sieve.tasks.rows import read_rows, resolve_split


def test_jsonl_json_csv_and_parquet_give_the_same_task(tmp_path: Path) -> None:
    texts = ["NA", "", 'quoted "x", with comma', "two\nlines", "naïve", "plain"]
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(texts)]
    frame = pd.DataFrame(rows)
    folders = {name: tmp_path / name for name in ("jsonl", "json", "csv", "parquet")}
    for folder in folders.values():
        write_splits(folder, validation=rows_of("validation"), test=rows_of("test"))
    write_jsonl(folders["jsonl"] / "train.jsonl", rows)
    frame.to_json(folders["json"] / "train.json", orient="records")
    frame.to_csv(folders["csv"] / "train.csv", index=False)
    frame.to_parquet(folders["parquet"] / "train.parquet")
    tasks = [build(folder) for folder in folders.values()]
    assert tasks[0].splits["calibration"][0].prompt == "Review: NA\nSentiment:"
    assert len(tasks[0].splits["calibration"]) == len(rows)
    assert all(task.splits == tasks[0].splits for task in tasks)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_texts_and_labels_that_look_like_dates_or_numbers_stay_as_they_are(
    tmp_path: Path, name: str
) -> None:
    rows = [
        {"text": "2026-11-25", "label": "2026-11-25 10:00:00", "id": 1},
        {"text": "007", "label": "1.0", "id": "x1", "more": ["2026-11-25", 3]},
    ]
    folder = tmp_path / "data"
    folder.mkdir()
    if name.endswith("l"):
        write_jsonl(folder / name, rows)
    else:
        (folder / name).write_text("\ufeff" + json.dumps(rows, indent=1), encoding="utf-8")
    config = make_config(folder, splits={"calibration": "rows", "selection": None, "test": None})
    assert read_rows(config)["calibration"][1] == [{**rows[0], "more": None}, rows[1]]


def test_a_changed_file_of_the_same_name_time_and_size_is_read_anew(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "data", test=rows_of("test"))
    path = folder / "train.csv"
    pd.DataFrame(rows_of("train")).to_csv(path, index=False)
    assert read_rows(make_config(folder))["calibration"][1] == rows_of("train")
    stat = path.stat()
    pd.DataFrame(rows_of("brain")).to_csv(path, index=False)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert read_rows(make_config(folder))["calibration"][1] == rows_of("brain")


def test_the_cache_is_in_cache_dir(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    pd.DataFrame(rows_of("train", 40)).to_csv(folder / "train.csv", index=False)
    build(folder, cache_dir=str(tmp_path / "elsewhere"))
    assert any((tmp_path / "elsewhere").rglob("*.arrow"))
    assert sorted(path.name for path in folder.iterdir()) == ["train.csv"]


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev"])
def test_the_validation_split_may_have_any_usual_name(name: str) -> None:
    assert resolve_split("validation", ["train", name]) == name
    assert resolve_split("validation", ["train", "test"]) is None


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    message = message_of(ValueError, tmp_path / "nowhere")
    assert "nowhere does not exist" in message and "task.data_dir" in message


def test_a_folder_without_data_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert "has no .jsonl" in message_of(ValueError, tmp_path / "data")


def test_a_folder_without_a_calibration_split_says_what_it_has(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "data", test=rows_of("test"))
    message = message_of(ValueError, folder)
    assert "'train'" in message and "which has test" in message


def test_two_files_for_one_split_are_refused(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "data", train=rows_of("train"))
    (folder / "train.csv").write_text("text,label\na,0\n")
    assert "both train.csv and train.jsonl" in message_of(ValueError, folder)


def test_two_roles_on_one_split_are_refused(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "data", train=rows_of("train"), dev=rows_of("dev"))
    splits = {"calibration": "train", "selection": "dev", "test": "validation"}
    message = message_of(ValueError, folder, splits=splits)
    assert "selection and test both name the split 'dev'" in message


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_split_is_refused(tmp_path: Path, content: str) -> None:
    folder = write_splits(tmp_path / "data", train=rows_of("train"))
    (folder / "test.jsonl").write_text(content)
    message = message_of(ValueError, folder)
    assert "the split 'test' (test)" in message and "has no rows" in message


def test_a_table_with_a_header_alone_has_no_rows(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "data")
    (folder / "train.csv").write_text("text,label\n")
    assert "the split 'train' (calibration)" in message_of(ValueError, folder)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_of_a_table_is_recognized(tmp_path: Path, separator: str) -> None:
    folder = write_splits(tmp_path / "data")
    rows = [{"text": f"a, b; c {i}", "label": i % 2} for i in range(4)]
    pd.DataFrame(rows).to_csv(folder / "train.csv", index=False, sep=separator)
    assert read_rows(make_config(folder))["calibration"][1] == rows


@pytest.mark.parametrize("name", ["train.csv", "test.jsonl", "reviews.json"])
def test_a_file_instead_of_a_folder_is_divided_by_hash(tmp_path: Path, name: str) -> None:
    folder = write_splits(tmp_path / "data", validation=rows_of("other", 40))
    pd.DataFrame(rows_of("row", 100)).to_csv(folder / "train.csv", index=False)
    write_jsonl(folder / "test.jsonl", rows_of("row", 100))
    (folder / "reviews.json").write_text(json.dumps(rows_of("row", 100)))
    task = build(folder / name)
    assert task.report["rows"] == {"calibration": 65, "selection": 15, "test": 20}
    assert "other" not in "".join(prompts(task, "calibration"))


def test_a_broken_json_line_is_named_by_its_number(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "data", train=rows_of("train"))
    lines = (folder / "train.jsonl").read_text().splitlines()
    lines[2] = lines[2][:-1]
    (folder / "train.jsonl").write_text("\n".join(lines))
    message = message_of(ValueError, folder)
    assert "train.jsonl cannot be read (line 3 is not JSON" in message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train.json", '[{"text": "a", "label": 0}, 3]', "entry 2 is not a JSON object"),
        ("train.json", '[{"text": "a"', "JSONDecodeError"),
        ("train.jsonl", '{"text": "a", "label": 0}\n\n["b", 1]', "line 3 is not a JSON object"),
        ("train.jsonl", b'{"text": "\xff"}', "UnicodeDecodeError"),
    ],
)
def test_json_without_objects_is_refused(
    tmp_path: Path, name: str, content: str | bytes, words: str
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    message = message_of(ValueError, folder)
    assert f"{name} cannot be read ({words}" in message and message.endswith(
        "save it as UTF-8." if "Unicode" in words else "correct the file."
    )


def test_the_only_file_of_a_folder_is_named_as_the_split_to_set(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "data", reviews=rows_of("train"))
    assert message_of(ValueError, folder).endswith("set task.splits.calibration=reviews.")


def test_a_parquet_file_that_is_text_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.parquet").write_text("not a parquet file")
    assert "train.parquet cannot be read" in message_of(ValueError, folder)


def test_a_task_without_a_source_is_refused() -> None:
    assert "no source of rows" in message_of(ValueError, None)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (ConnectionError("Couldn't reach 'a/b' on the Hub (OfflineModeIsEnabled)"), "reach 'a/b'"),
        (datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' is a gated dataset"), "gated"),
        (RuntimeError("Dataset scripts are no longer supported, but found b.py"), "scripts"),
    ],
)
def test_a_hub_failure_names_the_data_set_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, fault: Exception, words: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(datasets, "load_dataset", fail)
    message = message_of(RuntimeError, None, hub={"path": "a/b"})
    assert words in message and "a/b" in message and "task.data_dir" in message


def test_a_hub_revision_is_requested_and_missing_splits_are_carved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[object, ...]] = []

    def load(path: str, name: str | None, *, revision: str | None, cache_dir: str | None) -> object:
        asked.append((path, name, revision))
        parts = {name: datasets.Dataset.from_list(rows_of(name, 40)) for name in ("train", "test")}
        return datasets.DatasetDict(parts)

    monkeypatch.setattr(datasets, "load_dataset", load)
    config = make_config(hub={"path": "a/b", "name": "plain", "revision": "abc"})
    task = build_task(config, 0)
    assert asked == [("a/b", "plain", "abc")]
    assert task.report["source"] == "a/b@plain@abc"
    assert task.report["rows"] == {"calibration": 34, "selection": 6, "test": 40}
    assert list(task.report["carved"]) == ["selection"]


def test_almanac_rows_are_read_once_per_role(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, object]] = []

    def almanac_rows(**settings: object) -> list[dict[str, object]]:
        calls.append(settings)
        return rows_of(str(settings["split"]))

    fake = types.ModuleType("sieve.tasks.almanac")
    vars(fake)["almanac_rows"] = almanac_rows
    monkeypatch.setitem(sys.modules, "sieve.tasks.almanac", fake)
    task = build_task(make_config(almanac={"domain": "reviews", "dataset": "alternate"}), 3)
    assert [call["split"] for call in calls] == ["calibration", "selection", "test"]
    assert all(call["dataset"] == "alternate" for call in calls)
    assert prompts(task, "test")[0] == "Review: test text number 0\nSentiment:"
    assert task.report["source"] == "almanac/reviews/alternate"


def shuffled_world(folder: Path, seed: int) -> Path:
    """300 rows, some repeated, in an order that depends on the seed; no other split."""
    rows = [{"text": f"text {i % 280}", "label": i % 2} for i in range(300)]
    random.Random(seed).shuffle(rows)
    return write_splits(folder, train=rows)


def by_prompt(task: Task) -> dict[str, set[tuple[str, int]]]:
    return {role: {(e.prompt, e.answer) for e in rows} for role, rows in task.splits.items()}


@pytest.mark.parametrize("limit", [None, 50])
def test_the_splits_of_large_files_do_not_depend_on_the_order_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    caps = {"calibration": limit, "selection": limit}
    small = build(shuffled_world(tmp_path / "a", 0), max_rows=caps)
    monkeypatch.setattr("sieve.tasks.rows.LARGE_BYTES", 0)
    first, second = (build(shuffled_world(tmp_path / f"b{n}", n), max_rows=caps) for n in (0, 1))
    assert by_prompt(first) == by_prompt(second)
    for key in ("read", "rows", "duplicates"):
        assert first.report[key] == small.report[key]
    rows = [{e.prompt for e in split} for split in first.splits.values()]
    assert not (rows[0] & rows[1] or rows[0] & rows[2] or rows[1] & rows[2])


def test_large_data_gives_a_limited_number_of_calibration_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sieve.tasks.rows.LARGE_BYTES", 0)
    monkeypatch.setattr("sieve.tasks.build.LARGEST_CALIBRATION", 30)
    folder = shuffled_world(tmp_path / "data", 0)
    assert len(build(folder).splits["calibration"]) == 30
    assert len(build(folder, max_rows={"calibration": 70}).splits["calibration"]) == 70


def test_an_error_deep_in_a_large_file_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sieve.tasks.rows.LARGE_BYTES", 0)
    folder = shuffled_world(tmp_path / "data", 0)
    with (folder / "train.jsonl").open("a") as file:
        file.write("{broken\n")
    assert "train.jsonl cannot be read (line 301 is not JSON" in message_of(ValueError, folder)


def test_a_large_file_is_never_in_memory_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sieve.tasks.rows.LARGE_BYTES", 0)
    rows = [{"text": f"row {i} " + "of many words " * 240, "label": i % 2} for i in range(3000)]
    folder = write_splits(tmp_path / "data", train=rows)
    tracemalloc.start()
    task = build(folder, max_rows={"calibration": 50, "selection": 20, "test": 20})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(task.splits["calibration"]) == 50
    assert peak < 0.4 * (folder / "train.jsonl").stat().st_size


def test_a_hub_stream_gives_its_first_rows_on_each_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stream() -> datasets.IterableDatasetDict:
        made = datasets.Dataset.from_list(rows_of("train", 60)).to_iterable_dataset()
        return datasets.IterableDatasetDict({"train": made})

    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **asked: asked["streaming"] and stream()
    )
    task = build_task(make_config(hub={"path": "a/b", "streaming": True, "rows": 40}), 0)
    assert task.report["read"] == {"calibration": 40}
    assert sum(map(len, task.splits.values())) == 40
    assert {e.prompt for split in task.splits.values() for e in split} == {
        f"Review: train text number {i}\nSentiment:" for i in range(40)
    }
