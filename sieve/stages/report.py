"""report: result.json, report.html, the model card, and the result in the run's log."""

from pathlib import Path

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.data.choices import count_vocabulary
from sieve.exports.gguf_writing import NAME as GGUF
from sieve.exports.onnx import graph_bytes
from sieve.factorized.modeling_sieve import auto_class, native_class
from sieve.model.backbone import is_classifier
from sieve.model.prepared import describe
from sieve.report import figures, write_report
from sieve.report.card import model_card
from sieve.report.closing import closing, headline, rows_per_test
from sieve.report.genomes import bottleneck_rows, genome_rows
from sieve.report.style import untitled
from sieve.runtime.artifacts import write_json_atomic, written_beside
from sieve.stages.cached import Record
from sieve.stages.calibrate import Calibrated
from sieve.stages.result import matrix_table, provenance, sizes, spectrum
from sieve.stages.run import Run
from sieve.tasks.config import AUTO
from sieve.tasks.prompts import has_template
from sieve.tracking.logger import RunLogger


def report(
    run: Run,
    calibrated: Calibrated,
    bank: Bank,
    genome: Genome,
    search: Record,
    evaluation: Record,
    command: str,
) -> Record:
    """Write result.json and report.html; returns the result."""
    path = run.run_dir / "result.json"
    with run.stage("report"):
        result = provenance(command, run.device) | _settings(run, bank) | evaluation
        result |= _sizes(run, bank, genome, evaluation) | {
            "search": search,
            "data": run.task.report
            | {"vocabulary": _vocabulary(run), "shortened": run.data.shortened},
            "calibration": calibrated.record,
            "seconds": _seconds(run, search),
            "cached": dict(run.from_cache),
            "matrices": matrix_table(bank, genome),
            "spectrum": spectrum(bank),
        }
        if run.leads:
            write_json_atomic(path, result)
            write_report(result, run.run_dir / "report.html")
            write_card(run, result)
            log_result(run.logger, result)
    result["seconds"]["report"] = run.seconds["report"]
    result["cached"]["report"] = False
    if run.leads:
        write_json_atomic(path, result)
        name = f"{run.task.name}-{run.backbone.name}"
        run.logger.log_artifact(name, run.run_dir / "export", path)
    return result


def _settings(run: Run, bank: Bank) -> Record:
    config = run.config
    return {
        "task": run.task.name,
        "domain": run.task.domain,
        "model": run.backbone.name,
        "dense": describe(config.model),
        "seed": config.seed,
        "tolerance": config.tolerance,
        "confidence": config.confidence,
        "metric": run.task.metric.name,
        "relative": run.task.metric.relative,
        "projection": bank.projection,
        "storage": bank.sizing.storage,
    }


def _sizes(run: Run, bank: Bank, genome: Genome, evaluation: Record) -> Record:
    form, quantized = run.config.export.format, evaluation["quantization"]
    result = sizes(
        bank,
        genome,
        model_parameters=run.cut.parameters if run.cut else run.backbone.parameters,
        removed=run.cut.vocabulary.removed if run.cut else 0,
        dtype=run.backbone.storage_dtype,
        merged=form == "dense",
        saved_bytes=quantized["bytes_before"] - quantized["bytes_after"] if quantized else 0,
    )
    if run.leads and form.startswith("onnx"):
        result["bytes"]["pruned"] = graph_bytes(run.run_dir / "export")
    if run.leads and form == "gguf":
        result["bytes"]["pruned"] = (run.run_dir / "export" / GGUF).stat().st_size
    if run.config.export.storage and (stored := evaluation["export"]["storage"]):
        result["bytes"]["pruned"] = stored["bytes"][stored["form"]]
    return result


def _vocabulary(run: Run) -> dict[str, int]:
    """Size of the model's vocabulary, and how many tokens the selection and test rows use."""
    rows = [batch for role in ("selection", "test") for batch in run.data.scoring(role)]
    if is_classifier(run.backbone.model):
        return {}
    size = int(run.backbone.model.config.get_text_config().vocab_size)
    return {"size": size, **count_vocabulary(rows)}


def _seconds(run: Run, search: Record) -> dict[str, float]:
    """The seconds of each stage; generations that a search evolved in other jobs come first."""
    evolved = sum(generation["seconds"] for generation in search.get("generations") or [])
    return {"evolve": evolved, **run.seconds} if evolved else dict(run.seconds)


def log_result(logger: RunLogger, result: Record) -> None:
    """Log the result; a search becomes tables and figures of this one run."""
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


def write_card(run: Run, result: Record) -> None:
    """Write the model card of the export, if there is an export."""
    folder, config = run.run_dir / "export", run.config
    if config.export.format == "none" or not folder.is_dir():
        return
    local = Path(config.model.path).expanduser().exists()
    base = run.backbone.name if local else config.model.path
    loads = auto_class(native_class(run.backbone.model).__name__)
    prompt, form = run.task.preamble + config.task.prompt, config.export.format
    task, tokenizer = config.task, run.backbone.tokenizer
    chat = task.chat == "always" or task.chat == AUTO and has_template(tokenizer)
    known = run.task.labels if task.normalize == "none" else ()
    answers = [("" if chat else task.delimiter) + label for label in known]
    card = model_card(result, base, prompt, form, loads, answers, chat)
    with written_beside(folder / "README.md") as partial:
        partial.write_text(card, encoding="utf-8")
