"""The three splits share no prompt and do not depend on the order of rows."""

import json
import random
from pathlib import Path

import pytest
from task_helpers import build, message_of, prompts, rows_of, write_splits

from sieve.tasks import Example
from sieve.tasks.build import count_answers
from sieve.tasks.splits import carve, divide, drop_duplicates, fill, sample


def examples(*texts: str) -> list[Example]:
    return [Example(text, (" no", " yes"), 0) for text in texts]


def texts(split: list[Example]) -> list[str]:
    return [example.prompt for example in split]


def test_the_test_split_keeps_its_rows_and_the_others_lose_duplicates() -> None:
    splits, counts = drop_duplicates(
        {
            "calibration": examples("a", "b", "c", "c", "only"),
            "selection": examples("b", "c", "d", "d"),
            "test": examples("c", "c", "e"),
        }
    )
    assert texts(splits["test"]) == ["c", "c", "e"]
    assert texts(splits["selection"]) == ["b", "d", "d"]
    assert texts(splits["calibration"]) == ["a", "only"]
    assert counts == {
        "test/test": 1,
        "selection/test": 1,
        "selection/selection": 1,
        "calibration/test": 2,
        "calibration/selection": 1,
    }


def test_calibration_loses_its_own_repeats() -> None:
    splits, counts = drop_duplicates({"calibration": examples("a", "a", "b", "a")})
    assert texts(splits["calibration"]) == ["a", "b"]
    assert counts == {"calibration/calibration": 2}


def test_carving_takes_the_documented_shares() -> None:
    everything = examples(*(f"text {i}" for i in range(100)))
    splits, carved = carve({"calibration": everything})
    assert carved == {"test": 20, "selection": 15}
    assert {role: len(rows) for role, rows in splits.items()} == {
        "calibration": 65,
        "selection": 15,
        "test": 20,
    }
    assert sorted(sum(map(texts, splits.values()), [])) == sorted(texts(everything))


def test_carving_and_sampling_do_not_depend_on_the_order_of_rows() -> None:
    everything = examples(*(f"text {i}" for i in range(60)))
    shuffled = random.Random(1).sample(everything, 60)
    one, other = carve({"calibration": everything})[0], carve({"calibration": shuffled})[0]
    for role in one:
        assert set(texts(one[role])) == set(texts(other[role]))
        assert texts(one[role]) != texts(other[role])
    assert set(texts(sample(everything, 9, 0))) == set(texts(sample(shuffled, 9, 0)))


def test_a_carved_split_has_every_class() -> None:
    rows = [Example(f"text {i}", (" no", " yes"), int(i % 25 == 0)) for i in range(100)]
    splits, carved = carve({"calibration": rows}, classes=True)
    assert all({e.answer for e in splits[role]} == {0, 1} for role in splits)
    assert carved == {role: len(splits[role]) for role in carved}
    assert 18 <= carved["test"] <= 22 and 13 <= carved["selection"] <= 17


def test_classes_do_not_change_carved_splits_that_have_them_all() -> None:
    rows = [Example(f"text {i}", (" no", " yes"), i % 2) for i in range(100)]
    assert carve({"calibration": rows}, classes=True) == carve({"calibration": rows})


def test_rows_with_the_same_prompt_and_another_answer_are_counted() -> None:
    rows = [
        Example(text, (" no", " yes"), answer)
        for text, answer in (("a", 0), ("a", 1), ("b", 1), *((f"c{i}", 0) for i in range(9)))
    ]
    made = divide("t", {"calibration": rows, "test": rows[:2]}, {}, 0, classes=True)
    assert made.contradictory == 4 and made.report()["contradictory"] == 4


def filled(rows: int, calibration: int = 90) -> tuple[set[str], set[str]]:
    """The prompts of calibration and selection once a selection split of 10 rows is filled."""
    splits = {
        "calibration": examples(*(f"c{i}" for i in range(calibration))),
        "selection": examples(*(f"s{i}" for i in range(10))),
    }
    whole = fill(splits, rows)
    return set(texts(whole["calibration"])), set(texts(whole["selection"]))


