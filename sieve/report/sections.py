"""The sections of the report below its answer: each a pure function from a result to HTML.

A section whose values are missing says so in a sentence or is left out.
"""

from collections.abc import Mapping
from typing import Any

from sieve.report import html
from sieve.report.html import text
from sieve.report.sentence import drop_interval
from sieve.report.units import is_relative, metric_name, metric_value, unit
from sieve.report.values import (
    NOT_MEASURED,
    count,
    duration,
    look,
    measure,
    memory,
    number,
    percent,
    points,
    probability,
    rate,
    ratio,
    size,
    times,
)

Result = Mapping[str, Any]

STAGES = {
    "calibrate": "Calibrate: moments of the dense model",
    "fit": "Fit: factors of every rank",
    "search": "Search: which rank where",
    "curve": "Curve: other sizes on the test split",
    "refit": "Refit: on what the pruned model sees",
    "recover": "Recover: fine-tune the factors",
    "quantize": "Quantize",
    "evaluate": "Evaluate: the test split",
    "export": "Export: the model directory",
    "report": "Report",
}


def key_figures(result: Result) -> str:
    """The numbers behind the answer, as a definition list."""
    metric = metric_name(result).capitalize()
    interval = drop_interval(result)
    bounds = f" (95 % interval {interval})" if interval else ""
    drop = points(look(result, "drop.point"))
    what = "Rise, over the dense model" if is_relative(result) else "Drop, dense minus pruned"
    test = "Sign test" if is_relative(result) else "McNemar"
    rule = "interval's upper end" if look(result, "guarantee") else "point estimate"
    pairs = [
        (f"{metric}, dense", metric_value(result, look(result, "baseline.accuracy"))),
        (f"{metric}, pruned", metric_value(result, look(result, "pruned.accuracy"))),
        *_graph(result, metric),
        (what, drop if drop == NOT_MEASURED else f"{drop} {unit(result)}{bounds}"),
        ("Tolerance", f"{points(look(result, 'tolerance'))} {unit(result)}, for the {rule}"),
        (
            f"{test}'s exact p-value",
            probability(look(result, "drop.mcnemar_p")),
        ),
        ("Test rows", count(look(result, "examples"))),
        ("Prunable parameters kept", percent(look(result, "kept_fraction.prunable"))),
        ("Whole model kept", percent(look(result, "kept_fraction.model"))),
        (
            "On disk",
            f"{size(look(result, 'bytes.pruned'))} (dense {size(look(result, 'bytes.dense'))})",
        ),
        ("Genomes evaluated", count(look(result, "search.evaluations"))),
    ]
    shown = [(term, text(value)) for term, value in pairs]
    return html.section("key-figures", "Key figures", html.definitions(shown))


def _graph(result: Result, metric: str) -> list[tuple[str, str]]:
    if measure(result, "export.accuracy") is None:
        return []
    return [(f"{metric}, exported graph", metric_value(result, look(result, "export.accuracy")))]


def sizes_and_speeds_table(result: Result) -> str:
    """Dense, pruned and their ratio, for sizes and speeds."""
    lines = [
        ("Prunable parameters", "parameters.prunable_dense", "parameters.prunable_kept", count),
        ("Whole model, parameters", "parameters.model_dense", "parameters.model_kept", count),
        ("On disk", "bytes.dense", "bytes.pruned", size),
        ("Prefill, tokens/s", "speed.prefill_dense", "speed.prefill_pruned", rate),
        ("Decode, tokens/s", "speed.decode_dense", "speed.decode_pruned", rate),
    ]
    stated = {
        "Prefill, tokens/s": measure(result, "speed.prefill_ratio"),
        "Decode, tokens/s": measure(result, "speed.decode_ratio"),
    }
    rows = []
    for name, dense_path, pruned_path, written in lines:
        dense, pruned = measure(result, dense_path), measure(result, pruned_path)
        quotient = stated.get(name)
        quotient = ratio(pruned, dense) if quotient is None else quotient
        if dense is None and pruned is None and quotient is None:
            continue
        rows.append(
            [text(name), text(written(dense)), text(written(pruned)), text(times(quotient))]
        )
    caption = "Dense and pruned model, measured in the same run; MB and GB are decimal"
    table = html.table(["", "Dense", "Pruned", "Pruned / dense"], rows, caption) if rows else ""
    return table + _remarks_on_measuring(result)


def _remarks_on_measuring(result: Result) -> str:
    """What the table cannot say: speeds that were skipped, and the memory of the whole run."""
    remarks = []
    if not any(measure(result, f"speed.{key}_ratio") for key in ("prefill", "decode")):
        remarks.append("Speeds were not measured in this run.")
    peak = measure(result, "memory.peak_mib")
    if peak is not None:
        remarks.append(f"Peak memory of the whole run, both models included: {memory(peak)}.")
    return "".join(html.paragraph(remark) for remark in remarks)


