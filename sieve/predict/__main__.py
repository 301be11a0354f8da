"""Answer the rows of a file with an exported model, and write the answers beside the rows.

    python -m sieve.predict runs/medqa/<date>_<time> questions.csv
    python -m sieve.predict --model my_model --task runs/medqa/<date>_<time> questions.csv

The file is CSV, JSON Lines or Parquet with the columns that the task's prompt names; the answers
are in questions.answers.csv. To resume a prediction that was stopped, repeat its command.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sieve.runtime.progress import output, progress_bar
from sieve.serve.options import add_model_options, at_least_one, check_device

if TYPE_CHECKING:
    from sieve.predict.journal import Journal
    from sieve.predict.predictor import Predictor
    from sieve.tasks.example import Example, Row

log = logging.getLogger("sieve.predict")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse exits with status 2 if it is invalid."""
    parser = argparse.ArgumentParser(
        prog="python -m sieve.predict",
        description="Answer the rows of a file, and write the answers beside the rows.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("export", nargs="?", help="a run's folder or its export, such as runs/medqa/.../export")
    add("file", type=Path, help="rows as .csv, .jsonl, .json or .parquet")
    add("--out", type=Path, help="the file to write; default: FILE with .answers before its ending")
    add("--model", help="another model, such as the dense one, instead of an export")
    add("--task", help="the task of --model: a run's folder, its export or a task.json")
    add_model_options(parser)
    add(
        "--batch-tokens",
        type=at_least_one,
        default=2048,
        help="the most tokens of a forward pass, with padding; more is faster on a GPU",
    )
    options = parser.parse_intermixed_args(arguments)
    if (options.export is None) == (options.model is None):
        parser.error("expected a run's export and a file, or --model, --task and a file")
    if options.model is not None and options.task is None:
        parser.error("--model needs --task: a run's folder, its export or a task.json")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Predict; print an error as one sentence and exit with status 1 on failure."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        predict(options)
    except (ValueError, RuntimeError, OSError) as error:
        log.debug("failed", exc_info=True)
        log.error("%s", str(error).splitlines()[0])
        sys.exit(1)
    except KeyboardInterrupt:
        log.error("Interrupted. Run the same command again to resume.")
        sys.exit(130)


def predict(options: argparse.Namespace) -> Path:
    """Answer all rows and write the output; returns its path.

    Raises:
        ValueError or RuntimeError: the model, the task or the file cannot be used.
    """
    from sieve.exports.task_file import find_export, read_task
    from sieve.predict.journal import Journal, journal_key
    from sieve.predict.predictor import Predictor
    from sieve.predict.summary import summary
    from sieve.predict.tables import has_same_labels, read_table, write_table

    check_device(options.device)
    file, out = options.file, output_path(options.file, options.out)
    task = read_task(find_export(options.task or options.export))
    rows = read_table(file, task.config)
    model = options.model or find_export(options.export)
    journal = Journal(out, journal_key(model, task.config, file, options.dtype))
    predictor = Predictor(task, model, options.device, options.dtype, options.batch_tokens)
    questions = predictor.questions(rows, file.name)
    answer_rest(predictor, rows, questions, journal)
    no_text = predictor.no_answer()
    answers = [journal.answers.get(number, no_text) for number in range(len(rows))]
    write_table(file, answers, out, has_same_labels(task.config))
    journal.remove()
    output.print(f"{len(rows):,} rows with answers: {out}", highlight=False, soft_wrap=True)
    for sentence in summary(task, rows, answers):
        output.print(sentence, highlight=False, soft_wrap=True)
    return out


def answer_rest(
    predictor: "Predictor",
    rows: Sequence["Row"],
    questions: dict[int, "Example"],
    journal: "Journal",
) -> None:
    """Answer the questions that the journal does not have."""
    done = len(journal.answers)
    if done:
        log.info("%s of %s rows are answered already.", f"{done:,}", f"{len(questions):,}")
    rest = {n: example for n, example in questions.items() if n not in journal.answers}
    with progress_bar() as progress:
        bar = progress.add_task("Answering", total=len(questions), completed=done, unit="rows")
        for answers in predictor.answers(rows, rest):
            journal.add(answers)
            progress.advance(bar, len(answers))


def output_path(file: Path, out: Path | None) -> Path:
    """Where the answers go; ValueError if that is taken or of another type than the rows."""
    out = out or file.with_name(f"{file.stem}.answers{file.suffix}")
    if out.suffix != file.suffix:
        raise ValueError(
            f"--out is {out}, expected a file of the same type as the rows; end it with "
            f"{file.suffix}."
        )
    if out.exists():
        raise ValueError(f"{out} exists already; delete it, or name another file with --out.")
    return out


if __name__ == "__main__":
    main()
