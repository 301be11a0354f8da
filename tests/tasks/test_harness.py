"""Tasks of lm-evaluation-harness: the dense model's score is the harness's own, row by row."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pandas as pd
import pytest
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from models import tiny_llama, tiny_tokenizer

from sieve.data.reader import Reader
from sieve.evaluation.evaluation import score
from sieve.tasks import Task, TaskConfig, build_task
from sieve.tasks.harness import _manager

pytestmark = pytest.mark.slow

WORDS = "good bad movie film question answer the review yes no true false".split()
CHOICES = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold"}
KINDS: dict[str, dict[str, Any]] = {
    "choice": CHOICES | {"doc_to_text": "{{text}}\nAnswer:", "metric": "acc", "num_fewshot": 2},
    "choice_spaces": CHOICES
    | {"doc_to_text": "{{text}}: ", "metric": "acc", "target_delimiter": ""},
    "choice_by_length": CHOICES | {"doc_to_text": "{{text}}", "metric": "acc_norm"},
    "choice_alone": CHOICES | {"doc_to_text": "", "metric": "acc"},
    "contexts": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{gold}}",
        "metric": "acc",
        "doc_to_choice": "{{[text + ' so', text + ' but', 'the']}}",
        "doc_to_target": "{{word}}",
    },
    "last_word": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{likely}}",
        "metric": "acc",
        "target_delimiter": "",
    },
    "surprise": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{text}}",
        "doc_to_target": " {{word}}",
        "metric": "perplexity",
        "aggregation": "perplexity",
    },
    "writing": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}\nAnswer:",
        "doc_to_target": "{{letter}}",
        "metric": "exact_match",
        "generation_kwargs": {"until": ["\n", "zz"], "max_gen_toks": 6, "do_sample": False},
        "filter_list": [
            {
                "name": "letter",
                "filter": [
                    {"function": "regex", "regex_pattern": "([a-z])"},
                    {"function": "take_first"},
                ],
            },
        ],
    },
    "text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric": "word_perplexity",
        "aggregation": "weighted_perplexity",
    },
    "text_in_bits": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric": "bits_per_byte",
        "aggregation": "bits_per_byte",
    },
}


def next_text(model: Any, text: str, tokens: int) -> str:
    """What the model writes next, so that some rows are right."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer([text], return_tensors="pt").input_ids
    out = model.generate(ids, max_new_tokens=tokens, do_sample=False)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def write_rows(folder: Path, model: Any) -> Path:
    rng = random.Random(0)
    for split, count in (("train", 24), ("validation", 12), ("test", 40)):
        rows = []
        for number in range(count):
            text = " ".join(rng.choices(WORDS, k=rng.randint(2, 40))) + f" {split} {number}"
            letters = [c for c in next_text(model, f"{text}\nAnswer:", 6) if c in ascii_lowercase]
            rows.append(
                {
                    "text": text,
                    "choices": [*rng.sample(WORDS, 3), "yes no"],
                    "word": rng.choice(WORDS),
                    "gold": rng.randint(0, 2),
                    "letter": letters[0] if letters and number % 3 else "q",
                    "likely": (next_text(model, text, 1) if number % 3 else "") or " no",
                }
            )
        pd.DataFrame(rows).to_parquet(folder / f"{split}.parquet")
    return folder


def write_task(folder: Path, kind: str) -> None:
    settings = dict(KINDS[kind])
    metric = {
        "metric": settings.pop("metric"),
        "higher_is_better": kind not in ("surprise", "text"),
    }
    metric["aggregation"] = settings.pop("aggregation", "mean")
    files = {split: str(folder / f"{split}.parquet") for split in ("train", "validation", "test")}
    task = {
        "task": f"toy_{kind}",
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": files},
        "training_split": "train",
        "validation_split": "validation",
        "test_split": "test",
        "metric_list": [metric],
        "metadata": {"version": 1},
        **settings,
    }
    (folder / f"toy_{kind}.yaml").write_text(json.dumps(task))  # JSON is YAML.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all tasks and their rows."""
    made = tmp_path_factory.mktemp("tasks")
    write_rows(made, tiny_llama())
    for kind in KINDS:
        write_task(made, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", made / "cache")
        yield made


@pytest.fixture(scope="module")
def scored(folder: Path) -> tuple[Any, Any]:
    """A model, and the harness's results on all tasks."""
    model = tiny_llama()
    lm = HFLM(pretrained=model, tokenizer=tiny_tokenizer(), batch_size=8, max_length=128)
    found = simple_evaluate(
        model=lm,
        tasks=[f"toy_{kind}" for kind in KINDS],
        log_samples=True,
        bootstrap_iters=0,
        task_manager=_manager(TaskManager, str(folder)),
        verbosity="ERROR",
    )
    return model, found


def task_of(kind: str, folder: Path, **settings: Any) -> Task:
    found = {"include_path": str(folder)}
    return build_task(TaskConfig(kind, prompt="", lm_eval=found, **settings), 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_score_is_the_harness_s_own_to_the_row(
    scored: tuple[Any, Any], folder: Path, kind: str
) -> None:
    model, theirs = scored
    task = task_of(f"toy_{kind}", folder)
    ours = score(model, Reader(tiny_tokenizer(), 128).scoring(task, task.splits["test"], 300))
    metric = KINDS[kind]["metric"]
    samples = sorted(theirs["samples"][task.name], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(ours.values) == 40
    rows = [sample[metric] for sample in samples]
    if kind == "surprise":
        assert ours.losses.tolist() == pytest.approx([-row for row in rows], abs=1e-3)
    elif kind.startswith("text"):
        assert ours.losses.tolist() == pytest.approx([-row[0] for row in rows], rel=1e-5)
        assert ours.weights is not None and ours.weights.tolist() == [row[1] for row in rows]
    else:
        assert ours.values.tolist() == rows
        assert 0 < sum(rows) < len(rows)
    [found] = [v for k, v in theirs["results"][task.name].items() if k.startswith(f"{metric},")]
    assert ours.accuracy == pytest.approx(found, rel=1e-4)


def test_the_splits_are_the_harness_s_and_share_no_prompt(folder: Path) -> None:
    task = task_of("toy_choice_by_length", folder)
    assert {role: len(rows) for role, rows in task.splits.items()} == {
        "calibration": 24,
        "selection": 12,
        "test": 40,
    }
    assert task.report["harness"]["metric"] == "acc_norm" and task.chat == "never"


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("no_such_task", {}, "has no task 'no_such_task'"),
        ("toy_choic", {}, "such as toy_choice, "),
        ("toy_choice_by_length", {"metric": "f1"}, "not 'f1', expected one that is a mean"),
    ],
)
def test_an_unknown_task_or_metric_gets_one_sentence(
    name: str, settings: dict[str, Any], message: str, folder: Path
) -> None:
    with pytest.raises(ValueError) as caught:
        task_of(name, folder, **settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)