def test_a_small_selection_split_takes_what_it_misses_from_calibration() -> None:
    calibration, selection = filled(25)
    assert len(selection) == 25 and len(calibration) == 75 and not calibration & selection
    assert {f"s{i}" for i in range(10)} <= selection


def test_fewer_rows_are_some_of_those_that_more_rows_take() -> None:
    assert filled(15)[1] < filled(25)[1] < filled(40)[1]


def test_a_third_of_calibration_is_taken_at_most() -> None:
    assert len(filled(1_000)[0]) == 60


def test_a_split_with_enough_rows_stays_as_it_is() -> None:
    assert filled(0) == filled(10) and len(filled(10)[1]) == 10


def test_a_limit_of_selection_rows_is_not_exceeded_by_filling() -> None:
    splits = {
        "calibration": examples(*(f"c{i}" for i in range(90))),
        "selection": examples(*(f"s{i}" for i in range(10))),
        "test": examples("t"),
    }
    division = divide("t", splits, {"selection": 12}, seed=0, selection_rows=30)
    rows = division.report("train")["rows"]
    assert rows == {"calibration": 88, "selection": 12, "test": 1} and division.filled == 2


def test_a_split_that_exists_is_not_carved() -> None:
    splits, carved = carve({"calibration": examples("a", "b", "c"), "test": examples("t")})
    assert carved == {"selection": 1}
    assert texts(splits["test"]) == ["t"]


def test_a_sample_depends_on_the_seed_only_and_keeps_the_order() -> None:
    everything = examples(*(f"text {i:02}" for i in range(50)))
    first = texts(sample(everything, 10, seed=0))
    assert len(first) == 10 and first == sorted(first)
    assert first == texts(sample(everything, 10, seed=0))
    assert first != texts(sample(everything, 10, seed=1))
    assert sample(everything, None, 0) == sample(everything, 50, 0) == everything


def test_a_task_reports_what_was_carved_and_dropped(tmp_path: Path) -> None:
    train = [*rows_of("train", 40), rows_of("test")[0], rows_of("train")[0]]
    folder = write_splits(tmp_path / "data", train=train, test=rows_of("test"))
    report = build(folder, max_rows={"calibration": 10}).report
    assert report["read"] == {"calibration": 42, "test": 6}
    assert report["rows"] == {"calibration": 10, "selection": 6, "test": 6}
    assert report["carved"] == {"selection": {"from": "train", "fraction": 0.15, "rows": 6}}
    assert report["duplicates"] == {"calibration/test": 1, "calibration/calibration": 1}
    assert sum(report["answers"]["test"].values()) == 6
    assert json.loads(json.dumps(report)) == report


def test_rare_answers_are_counted_together() -> None:
    def examples(*answers: str) -> list[Example]:
        return [Example("?", (f" {answer}", " other"), 0) for answer in answers]

    common = [str(i) for i in range(12) for _ in range(2)]
    counted = count_answers({"selection": examples(*common), "test": examples("x", "y", "3")})
    assert len(counted["test"]) == 13
    assert (counted["test"]["3"], counted["test"]["4"]) == (1, 0)
    assert counted["test"]["2 other answers"] == 2
    assert counted["selection"]["2 other answers"] == 0
    assert sum(counted["selection"].values()) == 24


def test_a_null_split_is_carved_even_if_its_file_exists(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "data", train=rows_of("train", 40), test=rows_of("test"))
    splits = {"calibration": "train", "selection": None, "test": None}
    task = build(folder, splits=splits)
    assert all("train" in prompt for prompt in prompts(task, "test"))
    assert len(prompts(task, "test")) == 8


def test_a_train_file_that_copies_test_is_refused(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "data", train=rows_of("same"), test=rows_of("same"))
    message = message_of(ValueError, folder)
    assert "the calibration split is empty" in message and "calibration/test: 6" in message


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_settings_give_the_same_task(tmp_path: Path, seed: int) -> None:
    folder = write_splits(tmp_path / "data", train=rows_of("train", 60))
    settings = {"max_rows": {"test": 10, "selection": 8}}
    assert build(folder, seed, **settings) == build(folder, seed, **settings)
