"""Run the small experiments: every claim that two cores can measure.

    python -m experiments.reproduce                # run all, or resume; compare
    python -m experiments.reproduce kept tokens    # run some claims
    python -m experiments.reproduce --summary      # no runs, only figures and tables
    python -m experiments.reproduce --adopt        # also replace the committed results
    python -m experiments.reproduce --seed 1 --out runs/again    # other rows; compare

Runs are written to `runs/experiments`. Each new number is compared with the interval of the
committed number in `experiments/results`.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.figures import outside
from experiments.jobs import REAL, SHARED, WANDB, Job, perform
from experiments.pages import write_pages, write_result

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
CLAIMS = tuple(
    """
    demo kept curve defaults adaptive bottlenecks calibration transfer recovery tokens tolerance
    promises elsewhere
    """.split()
)
LONG = ("real", "rivals")  # hours each, and only if asked for
# Figures that need all runs of a claim.
OVER_ALL = ("ratio", "times", "mean")
console = Console()


def main() -> None:
    """Run missing jobs, summarize, compare, and write the requested files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    known = (*CLAIMS, *LONG)
    parser.add_argument("claims", nargs="*", metavar="claim", help=", ".join(known))
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="run only jobs whose name contains this")
    parser.add_argument(
        "--seed", type=int, help="of the runs, to see what another one changes; give another --out"
    )
    parser.add_argument("--wandb", action="store_true", help="log the runs to Weights & Biases")
    parser.add_argument(
        "--summary", action="store_true", help="run nothing; summarize finished jobs"
    )
    parser.add_argument("--adopt", action="store_true", help="replace the committed results")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.claims if name not in known]:
        parser.error(f"unknown claim {unknown[0]!r}; expected one of {', '.join(known)}.")
    if arguments.seed is not None and arguments.adopt:
        parser.error("--adopt replaces results of the committed seed; leave out --seed or --adopt.")
    chosen = arguments.claims or list(CLAIMS)
    os.environ[WANDB] = str(arguments.wandb).lower()
    failed = (
        []
        if arguments.summary
        else measure(chosen, arguments.out, arguments.workers, arguments.only, arguments.seed)
    )
    summaries = summarize(chosen, arguments.out)
    strange = report(summaries, arguments.out)
    if arguments.adopt:
        adopt(summaries, arguments.out)
    for line in failed:
        console.print(f"[red]failed[/red]  {line}", highlight=False)
    sys.exit(1 if failed or strange else 0)


def module(claim: str) -> Any:
    """The module of a claim."""
    return importlib.import_module(f"experiments.claims.{claim}")


def measure(
    claims: Sequence[str], out: Path, workers: int, only: str = "", seed: int | None = None
) -> list[str]:
    """Run the jobs without a result, with another seed if one is given; one line per failure."""
    jobs = list(dict.fromkeys(job for claim in claims for job in module(claim).jobs()))
    if not SHARED.is_dir() and (beside := [job for job in jobs if job.shared]):
        console.print(
            f"{len(beside)} of {len(jobs)} runs need models and data in {SHARED}, which does not "
            "exist. Set SIEVE_SHARED to their folder to run them.",
            highlight=False,
        )
        jobs = [job for job in jobs if not job.shared]
    if REAL not in os.environ and (beside := [job for job in jobs if job.real]):
        console.print(
            f"{len(beside)} of {len(jobs)} runs need SmolLM2-135M-Instruct. Set {REAL} to its "
            "folder, as written by save_pretrained, to run them.",
            highlight=False,
        )
        jobs = [job for job in jobs if not job.real]
    todo = [seeded(job, seed) for job in jobs if only in job.name and job.result(out) is None]
    lanes: dict[str, list[Job]] = {}
    for job in todo:
        lanes.setdefault(job.lane, []).append(job)
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    start = time.monotonic()
    failed = _perform(list(lanes.values()), out, workers)
    if todo:
        minutes = (time.monotonic() - start) / 60
        console.print(f"{len(todo)} runs in {minutes:.1f} minutes, {workers} at a time.")
    return failed


