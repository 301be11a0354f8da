"""The selection rows: those a search sees, and those kept from it to confirm its winners."""

from collections.abc import Sequence

from sieve.bank.bank import Bank
from sieve.data.scored import ScoredBatch
from sieve.evaluation.evaluation import score
from sieve.search.objective import JointObjective, Objective, hardest_first, stage_ends
from sieve.stages.run import Run
from sieve.tasks import Example
from sieve.tasks.splits import prompt_hash

LINES = ("uniform", "waterfill")  # searches along one line of genomes
FIRST = 32  # rows of the first stage, beside those that the dense model gets wrong


def search_rows(run: Run) -> list[Example]:
    """Selection rows that the search may score."""
    return _divided(run)[0]


def confirmation_rows(run: Run) -> list[Example]:
    """Selection rows that the search never scores; none where `search.confirmation` is 0."""
    return _divided(run)[1]


def search_objective(
    run: Run,
    bank: Bank,
    judge: str | None = None,
    order: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
) -> Objective:
    """The objective on the rows of the search.

    judge: score in growing stages, so that what is hopeless by the margin, or the divergence, is
    dropped early; None scores all rows at once. order: of the rows in the stages; by default that
    in which the bound on the margin falls soonest. rows: the only ones; by default all.
    """
    examples = search_rows(run)
    if rows is not None:
        examples = [examples[i] for i in rows]
    if judge is None:
        return _objective(run, bank, [run.data.scoring_batches(examples)])
    first = max(FIRST, len(examples) // 8)
    if order is None:
        batches = run.data.scoring_batches(examples)
        dense = score(run.backbone.model, batches, "Scoring the dense model")
        order = hardest_first(dense).tolist()
        first = int((~dense.correct).sum()) + FIRST
    ends = stage_ends(len(examples), first)
    parts = [order[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    stages = [run.data.scoring_batches([examples[i] for i in part]) for part in parts]
    return _objective(run, bank, stages, judge)


def confirmation_objective(run: Run, bank: Bank) -> Objective:
    """The objective on the rows that the search has not seen."""
    return _objective(run, bank, [run.data.scoring_batches(confirmation_rows(run))])


def whole_objective(run: Run, bank: Bank) -> Objective | JointObjective:
    """The objective on all selection rows; see `fitted` for how those of the search count."""
    if not confirmation_rows(run):
        return search_objective(run, bank)
    parts = [search_objective(run, bank), confirmation_objective(run, bank)]
    return JointObjective(parts, together=not fitted(run))


def fitted(run: Run) -> bool:
    """Whether winners fit the rows of the search, so that these cannot help to confirm them.

    Hundreds of genomes judged by their accuracy do. Those of a line are few, and those judged by
    their divergence are not chosen by the accuracy on these rows. A guarantee takes no chances.
    """
    search = run.config.search
    if run.config.guarantee or search.method == "random":
        return True
    return search.method not in LINES and search.judge == "margin"


def _objective(
    run: Run, bank: Bank, stages: Sequence[Sequence[ScoredBatch]], judge: str = "margin"
) -> Objective:
    config = run.config
    return Objective(
        run.backbone.model, bank, stages, config.tolerance, config.guarantee, judge
    )  # fmt: skip


def _divided(run: Run) -> tuple[list[Example], list[Example]]:
    """Rows by the hashes of their prompts, as all splits are; equal prompts stay together.

    Raises ValueError where one part would be empty.
    """
    rows, share = run.task.splits["selection"], run.config.search.confirmation
    if share == 0:
        return list(rows), []
    salt = f"confirmation {run.config.seed}"
    prompts = sorted({e.content for e in rows}, key=lambda prompt: prompt_hash(prompt, salt))
    held = set(prompts[: round(share * len(prompts))])
    seen = [e for e in rows if e.content not in held]
    kept = [e for e in rows if e.content in held]
    if not seen or not kept:
        raise ValueError(
            f"search.confirmation={share} leaves {len(seen)} of {len(rows)} selection rows to the "
            f"search and {len(kept)} to the confirmation, expected some of both."
        )
    return seen, kept
