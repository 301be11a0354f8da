"""What refit, recovery and quantization changed, in a phrase; "" if they did not run."""

from sieve.report.result import Refit, Result
from sieve.report.units import lost, metric_name, metric_value, unit
from sieve.report.values import count, counted, percent, points, size

_METHODS = {"lora": "LoRA", "full": "all factors trained"}


def refitted(result: Result) -> str:
    """How many matrices were solved again, and the effect on the size."""
    refit = result.search.refit
    if refit is None:
        return ""
    if not refit.taken:
        return f"tried and discarded: {_discarded(result, refit)}"
    changed = f"{count(refit.matrices_changed)} matrices solved again"
    before, after = refit.kept_before, result.kept_fraction.prunable
    if before is not None and after is not None and after < before:
        return f"{changed}; kept fell from {percent(before)} to {percent(after)} of prunable"
    return f"{changed}; the size did not change"


def _discarded(result: Result, refit: Refit) -> str:
    """How the refitted genome did on the selection split, where it was refused."""
    before, after = refit.margin_before, refit.margin_after
    tried = next((genome for genome in result.search.curve if genome.refitted), None)
    if tried is not None and tried.feasible is False:
        if tried.whole is False:
            rows = counted(tried.examples_used or 0, "selection row")
            return f"with refitted factors the genome was beyond the tolerance after {rows}"
        return "with refitted factors the genome is beyond the tolerance on the selection split"
    if before is not None and after is not None and after < before:
        text = "with refitted factors the genome is within the tolerance by a smaller margin"
        if points(after) == points(before):
            return text
        return f"{text}, {points(after)} instead of {points(before)} {unit(result)}"
    return "the refitted factors do worse on the selection split"


def recovered(result: Result) -> str:
    """The method, the sizes with and without it, and the metric on held-out calibration rows."""
    recovery = result.recovery
    if recovery is None or not recovery.history:
        return ""
    method = _METHODS.get(recovery.method, recovery.method)
    if not recovery.taken:
        return f"{method}, rolled back: no check on held-out calibration rows was better"
    best = max(recovery.history, key=lambda check: (check.accuracy or 0, -(check.loss or 0)))
    before, after = (metric_value(result, check.accuracy) for check in (recovery.history[0], best))
    text = f"{method}, {count(best.step)} steps: {before} → {after} on held-out calibration rows"
    if recovery.search is None:
        return text
    sizes = f"{percent(recovery.search.kept_before)} to {percent(result.kept_fraction.prunable)}"
    tried = f"{len(recovery.search.attempts)} sizes"
    text = f"{text}; with {tried} tried, kept fell from {sizes} of prunable"
    if not recovery.search.head_start:
        return text
    return (
        f"{text}; the dense model knows these rows, so {lost(result, recovery.search.head_start)} "
        "that it does better than on selection rows do not count"
    )


def quantized(result: Result) -> str:
    """Bytes of the prunable matrices, and the metric on test rows before and after."""
    record = result.quantization
    if record is None:
        return ""
    before, after = (
        metric_value(result, accuracy)
        for accuracy in (record.accuracy_before, record.accuracy_after)
    )
    return (
        f"{record.method}, {count(record.quantized)} weights, {count(record.left)} unchanged; "
        f"prunable matrices {size(record.bytes_dense)} (dense) → {size(record.bytes_before)} "
        f"(pruned) → {size(record.bytes_after)} (quantized), {percent(record.saved)} saved in "
        f"all; {metric_name(result)} {before} → {after} on test"
    )
