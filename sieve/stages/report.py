"""report: result.json, report.html, and the same in the run's log."""

from pathlib import Path
from typing import Any

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.data.choices import count_vocabulary
from sieve.exports.onnx import graph_bytes
from sieve.factorized.modeling_sieve import auto_class, native_class
from sieve.model.backbone import is_classifier
from sieve.report import figures, write_report
from sieve.report.card import model_card
from sieve.report.closing import closing, headline, rows_per_test
from sieve.report.genomes import bottleneck_rows, genome_rows
from sieve.report.style import untitled
from sieve.runtime.artifacts import write_json_atomic, written_beside
from sieve.stages.calibrate import Calibrated
from sieve.stages.result import matrix_table, provenance, sizes, spectrum
from sieve.stages.run import Run
from sieve.tracking.logger import RunLogger


def report(
    run: Run,
    calibrated: Calibrated,
    bank: Bank,
    genome: Genome,
    search: dict[str, Any],
    evaluation: dict[str, Any],
    command: str,
) -> dict[str, Any]:
    """result.json, report.html, and the same in the run's log."""
    with run.stage("report"):
        result = _result(run, calibrated, bank, genome, search, evaluation, command)
        if run.leads and run.config.export.format.startswith("onnx"):
            result["bytes"]["pruned"] = graph_bytes(run.run_dir / "export")
        if run.leads:
            write_json_atomic(run.run_dir / "result.json", result)
            write_report(result, run.run_dir / "report.html")
            write_card(run, result)
            log_result(run.logger, result)
    result["seconds"]["report"] = run.seconds["report"]
    result["cached"]["report"] = False
    if run.leads:
        write_json_atomic(run.run_dir / "result.json", result)
        keep_export(run)
    return result


def keep_export(run: Run) -> None:
    """The export and result.json as an artifact of the run's log, where that is asked for."""
    name = f"{run.task.name}-{run.backbone.name}"
    run.logger.log_artifact(name, run.run_dir / "export", run.run_dir / "result.json")


def log_result(logger: RunLogger, result: dict[str, Any]) -> None:
    """The result in the run's log: a search is tables and figures of this one run."""
    search = result["search"]
    logger.log_series("generations", search.get("generations") or [], step="generation")
    logger.log_figures({name: untitled(figure) for name, figure in figures(result).items()})
    tests = rows_per_test(result)
    logger.log_table("tests", tests)
    logger.log_metrics({f"drop_on/{row['tested_on']}": row["drop"] for row in tests})
    logger.log_table("matrices", result["matrices"])
    logger.log_table("genomes", genome_rows(search["curve"]))
    logger.log_table("bottlenecks", bottleneck_rows(search))
    logger.log_metrics({f"report/{name}": value for name, value in headline(result).items()})
    logger.log_summary(closing(result))


def write_card(run: Run, result: dict[str, Any]) -> None:
    """The model card of the export, where there is one."""
    folder, config = run.run_dir / "export", run.config
    if config.export.format == "none" or not folder.is_dir():
        return
    local = Path(config.model.path).expanduser().is_dir()
    base = run.backbone.name if local else config.model.path
    loads = auto_class(native_class(run.backbone.model).__name__)
    prompt, form = run.task.preamble + config.task.prompt, config.export.format
    card = model_card(result, base, prompt, form, auto_class=loads)
    with written_beside(folder / "README.md") as partial:
        partial.write_text(card, encoding="utf-8")


def saved_bytes(evaluation: dict[str, Any]) -> int:
    """Bytes on disk that quantization has saved."""
    found = evaluation["quantization"]
    return found["bytes_before"] - found["bytes_after"] if found else 0


def _vocabulary(run: Run) -> dict[str, int]:
    """Size of the model's vocabulary, and how many tokens the selection and test rows take."""
    size = int(run.backbone.model.config.get_text_config().vocab_size)
    rows = [batch for role in ("selection", "test") for batch in run.data.scoring(role)]
    if is_classifier(run.backbone.model):
        return {}
    return {"size": size, **count_vocabulary(rows)}


def _result(
    run: Run,
    calibrated: Calibrated,
    bank: Bank,
    genome: Genome,
    search: dict[str, Any],
    evaluation: dict[str, Any],
    command: str,
) -> dict[str, Any]:
    config = run.config
    return (
        provenance(command, run.device)
        | {
            "task": run.task.name,
            "domain": run.task.domain,
            "model": run.backbone.name,
            "seed": config.seed,
            "tolerance": config.tolerance,
            "guarantee": config.guarantee,
            "metric": run.task.metric.name,
            "relative": run.task.metric.relative,
            "projection": bank.projection,
            "storage": bank.sizing.storage,
        }
        | evaluation
        | sizes(
            bank,
            genome,
            run.backbone.parameters,
            run.backbone.storage_dtype,
            merged=config.export.format == "dense",
            saved_bytes=saved_bytes(evaluation),
        )
        | {
            "search": search,
            "data": run.task.report
            | {"vocabulary": _vocabulary(run), "shortened": run.data.shortened},
            "calibration": calibrated.record,
            "seconds": dict(run.seconds),
            "cached": dict(run.cached),
            "matrices": matrix_table(bank, genome),
            "spectrum": spectrum(bank),
        }
    )