def time_spent(result: Result) -> str:
    """Seconds per stage, with a bar for the share and a mark for what came from the cache."""
    seconds = look(result, "seconds") or {}
    known = [stage for stage in STAGES if stage in seconds]
    stages = known + [stage for stage in seconds if stage not in STAGES]
    total = sum(number(seconds[stage]) or 0.0 for stage in stages)
    rows = []
    for stage in stages:
        spent = number(seconds[stage])
        width = 100 * (ratio(spent, total) or 0.0)
        bar = f'<span class="bar" style="inline-size:{width:.1f}%"></span>'
        cached = " (from the cache)" if look(result, f"cached.{stage}") else ""
        rows.append([text(STAGES.get(stage, str(stage)) + cached), text(duration(spent)), bar])
    if not rows:
        return ""
    rows.append(["Together", text(duration(total)), ""])
    caption = "Wall time per stage"
    table = html.table(["Stage", "Time", "Share"], rows, caption, css="time")
    return html.section("time", "Where the time went", table)


def levels(result: Result) -> str:
    """Level, rank and kept fraction of every matrix, folded away."""
    matrices = look(result, "matrices") or []
    if not matrices:
        return ""
    rows = [
        [
            f"<code>{html.dotted(matrix.get('name'))}</code>",
            text(matrix.get("kind") or "other"),
            _shape(matrix),
            _level(matrix.get("level")),
            "full" if matrix.get("rank") is None else count(matrix["rank"]),
            text(percent(matrix.get("kept_fraction"))),
        ]
        for matrix in matrices
    ]
    caption = "Level 1 is the dense matrix untouched; at level 0 only its mean output stays"
    heads = ["Matrix", "Kind", "Shape", "Level", "Rank", "Kept"]
    table = html.table(heads, rows, caption, css="levels", text_columns=2)
    noun = "matrix" if len(rows) == 1 else "matrices"
    summary = f"<summary>{count(len(rows))} {noun}</summary>"
    return html.section(
        "levels", "Levels, matrix by matrix", f"<details>{summary}\n{table}</details>"
    )


def settings(result: Result) -> str:
    """What is needed to get the same result again."""
    pairs = [
        ("Model", look(result, "model")),
        ("Task", look(result, "task")),
        ("Domain", look(result, "domain")),
        ("Seed", look(result, "seed")),
        ("Projection", look(result, "projection")),
        ("Storage", look(result, "storage")),
        ("Search", look(result, "search.method")),
        ("Selection examples scored", _counted(result, "search.examples")),
        ("Refit", _refit(result)),
        ("Recovery", _recovery(result)),
        ("Quantization", _quantization(result)),
        ("Calibration rows", _counted(result, "calibration.rows")),
        ("Calibration tokens", _counted(result, "calibration.tokens")),
        ("Device", look(result, "device")),
        ("Sieve", look(result, "sieve_version")),
        *((name, version) for name, version in (look(result, "versions") or {}).items()),
    ]
    shown = [(str(term), text(value)) for term, value in pairs if value not in (None, "")]
    command = look(result, "command")
    block = f"<pre><code>{text(command)}</code></pre>" if command else ""
    return html.section("settings", "Settings and how to reproduce", block, html.definitions(shown))


def _counted(result: Result, path: str) -> str | None:
    return None if measure(result, path) is None else count(look(result, path))


def _shape(matrix: Mapping[str, Any]) -> str:
    return f"{count(matrix.get('d_out'))}&nbsp;×&nbsp;{count(matrix.get('d_in'))}"


def _level(value: Any) -> str:
    level = number(value)
    return NOT_MEASURED if level is None else f"{level:g}"


def _refit(result: Mapping[str, Any]) -> str | None:
    """What solving the chosen ranks again has brought, in one phrase."""
    refit = look(result, "search.refit")
    if not isinstance(refit, Mapping):
        return None
    if not refit.get("taken"):
        return "tried, and not taken: the factors as they were did as well"
    change = f"{count(refit.get('matrices_changed'))} matrices changed"
    before, after = number(refit.get("kept_before")), measure(result, "kept_fraction.prunable")
    if before is not None and after is not None and after < before:
        return f"{change}; kept fell from {percent(before)} to {percent(after)} of prunable"
    return f"{change}, at the same size"


def _recovery(result: Mapping[str, Any]) -> str | None:
    """What training after pruning has brought on the selection rows, in one phrase."""
    recovery = look(result, "recovery")
    if not isinstance(recovery, Mapping) or not (history := recovery.get("history")):
        return None
    how = {"lora": "LoRA", "full": "all factors trained"}.get(str(recovery.get("method")), "")
    if not recovery.get("taken"):
        return f"{how}, rolled back: no state did better on the selection rows"
    best = max(history, key=lambda entry: (entry["accuracy"], -entry["loss"]))
    before, after = (metric_value(result, e["accuracy"]) for e in (history[0], best))
    return f"{how}, {count(best['step'])} steps: {before} → {after} on the selection rows"


def _quantization(result: Mapping[str, Any]) -> str | None:
    """Bytes of the prunable matrices and accuracy on test, before and after, in one phrase."""
    found = look(result, "quantization")
    if not isinstance(found, Mapping):
        return None
    sizes = " → ".join(size(found[f"bytes_{when}"]) for when in ("dense", "before", "after"))
    accuracy = " → ".join(
        metric_value(result, found[f"accuracy_{when}"]) for when in ("before", "after")
    )
    done, left = count(found["quantized"]), count(found["left"])
    return (
        f"{found['method']}, {done} weights, {left} left as they were; prunable matrices {sizes} "
        f"(dense, pruned, quantized), {percent(found['saved'])} saved together; {accuracy} on test"
    )
