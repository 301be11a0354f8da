"""Every configured task composes and reads the columns of the Hub and of the shared folders."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sieve.conversion import register_resolvers
from sieve.tasks import TaskConfig, build_task
from sieve.tasks.example import Example

CONF = Path(__file__).parents[2] / "conf"
FOLDERS = {"medqa": "medqa_usmle"}
REAL = (
    "ag_news customer_reviews financial_phrasebank imdb medmcqa medqa pubmedqa sst2 subj trec "
    "uci_sentiment"
).split()

ON_THE_HUB = (
    "amazon arc bioasq boolq gsm8k hellaswag hotpotqa mmlu narrativeqa perplexity piqa "
    "rotten_tomatoes squad winogrande yelp"
).split()


def load(name: str, *overrides: str) -> TaskConfig:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        raw = compose(f"task/{name}", [f"task.{override}" for override in overrides]).task
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TaskConfig), raw))
    assert isinstance(config, TaskConfig)
    return config


def text_row(index: int) -> dict[str, Any]:
    return {"text": f"text {index}", "label": index % 2}


# Rows with the columns of the data sets on the Hub.
HUB_ROWS: dict[str, Any] = {
    "financial_phrasebank": lambda i: {"sentence": f"s {i}", "label": i % 3},
    "trec": lambda i: {"text": f"t {i}", "label_coarse_original": ["ENTY", "NUM"][i % 2]},
    "uci_sentiment": lambda i: {"sentence": f"s {i}", "label": i % 2},
    "pubmedqa": lambda i: {
        "question": f"q {i}",
        "context": {"contexts": ["one", "two"], "labels": ["x", "y"]},
        "final_decision": ["yes", "maybe"][i % 2],
    },
    "medqa": lambda i: {
        "question": f"q {i}",
        "options": {"A": "a", "B": "b", "C": "c", "D": "d"},
        "answer_idx": "C",
        "answer": "c",
    },
    "medmcqa": lambda i: {
        "question": f"q {i}",
        **{f"op{letter}": letter for letter in "abcd"},
        "cop": i % 4,
    },
}
HUB_ROWS |= {
    "amazon": lambda i: {"title": f"t {i}", "content": f"c {i}", "label": i % 2},
    "arc": lambda i: {
        "question": f"q {i}",
        "choices": {"text": ["w", "x", "y"], "label": ["A", "B", "C"]},
        "answerKey": "C",
    },
    "bioasq": lambda i: {"question": f"q {i}", "answer": "long", "id": i},
    "boolq": lambda i: {"question": f"q {i}", "answer": bool(i % 2), "passage": "p"},
    "gsm8k": lambda i: {"question": f"q {i}", "answer": f"So it is.\n#### {i}"},
    "hellaswag": lambda i: {
        "activity_label": "a",
        "ctx": f"c {i}",
        "endings": ["w", "x", "y", "z"],
        "label": "2",
    },
    "hotpotqa": lambda i: {
        "question": f"q {i}",
        "answer": "a",
        "context": {"title": ["one", "two"], "sentences": [["a", "b"], ["c"]]},
    },
    "mmlu": lambda i: {"question": f"q {i}", "choices": ["w", "x", "y", "z"], "answer": 2},
    "narrativeqa": lambda i: {
        "document": {"summary": {"text": "s"}},
        "question": {"text": f"q {i}"},
        "answers": [{"text": "a"}, {"text": "b"}],
    },
    "perplexity": lambda i: {"text": ["", f"text {i}"][i % 2]},
    "piqa": lambda i: {"goal": f"g {i}", "sol1": "x", "sol2": "y", "label": i % 2},
    "squad": lambda i: {
        "context": "c",
        "question": f"q {i}",
        "answers": {"text": ["a", "b"], "answer_start": [1]},
    },
    "winogrande": lambda i: {
        "sentence": f"{i} _ it",
        "option1": "x",
        "option2": "y",
        "answer": "2",
    },
}
HUB_SPLITS: dict[str, tuple[str, ...]] = {
    "sst2": ("train", "validation", "test"),
    "financial_phrasebank": ("train", "validation", "test"),
    "medmcqa": ("train", "validation", "test"),
    **dict.fromkeys(
        ("arc", "narrativeqa", "perplexity", "rotten_tomatoes"), ("train", "validation", "test")
    ),
    **dict.fromkeys(("boolq", "hotpotqa", "squad"), ("train", "validation")),
    **dict.fromkeys(("hellaswag", "piqa", "winogrande"), ("train", "validation", "test")),
    "mmlu": ("test", "validation", "dev"),
    "bioasq": ("test",),
    "pubmedqa": ("train",),
    "uci_sentiment": ("train",),
}


@pytest.mark.parametrize("name", [*REAL, *ON_THE_HUB])
def test_a_task_reads_the_columns_of_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = HUB_ROWS.get(name, text_row)

    def rows(start: int) -> datasets.Dataset:
        return datasets.Dataset.from_list([row(i) for i in range(start, start + 80)])

    names = HUB_SPLITS.get(name, ("train", "test"))
    splits = datasets.DatasetDict({part: rows(100 * n) for n, part in enumerate(names)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: splits)
    config = load(name)
    task = build_task(config, 0)
    assert config.name == task.name == name
    wanted = {**config.splits, **(config.hub or {}).get("splits", {})}
    used = {part for part in wanted.values() if part in names}
    each = 40 if name == "perplexity" else 80  # Half of the rows are empty.
    assert sum(task.report["rows"].values()) == each * len(used)
    assert set(task.report["carved"]) == {
        role for role, part in wanted.items() if part not in names
    }


def first(name: str, monkeypatch: pytest.MonkeyPatch) -> Example:
    """The first test example of a task, from rows as the Hub has them."""
    row, names = HUB_ROWS[name], HUB_SPLITS.get(name, ("train", "test"))
    parts = {
        part: datasets.Dataset.from_list([row(i) for i in range(100 * n, 100 * n + 40)])
        for n, part in enumerate(names)
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(parts))
    return build_task(load(name), 0).splits["test"][0]


@pytest.mark.slow
def test_the_answers_of_hub_rows_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, right in (
        ("arc", " y"),
        ("hellaswag", " y"),
        ("mmlu", " C"),
        ("winogrande", " y"),
        ("squad", " a"),
    ):
        example = first(name, monkeypatch)
        assert example.choices[example.answer] == right, name
    for name, references in (("squad", ("a", "b")), ("narrativeqa", ("a", "b"))):
        assert first(name, monkeypatch).references == references
    example = first("boolq", monkeypatch)
    number = int(example.prompt.split("q ")[1].split("?")[0])
    assert example.choices[example.answer] == [" no", " yes"][number % 2]
    assert first("hotpotqa", monkeypatch).prompt.startswith("Context: a\nb\nc\nQuestion: q ")
    writing = build_task(load("gsm8k"), 0).writing
    assert writing and writing.targets(["So it is.\n#### 1,234"]) == ["1,234"]
    assert writing.extract_from("It is 3.\n#### -12.5.") == "-12.5"


def test_pubmedqa_joins_the_contexts_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [HUB_ROWS["pubmedqa"](i) for i in range(60)]
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: splits)
    example = build_task(load("pubmedqa"), 0).splits["test"][0]
    assert example.prompt.startswith("Context: one\ntwo\nQuestion: q ")
    assert example.prompt.endswith("\nAnswer:")
    assert example.choices == (" yes", " no", " maybe")


def test_medmcqa_scores_validation_because_the_test_answers_are_hidden() -> None:
    hub = load("medmcqa").hub
    assert hub is not None and hub["splits"] == {"selection": None, "test": "validation"}


def test_jsonl_needs_a_folder_and_takes_a_prompt(tmp_path: Path) -> None:
    config = load("jsonl", f"data_dir={tmp_path}", r"prompt='Review: {text}\nSentiment:'")
    assert config.data_dir == str(tmp_path)
    assert config.prompt == r"Review: {text}\nSentiment:"
    with pytest.raises(ValueError, match="set task.data_dir to a folder with train.jsonl"):
        build_task(load("jsonl"), 0)


def test_the_base_configuration_has_every_setting() -> None:
    base = OmegaConf.load(CONF / "task" / "_base.yaml")
    assert set(base) == set(OmegaConf.structured(TaskConfig))
    defaults = OmegaConf.structured(TaskConfig(name="x", prompt="p"))
    assert {
        key for key in base if not OmegaConf.is_missing(base, key) and base[key] != defaults[key]
    } == {"answer_field", "max_rows"}  # One by the kind of task, one by role.


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
def test_a_task_builds_on_the_shared_folder(name: str, shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / FOLDERS.get(name, name)
    task = build_task(load(name, f"data_dir={folder}", f"cache_dir={tmp_path}"), 0)
    rows = {
        role: (folder / f"{part}.jsonl").read_bytes().count(b"\n")
        for role, part in load(name).splits.items()
    }
    assert task.report["read"] == rows
    assert len(task.splits["test"]) == rows["test"]
    prompts = [{e.prompt for e in split} for split in task.splits.values()]
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])


@pytest.mark.shared
def test_trec_reads_names_not_integers(shared: Path, tmp_path: Path) -> None:
    config = load("trec", f"data_dir={shared / 'data/trec'}", f"cache_dir={tmp_path}")
    found = {e.prompt: e.choices[e.answer] for e in build_task(config, 0).splits["test"]}
    assert found["Question: What is an atom ?\nType:"] == " description"
    assert found["Question: How far is it from Denver to Aspen ?\nType:"] == " number"
