"""The studies that the reports show: claim, commands and panels.

A report finds the runs of a study by `logger.group`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from experiments import dashboard_keys as keys
from experiments.dashboard_panels import bars, lines, media, scatter, table

RUN = "python -m sieve.run +experiment={}"


@dataclass(frozen=True)
class Study:
    """One report: `commands` create its runs, which differ in the settings `by`."""

    title: str
    claim: str
    reading: str  # keys that the panels show
    groups: tuple[str, ...]
    commands: tuple[str, ...]
    by: tuple[str, ...]
    panels: Callable[[], Sequence[Any]]


STUDIES = {
    "kept_fraction": Study(
        "How much a task needs, within the tolerance",
        "The paper takes away 20 to 75 % of the parameters of Phi-3-mini, Llama-3.1-8B and "
        "Llama-3.1-70B for 1 to 5 % of accuracy, and says that one level per matrix, found by a "
        "genetic algorithm, leaves less than one level for all.",
        "The kept fraction of the prunable parameters at each tolerance, and what it costs on test "
        "rows, by task, search and projection: one level for all (uniform), the closed form "
        "(waterfill), and the genetic search. Less is better where the drop stays within ε.",
        ("kept", "adaptive"),
        (RUN.format("kept"), RUN.format("adaptive subject=medicine")),
        (keys.TASK, keys.SEARCH, keys.PROJECTION, keys.TOLERANCE),
        lambda: [
            bars("Kept fraction", [keys.KEPT]),
            bars("Drop on test rows", [keys.DROP]),
            scatter("Accuracy against kept fraction", keys.KEPT, keys.ACCURACY),
            table(keys.TESTS),
        ],
    ),
    "accuracy_curve": Study(
        "Accuracy against what is kept",
        "In the paper accuracy is flat until some 25 to 60 % of the parameters are gone, and then "
        "falls off a cliff.",
        "Accuracy on test rows at sizes that nobody chose, by every projection and way to share "
        "a budget out; and the genomes that the search has scored on selection rows.",
        ("kept",),
        (RUN.format("kept"),),
        (keys.TASK, keys.SEARCH, keys.PROJECTION),
        lambda: [
            lines(
                "Accuracy on test rows", keys.SIZE, [keys.SIZE_ACCURACY], title_x="kept fraction"
            ),
            lines(
                "Accuracy on selection rows",
                keys.CURVE_KEPT,
                [keys.CURVE_ACCURACY],
                title_x="kept fraction",
            ),
            lines(
                "Divergence from the dense model's answers",
                keys.CURVE_KEPT,
                [keys.CURVE_DIVERGENCE],
                log_y=True,
                title_x="kept fraction",
            ),
            media("The curve of each run", keys.ACCURACY_CURVE),
            table(keys.GENOMES),
        ],
    ),
    "bottlenecks": Study(
        "Bottleneck matrices",
        "The paper finds a few matrices that hold what a task needs: pruning them alone breaks it, "
        "while others can go almost altogether.",
        "How far each matrix alone can be pruned with the rest dense, how high the genetic search "
        "kept it, and what the result keeps of it.",
        ("bottlenecks", "adaptive"),
        (RUN.format("bottlenecks"), RUN.format("adaptive search.bottlenecks=true")),
        (keys.TASK,),
        lambda: [
            media("What each matrix alone must keep", keys.BOTTLENECKS),
            media("What the result keeps of each", keys.KEPT_HEATMAP),
            media("Generations", keys.GENERATIONS),
            media("Fronts", keys.ACCURACY_CURVE, keys.DIVERGENCE_FRONT),
            lines(
                "Smallest genome within the tolerance",
                keys.GENERATION,
                [keys.GENERATION_BEST],
                title_x="generation",
            ),
            lines(
                "Median kept fraction",
                keys.GENERATION,
                [keys.GENERATION_MEDIAN],
                title_x="generation",
            ),
            table(keys.BOTTLENECK_ROWS),
            table(keys.MATRICES),
        ],
    ),
    "calibration": Study(
        "Calibrated on the task, or on any text",
        "The paper's projections are learned on prompts of the task, which it holds against "
        "statistics of text that has nothing to do with it.",
        "The same searches on selection rows of the task, with moments of its own prompts "
        "(calibration_own), of plain text alone (calibration_text), of another domain "
        "(calibration_other), and of a mixture with its own (calibration_mixed).",
        tuple(f"calibration_{source}" for source in ("own", "text", "other", "mixed")),
        (
            RUN.format("calibration"),
            RUN.format("calibration subject=sst2,trec source=own,text,ag_news,reader"),
        ),
        (keys.TASK,),
        lambda: [
            bars("Kept fraction", [keys.KEPT]),
            bars("Drop on test rows", [keys.DROP]),
            scatter("Accuracy against kept fraction", keys.KEPT, keys.ACCURACY),
            table(keys.TESTS),
        ],
    ),
    "generalization": Study(
        "From one data set of a domain to the others",
        "The paper says that a model which was sieved on one data set still works on another of "
        "the same domain.",
        "A row of bars per run: points lost on the test rows of every set of Almanac, by the set "
        "that it was sieved on. The table has the intervals.",
        ("generalization",),
        (RUN.format("generalization"),),
        (keys.TASK,),
        lambda: [
            bars("Drop on every data set", keys.DROPS_ON),
            bars("Kept fraction", [keys.KEPT]),
            bars("Drop on its own test rows", [keys.DROP]),
            table(keys.TESTS),
        ],
    ),
    "recovery": Study(
        "Training after pruning, and 8 bits",
        "The paper's pruned models still take LoRA fine-tuning and 8-bit quantization; together "
        "pruning and quantization save about 90 % of the memory.",
        "Loss and accuracy on selection rows while the factors are trained, what test rows lose "
        "afterwards, and the bytes on disk with and without 8 bits.",
        ("recovery",),
        (RUN.format("recovery"),),
        (keys.TASK, keys.RECOVERY, keys.QUANTIZATION),
        lambda: [
            lines("Loss", keys.RECOVERY_STEP, [keys.RECOVERY_LOSS], title_x="step"),
            lines("Accuracy", keys.RECOVERY_STEP, [keys.RECOVERY_ACCURACY], title_x="step"),
            bars("Drop on test rows", [keys.DROP]),
            bars("Bytes on disk, of the dense model's", [keys.BYTES]),
            scatter("Accuracy against bytes", keys.BYTES, keys.ACCURACY),
            table(keys.TESTS),
        ],
    ),
    "calibration_size": Study(
        "How many tokens of calibration",
        "A public re-implementation of the paper calibrates on 200,000 tokens.",
        "Kept fraction and drop against the tokens that the moments have seen.",
        ("tokens",),
        (RUN.format("tokens"),),
        (keys.TASK, keys.TOKENS_ASKED),
        lambda: [
            scatter("Kept fraction", keys.TOKENS, keys.KEPT, log_x=True),
            scatter("Drop on test rows", keys.TOKENS, keys.DROP, log_x=True),
            bars("Kept fraction", [keys.KEPT]),
            table(keys.TESTS),
        ],
    ),
    "cost": Study(
        "What it costs",
        "The paper's calibration takes 1 to 36 GPU hours, its search 10 to 15 generations of a "
        "hundred genomes.",
        "Seconds of every stage, genomes evaluated, rows scored and peak memory, by task and "
        "search; a stage that was taken from the cache counts no time. The runs are those of the "
        "kept fraction.",
        ("kept", "adaptive"),
        (RUN.format("kept"), RUN.format("adaptive subject=medicine")),
        (keys.TASK, keys.SEARCH),
        lambda: [
            bars("Seconds of every stage", keys.SECONDS),
            bars("Seconds of all stages", [keys.STAGE_SECONDS]),
            bars("Genomes evaluated", [keys.EVALUATIONS]),
            bars("Rows scored by the search", [keys.EXAMPLES]),
            bars("Peak memory, MiB", [keys.MEMORY]),
            bars("Speed, times the dense model's", [keys.PREFILL, keys.DECODE]),
            scatter("Kept fraction against genomes evaluated", keys.EVALUATIONS, keys.KEPT),
            media("Accuracy against size", keys.ACCURACY_CURVE),
        ],
    ),
}
