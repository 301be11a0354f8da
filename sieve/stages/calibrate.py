"""calibrate: task prompts through the dense model, to moments.safetensors."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sieve.artifacts import fingerprint, read_json, write_json_atomic
from sieve.batches import count_rows
from sieve.calibration import CalibrationModule
from sieve.moments import FORMAT, Moments
from sieve.projections import get_projection
from sieve.stages.run import Run


@dataclass(frozen=True)
class Calibrated:
    """Moments on disk, their fingerprint, and what they saw: tokens, tokens_asked, rows."""

    key: str
    path: Path
    record: dict[str, Any]

    def moments(self) -> Moments:
        """All of them, read from the disk."""
        return Moments.load(self.path)


def calibrate(run: Run) -> Calibrated:
    """Moments of the task's prompts."""
    settings, needs = run.config.calibration, get_projection(run.config.projection.name).needs
    weighting = settings.weighting_for(needs)
    loss = (settings.answers,) if needs.gradient or weighting == "gradient" else ()
    key = fingerprint(
        "moments", FORMAT, run.backbone.fingerprint, str(run.backbone.model.dtype),
        run.config.model.attn_implementation, settings.tokens, weighting, asdict(needs),
        loss, run.config.seed, run.split_key("calibration"),
    )  # fmt: skip
    path = run.cache.path("moments", key, "safetensors")
    record_path = run.cache.path("calibration", key, "json")
    done = path.exists() and record_path.exists()
    with run.stage("calibrate", cached=done):
        if not done:
            module = CalibrationModule(
                run.backbone.model, None, needs, settings.answers, weighting,
                settings.checkpointing, run.config.seed,
            )  # fmt: skip
            run.trainer.predict(module, datamodule=run.data, return_predictions=False)
            assert module.moments is not None
            tokens, rows = module.moments.tokens, count_rows(run.data.calibration())
            record = {"tokens": tokens, "tokens_asked": settings.tokens, "rows": rows}
            if run.leads:
                write_json_atomic(record_path, record)
                replace(module.moments, fingerprint=key).save(path)
            run.logger.log_metrics({f"calibrate/{name}": n for name, n in record.items()})
            run.settle()
    return Calibrated(key, path, read_json(record_path))
