"""export: the model directory."""

from pathlib import Path

from sieve.bank import Bank
from sieve.export import export as export_model
from sieve.factorized import Switch
from sieve.genome import Genome
from sieve.stages.quantize import quantize
from sieve.stages.run import Run
from sieve.task_file import write_task


def export(run: Run, bank: Bank, genome: Genome) -> Path | None:
    """The model directory."""
    if run.config.export.format == "none":
        return None
    with run.stage("export"):
        if run.leads:
            with Switch(run.backbone.model, bank).to(genome):
                if run.config.quantization.method != "none":
                    quantize(run, bank)
                export_model(
                    run.backbone.model, run.backbone.tokenizer, run.run_dir / "export",
                    run.config.export.format, bank.dtype,
                )  # fmt: skip
            write_task(run.config.task, run.task.labels, run.run_dir / "export")
    return run.run_dir / "export"