def seeded(job: Job, seed: int | None) -> Job:
    """A job with another seed of its run; functions keep theirs."""
    if seed is None or job.kind == "call":
        return job
    return replace(job, extra=(*job.extra, f"seed={seed}"))


def _perform(lanes: Sequence[Sequence[Job]], out: Path, workers: int) -> list[str]:
    """Run lanes in parallel processes; return one line per failure."""
    context, failed = multiprocessing.get_context("spawn"), list[str]()
    with ProcessPoolExecutor(workers, context, initializer=end_with_parent) as pool:
        for future in as_completed([pool.submit(_lane, lane, out) for lane in lanes]):
            failed += [str(e)] if (e := future.exception()) is not None else future.result()
    return list(dict.fromkeys(failed))  # A killed worker fails every lane alike.


def end_with_parent() -> None:
    """End this process when the one that started it ends, also if that one was killed."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _lane(jobs: Sequence[Job], out: Path) -> list[str]:
    """Run jobs that share a cache one after another; return one line per failure."""
    failed = []
    for job in jobs:
        start = time.monotonic()
        try:
            perform(job, out)
        except (RuntimeError, OSError) as found:
            failed.append(str(found))
        seconds = time.monotonic() - start
        console.print(f"{seconds:6.0f} s  {job.claim}/{job.name}", highlight=False)
    return failed


def summarize(claims: Sequence[str], out: Path) -> dict[str, Any]:
    """The summary of each claim that has finished jobs."""
    summaries = {}
    for claim in claims:
        found = {}
        for job in module(claim).jobs():
            if (result := job.result(out)) is not None:
                found[f"{job.claim}/{job.name}"] = result
        if found:
            summaries[claim] = module(claim).summarize(found)
    return summaries


def adopt(summaries: dict[str, Any], out: Path) -> None:
    """Write figures and JSON to `experiments/results`, and tables into the pages.

    Only for claims whose jobs have all finished. Long claims are measured in pieces: what is
    measured replaces what is committed, and the rest stays.
    """
    RESULTS.mkdir(exist_ok=True)
    for claim, summary in summaries.items():
        if claim in LONG:
            path = RESULTS / f"{claim}.json"
            summary = merged(json.loads(path.read_text()) if path.exists() else {}, summary)
        elif missing := sum(job.result(out) is None for job in module(claim).jobs()):
            console.print(f"{claim:12}  not adopted: {missing} runs are missing")
            continue
        write_result(claim, summary)
        if hasattr(module(claim), "draw"):
            module(claim).draw(summary, RESULTS / f"{claim}.svg")
    write_pages()


def merged(committed: Any, fresh: Any) -> Any:
    """The committed summary with all fresh entries in their places; a number is replaced whole."""
    if not isinstance(committed, dict) or not isinstance(fresh, dict) or "value" in fresh:
        return fresh
    both = {key: merged(committed.get(key), value) for key, value in fresh.items()}
    return committed | both


def report(summaries: dict[str, Any], out: Path) -> int:
    """Print how many new numbers are within the committed intervals; return how many are not.

    Committed numbers without a new value are counted separately.
    """
    strange = 0
    for claim, summary in summaries.items():
        path = RESULTS / f"{claim}.json"
        if not path.exists():
            console.print(f"{claim:12}  nothing committed to compare with")
            continue
        if any(job.result(out) is None for job in module(claim).jobs()):
            summary = {key: part for key, part in summary.items() if key not in OVER_ALL}
        numbers, beyond, missing = outside(json.loads(path.read_text()), summary)
        strange += len(beyond)
        within = f"{numbers - len(beyond) - missing} of {numbers - missing}"
        left = f", {missing} not measured" if missing else ""
        console.print(f"{claim:12}  {within} numbers within their interval{left}")
        for line in beyond:
            console.print(f"{'':12}  {line}", highlight=False)
    return strange


if __name__ == "__main__":
    main()
