"""Every projection, storage form and allocation on every subject, in one harness.

    python -m experiments.projections                                  # all; resumes
    python -m experiments.projections --subjects trec/reader-6m --seeds 0

For each subject, seed and method: accuracy (loss for text) and KL(dense ‖ pruned) on held-out rows
against the kept fraction of the prunable parameters. One line of JSON per combination goes to
`experiments/projections.jsonl` when it is done; the summary to `experiments/projections.json`.
"""

import argparse
import json
import logging
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from experiments.subjects import Subject, TaskSubject, TextSubject
from sieve.bank.bank import Bank, fit
from sieve.bank.genome import Genome
from sieve.bank.learned import learn, learned_bank
from sieve.bank.switch import Switch
from sieve.calibration.calibration import calibrate
from sieve.data.batches import as_inputs
from sieve.model.matrices import find_matrices
from sieve.projections import get_projection
from sieve.projections.moments import BY_GRADIENT, Moments, Needs
from sieve.recovery.recovery import tune
from sieve.refit.refit import refit, token_weights
from sieve.search.lines import uniform_genome
from sieve.search.waterfill import estimated_rise, waterfill

log = logging.getLogger(__name__)
FOLDER = Path(__file__).parent
LEVELS = (0.9, 0.75, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 0.005)
REFITTED = LEVELS[7:]
FEW = (0.5, 0.3, 0.2, 0.1, 0.05)
STEPS = 80  # two epochs of 200,000 tokens in batches of 5,000
LOST = 0.3
TEXT = (0.9, 0.75, 0.5, 0.3, 0.2)  # levels for text, which has no accuracy to stop at


@dataclass(frozen=True)
class Method:
    """One way from a dense model to a small one."""

    projection: str
    storage: str = "plain"
    allocation: str = "uniform"
    answers: str = "margin"
    weighting: str = "none"
    refit: bool = False
    residual: bool = False  # refit to the error of the residual stream
    tune_steps: int = 0
    init: str = ""  # settings of `learned`
    joint: bool = False
    rounds: int = 1  # rounds of pruning and calibrating again
    levels: tuple[float, ...] = LEVELS
    lost: float = LOST  # drop of accuracy at which the curve stops


def _default(**changes: Any) -> Method:
    settings = {"projection": "loss_aware", "storage": "pivoted"}
    settings |= {"allocation": "waterfill", "weighting": "gradient"}
    return Method(**(settings | changes))


BASELINES = ("svd", "asvd", "input_pca", "whitened", "output", "affine")
METHODS: dict[str, Method] = {
    **{name: Method(name) for name in BASELINES},
    **{
        f"{name}, pivoted, water-filled": Method(name, "pivoted", "waterfill") for name in BASELINES
    },
    "sieve": _default(),
    "sieve without loss-aware": Method("output", "pivoted", "waterfill"),
    "sieve without pivoting": _default(storage="plain"),
    "sieve without water-filling": _default(allocation="uniform"),
    "sieve, tokens alike": _default(weighting="none"),
    "sieve, per position": _default(weighting="position"),
    "sieve, answer positions": _default(weighting="answer"),
    "sieve, Fisher": _default(answers="sampled"),
    "sieve, Fisher, tokens alike": _default(answers="sampled", weighting="none"),
    "sieve, gold answers": _default(answers="gold"),
    "sieve, affine": _default(projection="loss_aware_affine"),
    "output, pivoted": Method("output", "pivoted"),
    "output, refitted": Method("output", refit=True),
    "sieve, joint": _default(joint=True),
    "sieve, in two rounds": _default(rounds=2, levels=REFITTED, lost=0.08),
    "sieve, in four rounds": _default(rounds=4, levels=REFITTED, lost=0.08),
    "sieve, refitted": _default(refit=True, levels=REFITTED, lost=0.08),
    "sieve, per position, refitted": _default(
        weighting="position", refit=True, levels=REFITTED, lost=0.08
    ),
    "sieve, refitted to the residual": _default(
        refit=True, residual=True, levels=REFITTED, lost=0.08
    ),
    "sieve, refitted and tuned": _default(refit=True, tune_steps=300, levels=(0.03, 0.02)),
    "learned": Method("learned", init="pca", levels=FEW),
    "learned, untied": Method("learned", init="optimal", levels=FEW),
}
READER = ("sst2", "trec", "ag_news", "subj", "financial_phrasebank", "imdb")
ALMANAC = ("medicine", "geography", "reviews", "reading")
SUBJECTS = (
    *(f"almanac_{name}/embedded" for name in ALMANAC),
    *(f"{name}/reader-6m" for name in READER),
    "lm_tinystories/stories-656k",
)


