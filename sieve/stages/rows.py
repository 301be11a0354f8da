"""The selection rows: the ones that a search scores, and the ones that confirm its winners."""

import math
from collections.abc import Sequence
from contextlib import nullcontext

from sieve.bank.bank import Bank
from sieve.data.paired import dense_examples
from sieve.evaluation.evaluation import score
from sieve.recovery.recovery import HELD_OUT
from sieve.report.genomes import LINES
from sieve.search.joint_objective import JointObjective
from sieve.search.objective import Objective, hardest_first, stage_ends
from sieve.stages.run import Run
from sieve.tasks import Example
from sieve.tasks.splits import Reserved, prompt_hash, reserve

FIRST_ROWS = 32  # rows of the first stage, besides the dense model's wrong answers


def training_rows(run: Run) -> Reserved[Example]:
    """Calibration rows to train on, and the ones held out for checks; hashes decide.

    A dense model that `sieve.tune` trained has not seen the held-out rows either.

    Raises:
        ValueError: there are fewer than two different rows.
    """
    rows, most = run.task.splits["calibration"], len(run.task.splits["selection"])
    reserved = reserve(rows, HELD_OUT, "recovery", most)
    if not (reserved.rest and reserved.reserved):
        raise ValueError(
            f"got {len(rows)} calibration rows, expected at least 4 to train on most of them and "
            "check on the others; provide more rows, or run sieve.run with recovery=none, which "
            "trains on none."
        )
    return reserved


def search_rows(run: Run) -> list[Example]:
    """Selection rows that the search scores."""
    return _divided(run)[0]


def confirmation_rows(run: Run) -> list[Example]:
    """Selection rows that the search never scores; none if `search.confirmation` is 0."""
    return _divided(run)[1]


def search_objective(
    run: Run,
    bank: Bank,
    judge: str | None = None,
    order: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
) -> Objective:
    """The objective on the rows of the search.

    Args:
        judge: "margin" or "divergence" scores the rows in growing stages and drops a genome that
            is hopeless by it; None scores all rows at once.
        order: of the rows in the stages; by default the order in which the upper bound of the
            margin falls soonest.
        rows: indexes of the only rows to score; by default all.
    """
    examples = search_rows(run)
    if rows is not None:
        examples = [examples[i] for i in rows]
    if judge is None:
        return objective_on(run, bank, [examples])
    first = max(FIRST_ROWS, math.ceil(len(examples) / 8))
    if order is None:
        batches = run.dense_data.scoring_batches(dense_examples(examples))
        dense = score(run.backbone.model, batches, "Scoring the dense model")
        order = hardest_first(dense).tolist()
        first = int((~dense.correct).sum()) + FIRST_ROWS
    ends = stage_ends(len(examples), first)
    slices = [order[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    stages = [[examples[i] for i in indexes] for indexes in slices]
    return objective_on(run, bank, stages, judge)


def searched_objective(run: Run, bank: Bank) -> Objective:
    """The objective of the search on its rows, made once, so that the refit knows its scores.

    With a confidence, a line scores few rows of a hopeless genome; hashes decide on their order.
    """
    if bank.fingerprint not in run.objectives:
        staged = run.config.confidence is not None and run.config.search.method in LINES
        hashes = [prompt_hash(example.content, "stages") for example in search_rows(run)]
        order = sorted(range(len(hashes)), key=hashes.__getitem__)
        stages = ("margin", order) if staged else ()
        run.objectives[bank.fingerprint] = search_objective(run, bank, *stages)
    return run.objectives[bank.fingerprint]


def fresh_rows(run: Run) -> list[Example]:
    """Selection rows that the search did not fit: the confirmation rows, or all."""
    return (confirmation_rows(run) if overfits(run) else []) or run.task.splits["selection"]


def confirmation_objective(run: Run, bank: Bank) -> Objective:
    """The objective on the rows that the search has not scored."""
    return objective_on(run, bank, [confirmation_rows(run)])


def selection_objective(run: Run, bank: Bank) -> Objective | JointObjective:
    """The objective on all selection rows; `overfits` says how the rows of the search count."""
    if not confirmation_rows(run):
        return searched_objective(run, bank)
    parts = [search_objective(run, bank), confirmation_objective(run, bank)]
    return JointObjective(parts, together=not overfits(run))


def overfits(run: Run) -> bool:
    """Whether the search fits its rows, so that these rows cannot help to confirm its winners.

    A search does that if it judges hundreds of genomes by their accuracy. A line has few genomes,
    and a judgment by divergence does not look at the accuracy. With a confidence the answer
    is always yes, to be safe.
    """
    search = run.config.search
    if run.config.confidence is not None or search.method == "random":
        return True
    return search.method not in LINES and search.judge == "margin"


def objective_on(
    run: Run, bank: Bank, stages: Sequence[Sequence[Example]], judge: str = "margin"
) -> Objective:
    """The objective on stages of examples, which the dense model may read with a longer prompt."""
    config, dense_data, dense_model = run.config, run.original_data, run.original_model
    if run.task.writing is not None:  # Divergence is of the tokens that the dense model wrote.
        dense_data, dense_model = run.dense_data, nullcontext
    dense_batches = None
    if dense_data is not run.data:
        dense_batches = [dense_data.scoring_batches(dense_examples(stage)) for stage in stages]
    return Objective(
        run.backbone.model,
        bank,
        [run.data.scoring_batches(stage) for stage in stages],
        dense_batches=dense_batches,
        dense_model=dense_model,
        tolerance=config.tolerance,
        confidence=config.test_confidence,
        judge=judge,
    )


def _divided(run: Run) -> tuple[list[Example], list[Example]]:
    """Search rows and confirmation rows, by hashes of the prompts; equal prompts stay together.

    Raises:
        ValueError: one of the two would be empty.
    """
    rows, share = run.task.splits["selection"], run.config.search.confirmation
    if share == 0:
        return list(rows), []
    searched, confirming = reserve(rows, share, f"confirmation {run.config.seed}")
    if not searched or not confirming:
        raise ValueError(
            f"search.confirmation={share} leaves {len(searched)} of {len(rows)} selection rows to "
            f"the search and {len(confirming)} to the confirmation, and both need some; set "
            "search.confirmation=0, or provide more selection rows."
        )
    return searched, confirming
