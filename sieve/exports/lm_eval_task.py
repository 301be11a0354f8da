"""A Sieve task for lm-evaluation-harness: `python -m sieve.exports.lm_eval_task FOLDER +task=sst2`.

Writes a task file and the rows of the test split as Sieve renders them, prompts and answers, so
that the harness scores an export, or any other model, on the very rows of a result:

    lm_eval --model hf --model_args pretrained=EXPORT,trust_remote_code=True,dtype=float32 \\
        --include_path FOLDER --tasks sieve_sst2

What follows the folder are the overrides that the run was given. Sieve scores in float32 on a CPU
and uses a chat template where there is one: the harness is told so by `--apply_chat_template`.
"""

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from sieve.conversion import CONF, register_resolvers, to_config
from sieve.runtime.artifacts import write_json_atomic, written_beside
from sieve.tasks import Task, build_task
from sieve.tasks.build import CHOICE_KINDS

log = logging.getLogger(__name__)
# The harness's metrics by what log-likelihoods are divided by.
METRICS = {"none": "acc", "characters": "acc_norm", "bytes": "acc_bytes"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the task of some overrides; status 1 and one sentence where that cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m sieve.exports.lm_eval_task", description=__doc__
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("overrides", nargs="+", help="as of a run: +task=sst2 seed=1")
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    register_resolvers()
    try:
        with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            config = to_config(compose("config", asked.overrides))
        name = write_lm_eval_task(build_task(config.task, config.seed), asked.folder)
    except (HydraException, ValueError, RuntimeError, OSError) as error:
        log.error("%s", str(error).splitlines()[0])
        sys.exit(1)
    log.info("%s: lm_eval --include_path %s --tasks %s", name, asked.folder, name)


def write_lm_eval_task(task: Task, folder: Path, role: str = "test") -> str:
    """Write `<name>.yaml` and `<name>.parquet` into a folder; returns the name of the task there.

    Its metric is Sieve's accuracy, of log-likelihoods as they are or by characters or bytes;
    where the task divides them by tokens, the harness has no such metric and ValueError says so, as
    for tasks without answers to choose from. Prompts are written without a chat template:
    `--apply_chat_template` adds the tokenizer's.
    """
    if task.kind not in CHOICE_KINDS or task.normalize not in METRICS or task.row_metric:
        raise ValueError(
            f"task '{task.name}' is of kind '{task.kind}', by {task.metric.name} of "
            f"log-likelihoods divided by {task.normalize}, expected the accuracy of a choice, "
            f"divided by {', '.join(METRICS)}; set task.normalize=none, or run a task of the "
            "harness."
        )
    from datasets import Dataset

    name = "sieve_" + re.sub(r"\W+", "_", task.name)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "prompt": example.prompt,
            "choices": [choice.removeprefix(task.delimiter) for choice in example.choices],
            "answer": example.answer,
        }
        for example in task.splits[role]
    ]
    path = folder / f"{name}.parquet"  # Not JSON, which is read with guesses: texts become dates.
    with written_beside(path) as partial:
        Dataset.from_list(rows).to_parquet(partial)
    # JSON is YAML; the harness reads it as such.
    write_json_atomic(folder / f"{name}.yaml", _task_file(name, path.resolve(), task))
    return name


def _task_file(name: str, rows: Path, task: Task) -> dict[str, Any]:
    return {
        "task": name,
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        # Names of fields, which are read as they stand: a template makes a number of digits.
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": task.delimiter,
        "metric_list": [
            {"metric": METRICS[task.normalize], "aggregation": "mean", "higher_is_better": True}
        ],
        "metadata": {"version": 1},
    }


if __name__ == "__main__":
    main()