def main() -> None:
    """Run what is missing, then collect."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--subjects", nargs="*", default=list(SUBJECTS))
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=FOLDER / "projections.jsonl")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    done = {(r["subject"], r["method"], r["seed"]) for r in read_lines(arguments.out)}
    for name in arguments.subjects:
        todo = [
            (method, seed)
            for seed in arguments.seeds
            for method in arguments.methods
            if (name, method, seed) not in done
        ]
        if not todo:
            continue
        subject = make_subject(name)
        dense, calibrated = subject.measure(), Calibrated(subject)
        for method, seed in todo:
            record = run(subject, dense, method, seed, calibrated)
            with arguments.out.open("a") as file:
                file.write(json.dumps(record) + "\n")
            log.info("%s  %s  seed %d  %.0f s", name, method, seed, record["seconds"]["all"])


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All records of a JSON Lines file; empty if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def make_subject(name: str) -> Subject:
    """The subject of a name like `trec/reader-6m`."""
    data, model = name.split("/")
    return TextSubject(data, model) if data.startswith("lm_") else TaskSubject(data, model)


class Calibrated:
    """Moments of one subject, shared by all methods that need the same ones."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.held: dict[Any, tuple[Moments, float]] = {}

    def moments(self, method: Method, seed: int, batches: list[Any]) -> tuple[Moments, float]:
        """The moments, and the seconds to collect them."""
        learned = method.projection == "learned"
        needs = Needs(input=True) if learned else get_projection(method.projection).needs
        needs = replace(needs, input=needs.input or method.joint)
        if needs.gradient:
            key = (seed, needs, method.answers, method.weighting)
        else:
            key = (seed, needs)
        if key not in self.held:
            for old in [k for k in self.held if k[0] != seed]:
                del self.held[old]
            start = time.perf_counter()
            found = calibrate(
                self.subject.model,
                batches,
                needs=needs,
                answers=method.answers,
                weighting=method.weighting,
                seed=seed,
            )
            self.held[key] = found, time.perf_counter() - start
        return self.held[key]


def run(
    subject: Subject, dense: Any, name: str, seed: int, calibrated: Calibrated
) -> dict[str, Any]:
    """Measure one method on one subject: its curve, time and memory."""
    method, start = METHODS[name], time.perf_counter()
    batches = subject.calibration(seed)
    moments, seconds = calibrated.moments(method, seed, batches)
    begun = time.perf_counter()
    learned = method.projection == "learned"
    base = "output" if learned else method.projection
    bank = fit(subject.model, moments, base, method.storage, joint=method.joint)
    fitted = time.perf_counter()
    weights = None
    if method.refit and method.weighting in BY_GRADIENT:
        matrices = find_matrices(subject.model)
        weights = token_weights(
            subject.model, matrices, batches, method.weighting, answers=method.answers, seed=seed
        )
    curve = []
    levels = method.levels if dense.correct else TEXT
    per_example = moments.tokens / sum(len(as_inputs(batch)["input_ids"]) for batch in batches)
    for level, genome in genomes(bank, method, levels):
        start_from = bank, genome
        if learned:
            start_from = learn_ranks(subject, bank, genome, method, moments, seed)
        if method.rounds > 1:
            start_from = progressive(subject, bank, level, method, batches, seed)
        held, chosen = improved(subject, *start_from, method, moments, batches, weights, seed)
        with Switch(subject.model, held, as_stored=False).to(chosen):
            found = subject.measure()
        curve.append(
            {
                "level": level,
                "kept_fraction": held.kept_fraction(chosen),
                "accuracy": found.accuracy,
                "loss": round(found.loss, 5),
                "kl": round(found.kl, 5),
                "predicted": predicted(held, chosen, 1 if dense.correct else per_example),
                **difference(dense.correct, found.correct),
            }
        )
        if found.accuracy is not None and dense.accuracy - found.accuracy > method.lost:
            break
    return {
        "subject": subject.name,
        "method": name,
        "seed": seed,
        "settings": settings_of(method),
        "tokens": moments.tokens,
        "dense": {"accuracy": dense.accuracy, "loss": dense.loss, "rows": len(dense.correct)},
        "curve": curve,
        "seconds": {
            "calibrate": round(seconds, 2),
            "fit": round(fitted - begun, 2),
            "all": round(time.perf_counter() - start, 2),
        },
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "threads": torch.get_num_threads(),
    }


