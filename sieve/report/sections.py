"""Values for the page's tables: key figures, sizes and speeds, time, levels of the matrices."""

from collections.abc import Callable

from sieve.report.result import Result
from sieve.report.sentence import drop_text
from sieve.report.templating import Table
from sieve.report.units import metric_name, metric_value, unit
from sieve.report.values import (
    NOT_MEASURED,
    count,
    duration,
    memory,
    percent,
    points,
    probability,
    rate,
    ratio,
    size,
    times,
)

STAGES = {
    "calibrate": "Calibrate: moments of the dense model",
    "fit": "Fit: factors of every rank",
    "search": "Search: a rank for each matrix",
    "curve": "Curve: other sizes on the test split",
    "refit": "Refit: the factors again, on the pruned model's activations",
    "recover": "Recover: train the factors",
    "quantize": "Quantize: int8 or int4 weights",
    "evaluate": "Evaluate: the test split",
    "export": "Export: the model directory",
    "report": "Report: this page",
}


def key_figures(result: Result) -> list[tuple[str, str]]:
    """The numbers behind the answer, each with its name."""
    metric = metric_name(result).capitalize()
    rule = "interval's upper end" if result.guarantee else "point estimate"
    test = "Sign test" if result.relative else "McNemar"
    graph = result.export.accuracy
    return [
        (f"{metric}, dense", metric_value(result, result.baseline.accuracy)),
        (f"{metric}, pruned", metric_value(result, result.pruned.accuracy)),
        *([] if graph is None else [(f"{metric}, exported graph", metric_value(result, graph))]),
        (
            "Rise, over the dense model" if result.relative else "Drop, dense minus pruned",
            drop_text(result),
        ),
        ("Tolerance", f"{points(result.tolerance)} {unit(result)}, applied to the {rule}"),
        (f"{test}'s exact p-value", probability(result.drop.mcnemar_p)),
        ("Test rows", count(result.examples)),
        ("Prunable parameters kept", percent(result.kept_fraction.prunable)),
        ("Whole model kept", percent(result.kept_fraction.model)),
        ("On disk", f"{size(result.bytes.pruned)} (dense {size(result.bytes.dense)})"),
        ("Genomes evaluated", count(result.search.evaluations)),
    ]


def sizes_and_speeds(result: Result) -> Table:
    """Dense, pruned and their ratio, for each measured size and speed."""
    parameters, disk, speed = result.parameters, result.bytes, result.speed
    rows = [
        _compared("Prunable parameters", parameters.prunable_dense, parameters.prunable_kept),
        _compared("Whole model, parameters", parameters.model_dense, parameters.model_kept),
        _compared("On disk", disk.dense, disk.pruned, size),
        _compared(
            "Prefill, tokens/s",
            speed.prefill_dense,
            speed.prefill_pruned,
            rate,
            speed.prefill_ratio,
        ),
        _compared(
            "Decode, tokens/s", speed.decode_dense, speed.decode_pruned, rate, speed.decode_ratio
        ),
    ]
    return Table(["", "Dense", "Pruned", "Pruned / dense"], [row for row in rows if row])


def _compared(
    name: str,
    dense: float | None,
    pruned: float | None,
    format_value: Callable[[float | None], str] = count,
    quotient: float | None = None,
) -> list[str]:
    """A row of the table; empty if nothing was measured."""
    quotient = ratio(pruned, dense) if quotient is None else quotient
    if dense is None and pruned is None and quotient is None:
        return []
    return [name, format_value(dense), format_value(pruned), times(quotient)]


def measuring_notes(result: Result) -> list[str]:
    """Notes for the table of speeds: if they were not measured, and the peak memory."""
    notes = []
    if result.speed.prefill_ratio is None and result.speed.decode_ratio is None:
        notes.append("Speeds were not measured in this run.")
    if result.memory.peak_mib is not None:
        peak = memory(result.memory.peak_mib)
        notes.append(f"Peak memory of the whole run, both models included: {peak}.")
    return notes


def time_spent(result: Result) -> Table:
    """Wall time per stage; the third cell is the share of the total in percent."""
    stages = sorted(
        result.seconds, key=lambda s: [*STAGES].index(s) if s in STAGES else len(STAGES)
    )
    total = sum(result.seconds[stage] or 0.0 for stage in stages)
    rows = [
        [
            STAGES.get(stage, stage) + (" (from the cache)" if result.cached.get(stage) else ""),
            duration(result.seconds[stage]),
            f"{100 * (ratio(result.seconds[stage], total) or 0.0):.1f}",
        ]
        for stage in stages
    ]
    return Table(
        ["Stage", "Time", "Share"], [*rows, ["Total", duration(total), ""]] if rows else []
    )


def levels(result: Result) -> Table:
    """Level, rank and kept fraction of every matrix."""
    rows = [
        [
            matrix.name,
            matrix.kind or "other",
            f"{count(matrix.d_out)}\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}{count(matrix.d_in)}",
            NOT_MEASURED if matrix.level is None else f"{matrix.level:g}",
            "full" if matrix.rank is None else count(matrix.rank),
            percent(matrix.kept_fraction),
        ]
        for matrix in result.matrices
    ]
    return Table(["Matrix", "Kind", "Shape", "Level", "Rank", "Kept"], rows, text_columns=2)
