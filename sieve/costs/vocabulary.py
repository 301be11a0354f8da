"""How many tokens stay with vocabulary=task, and the size of the model with them.

Reads the rows as a run does, but no weights.
"""

from collections.abc import Iterator

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sieve.config import Config
from sieve.costs.lengths import local_tokenizer, rows_are_local, tasks_by_length
from sieve.data.reader import Reader
from sieve.model.backbone import count_parameters
from sieve.report.values import count, points
from sieve.tasks import Task
from sieve.tasks.example import Example
from sieve.tasks.splits import COMPARED_FRACTION, MOST_COMPARED, reserve
from sieve.vocabulary.model import least_tokens, named_ids, parameters_per_token
from sieve.vocabulary.tokenizer import cut_tokenizer


def vocabulary_sentence(config: Config, model: PreTrainedModel) -> str:
    """The tokens that stay and the model's size with them; "" with vocabulary=none.

    model: its tensors may have no memory.

    Raises:
        ValueError: the tokenizer or the model cannot be cut exactly, or a task is not valid.
    """
    if config.vocabulary.method == "none":
        return ""
    tasks = [config.task, *config.calibration.mix.values()]
    tokenizer = local_tokenizer(config.model)
    if tokenizer is None or not all(rows_are_local(task) for task in tasks):
        return (
            "The vocabulary is cut to the task's tokens; their number is not known, because the "
            "rows or the tokenizer are not on this machine."
        )
    stays = _tokens_that_stay(config, model, tokenizer)
    dense, per_token = count_parameters(model), parameters_per_token(model)
    size = model.config.get_text_config().vocab_size
    parameters = dense - (size - sum(index < size for index in stays)) * per_token
    written = ""
    if config.task.kind == "generation":
        written = ", and those that the dense model will write"
    return (
        f"The whole model has {count(parameters)} of {count(dense)} parameters before it is "
        f"pruned, {points(1 - parameters / dense)} points fewer: its vocabulary keeps "
        f"{count(len(stays))} of {count(len(tokenizer))} tokens{written}."
    )


def _tokens_that_stay(
    config: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    reader = Reader(tokenizer)  # Prompts beyond the context are cut in the run.
    settings = config.vocabulary
    rows = (reader.vocabulary(*pair, settings.min_rows) for pair in _rows(config))
    used = named_ids(model).union(*rows)
    return cut_tokenizer(tokenizer, used, least_tokens(model, settings.fill))[1]


def _rows(config: Config) -> Iterator[tuple[Task, list[Example]]]:
    """The rows that choose tokens, with the most shots that the settings allow."""
    recovery = config.recovery
    for settings in (config.task, *config.calibration.mix.values()):
        task = tasks_by_length(settings, config.seed)[0]
        yield task, task.splits["calibration"]
        if settings is config.task and recovery.method != "none" and recovery.unlabelled:
            share, most = COMPARED_FRACTION, MOST_COMPARED
            yield task, reserve(task.unlabelled, share, "unlabelled", most).rest