def settings_of(method: Method) -> dict[str, Any]:
    """The settings of a method."""
    return {k: v for k, v in asdict(method).items() if k not in ("levels", "lost")}


def genomes(bank: Bank, method: Method, levels: Sequence[float]) -> Iterator[tuple[float, Genome]]:
    """Pairs of level and genome, from large to small."""
    shared = "none" if get_projection(bank.projection).needs.gradient else "relative"
    frontier = waterfill(bank, shared) if method.allocation == "waterfill" else None
    for level in levels:
        if frontier is not None:
            yield level, frontier.genome(frontier.steps_to(level))
        else:
            yield level, uniform_genome(bank, (1.0, level), 1)


def progressive(
    subject: Subject, bank: Bank, level: float, method: Method, batches: list[Any], seed: int
) -> tuple[Bank, Genome]:
    """A bank that is fitted on a partly pruned model.

    The level is reached in rounds of equal ratio. Each round collects moments on the model that the
    previous round pruned, and factorizes the dense weights again.
    """
    for turn in range(1, method.rounds):
        frontier = waterfill(bank)
        genome = frontier.genome(frontier.steps_to(level ** (turn / method.rounds)))
        switch = Switch(subject.model, bank, as_stored=False)
        with switch.to(genome):
            moments = calibrate(
                subject.model,
                batches,
                bank.matrices,
                get_projection(method.projection).needs,
                answers=method.answers,
                weighting=method.weighting,
                seed=seed,
                dense=switch.dense,
            )
        bank = fit(subject.model, moments, method.projection, method.storage)
    frontier = waterfill(bank)
    return bank, frontier.genome(frontier.steps_to(level))


def learn_ranks(
    subject: Subject, bank: Bank, genome: Genome, method: Method, moments: Moments, seed: int
) -> tuple[Bank, Genome]:
    """The paper's training for the ranks of a genome: its step count, but fewer tokens."""
    ranks = {name: rank for name, rank in bank.ranks(genome).items() if rank}
    batches = subject.calibration(seed)
    factors = learn(
        subject.model,
        batches,
        ranks,
        moments,
        tied=method.init == "pca",
        init=method.init,
        epochs=max(1, STEPS // len(batches)),
        seed=seed,
    )
    found = learned_bank(subject.model, factors)
    return found, uniform_genome(found, genome.grid, 1)


def improved(
    subject: Subject,
    bank: Bank,
    genome: Genome,
    method: Method,
    moments: Moments,
    batches: list[Any],
    weights: Any,
    seed: int,
) -> tuple[Bank, Genome]:
    """Bank and genome after refit and training, if the method has them."""
    if method.refit:
        result = refit(subject.model, bank, genome, moments, batches, weights, method.residual)
        bank, genome = result.bank, result.genome
    if method.tune_steps:
        bank, genome = tune(subject.model, bank, genome, batches, method.tune_steps, seed=seed)
    return bank, genome


def predicted(bank: Bank, genome: Genome, tokens: float) -> float | None:
    """The increase of the loss that the discarded energies predict, if they are in its unit.

    Args:
        tokens: tokens per example, or 1 if losses are per example.
    """
    in_loss = get_projection(bank.projection).needs.gradient
    return round(estimated_rise(bank, genome) / tokens, 6) if in_loss else None


def difference(dense: list[bool], pruned: list[bool]) -> dict[str, int]:
    """Counts of rows that only the dense model answers right, and only the pruned model."""
    pairs = list(zip(dense, pruned, strict=True))
    return {"lost": sum(d and not p for d, p in pairs), "won": sum(p and not d for d, p in pairs)}


if __name__ == "__main__":
    main()
