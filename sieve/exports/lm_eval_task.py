"""Write a Sieve task for lm-evaluation-harness.

    python -m sieve.exports.lm_eval_task FOLDER +task=sst2

writes a task file and the rows of the test split, with the prompts and answers that Sieve renders,
so that the harness scores an export, or another model, on the rows of a result:

    lm_eval --model hf --model_args pretrained=EXPORT,trust_remote_code=True,dtype=float32 \\
        --include_path FOLDER --tasks sieve_sst2

Pass the overrides of the run after the folder, and the dtype that the run computed in. If it used
the chat template (`data.prompt` in its result.json), give the harness `--apply_chat_template`.
"""

import argparse
import json
import logging
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from sieve.config import Config
from sieve.conversion import CONF, register_resolvers, to_config
from sieve.data.paired import with_same_answers
from sieve.data.reader import Reader
from sieve.exports import lm_eval_results
from sieve.model.checkpoint_files import find_model, load_tokenizer
from sieve.runtime.artifacts import written_beside
from sieve.tasks import Task, build_task
from sieve.tasks.config import CHOICE_KINDS
from sieve.tasks.student import student_task

log = logging.getLogger(__name__)
RESULTS = "sieve_results"  # the copy of `lm_eval_results` beside the task file
# What log-likelihoods are divided by -> the metric of the harness.
METRICS = {"none": "acc", "characters": "acc_norm", "bytes": "acc_bytes"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the task of the given overrides; log an error and exit with status 1 on failure."""
    parser = argparse.ArgumentParser(
        prog="python -m sieve.exports.lm_eval_task",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="where to write the task file and the rows")
    parser.add_argument("overrides", nargs="+", help="overrides of the run: +task=sst2 seed=1")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    register_resolvers()
    try:
        with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            config = to_config(compose("config", options.overrides))
        name = write_lm_eval_task(pruned_task(config), options.folder)
    except (HydraException, ValueError, RuntimeError, OSError) as error:
        log.error("%s", str(error).splitlines()[0])
        sys.exit(1)
    log.info("%s: lm_eval --include_path %s --tasks %s", name, options.folder, name)


def pruned_task(config: Config) -> Task:
    """The task of a run as its pruned model reads it."""
    prompt = config.recovery.student_prompt
    task = build_task(config.task, config.seed, prompt)
    if prompt is None:
        return task
    if config.task.chat == "auto":
        raise ValueError(
            "task.chat is auto, expected always or never, since it decides how a short prompt "
            "ends; set what the run chose (data.prompt in result.json)."
        )
    model = config.model
    tokenizer = load_tokenizer(model, find_model(model.path, weights=False))
    return with_same_answers(student_task(task), task, Reader(tokenizer))[0]


def write_lm_eval_task(task: Task, folder: Path, role: str = "test") -> str:
    """Write `<name>.yaml`, its rows and how a row is scored into a folder; returns its name.

    Prompts have no chat template: `--apply_chat_template` adds the tokenizer's. Raises ValueError
    if the harness has no such metric: it has the accuracy of choices by their log-likelihoods,
    which are divided by nothing, characters or bytes, but not by tokens.
    """
    if task.kind not in CHOICE_KINDS or task.normalize not in METRICS or task.row_metric:
        raise ValueError(
            f"task '{task.name}' is of kind '{task.kind}' with the metric {task.metric.name} and "
            f"task.normalize={task.normalize}, expected the accuracy of a choice with "
            f"task.normalize one of {', '.join(METRICS)}; set task.normalize=none, or run a task "
            "of the harness."
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
    path = folder / f"{name}.parquet"  # A JSON reader would turn some texts into dates.
    with written_beside(path) as partial:
        Dataset.from_list(rows).to_parquet(partial)
    content = {
        "task": name,
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str(path.resolve())}},
        "test_split": "test",
        "output_type": "multiple_choice",
        # Field names, which the harness reads verbatim: a template turns digits into a number.
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": task.delimiter,
        "metric_list": [
            {"metric": METRICS[task.normalize], "aggregation": "mean", "higher_is_better": True}
        ],
        "metadata": {"version": 1},
    }
    shutil.copyfile(lm_eval_results.__file__, folder / f"{RESULTS}.py")
    # YAML includes JSON, but not this tag.
    tag = f'"process_results": !function {RESULTS}.{METRICS[task.normalize]}'
    text = json.dumps(content, indent=2).replace("{", f"{{\n  {tag},", 1)
    with written_beside(folder / f"{name}.yaml") as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    return name


if __name__ == "__main__":
    main()
