"""What the model writes, and the calibration rows for which the dense model writes answers."""

from functools import partial

from sieve.calibration.schedule import most_tokens
from sieve.data.calibration_rows import draw_rows, drawn_order
from sieve.data.datamodule import SieveDataModule
from sieve.evaluation.evaluation import WritingModule
from sieve.stages.run import Run
from sieve.tasks import Example, Task

SPARE = 1.25  # rows for the checks of a training, and because other answers are shorter


def write(run: Run, data: SieveDataModule) -> WritingModule:
    """What the model writes on the test rows of `data`."""
    module = WritingModule(run.backbone.model)
    run.trainer.test(module, datamodule=data, verbose=False)
    run.settle()
    return module


def rows_to_read(run: Run, task: Task) -> list[Example]:
    """The calibration rows with the tokens of the stage that reads most of them, and spare ones."""
    config, reader, rows = run.config, run.data.reader, task.splits["calibration"]
    tokens, encode = round(SPARE * most_tokens(config)), partial(reader.encode, task)
    drawn, _, _ = draw_rows(rows, encode, tokens, config.seed, sharing=reader.sharing)
    count = max(len(drawn), config.calibration.rows or 0)
    return [rows[index] for index in sorted(drawn_order(len(rows), config.seed)[:count])]
