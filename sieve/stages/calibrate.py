"""calibrate: task prompts through the dense model, to moments.safetensors."""

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sieve.artifacts import fingerprint, read_json, write_json_atomic
from sieve.batches import count_rows
from sieve.calibration import CalibrationModule
from sieve.matrices import Matrix, blocks_of, find_matrices
from sieve.moments import BY_GRADIENT, FORMAT, Moments, Needs, StoredMoments
from sieve.projections import get_projection
from sieve.stages.run import Run

log = logging.getLogger(__name__)
FEWEST = 8  # experts named in the record


@dataclass(frozen=True)
class Calibrated:
    """Moments on disk, their fingerprint, and what they saw: tokens, tokens_asked, rows."""

    key: str
    paths: list[Path]
    record: dict[str, Any]

    def moments(self) -> StoredMoments:
        """Those of one matrix at a time, read from the disk."""
        return StoredMoments(self.paths, self.key)


def calibrate(run: Run) -> Calibrated:
    """Moments of the task's prompts."""
    settings, needs = run.config.calibration, _needs(run)
    weighting = settings.weighting_for(needs)
    loss = (settings.answers,) if needs.gradient or weighting in BY_GRADIENT else ()
    matrices = find_matrices(run.backbone.model, run.config.projection.prune_head)
    groups = _groups(matrices, settings.layers_at_once)
    key = fingerprint(
        "moments", FORMAT, run.backbone.fingerprint, str(run.backbone.model.dtype),
        run.config.model.attn_implementation, settings.tokens, weighting, asdict(needs),
        loss, run.config.seed, run.split_key("calibration"),
        [[matrix.name for matrix in group] for group in groups],
    )  # fmt: skip
    keys = [key] if len(groups) == 1 else [f"{key}.{index}" for index in range(len(groups))]
    paths = [run.cache.path("moments", one, "safetensors") for one in keys]
    record_path = run.cache.path("calibration", key, "json")
    done = all(path.exists() for path in (*paths, record_path))
    counts: list[tuple[Matrix, int]] = []
    with run.stage("calibrate", cached=done):
        for path, group in zip(paths, groups, strict=True) if not done else ():
            moments = _collect(run, group, weighting)
            counts += [(m, moments.of(m).count) for m in group if m.expert]
            if run.leads:
                replace(moments, fingerprint=key).save(path)
            if path is paths[-1]:
                rows = count_rows(run.data.calibration())
                record = {
                    "tokens": moments.tokens, "tokens_asked": settings.tokens, "rows": rows
                }  # fmt: skip
                run.logger.log_metrics({f"calibrate/{name}": n for name, n in record.items()})
                if run.leads:
                    more = {"experts": seen_by_experts(counts), "mix": shares(run)}
                    write_json_atomic(record_path, record | more)
    return Calibrated(key, paths, read_json(record_path))


def shares(run: Run) -> dict[str, float] | None:
    """Which tasks the rows are of, and the share of the tokens; None where it is the run's own."""
    parts = [(task.name, share) for task, share in run.data.mix]
    return None if parts == [(run.task.name, 1.0)] else dict(parts)


def seen_by_experts(counts: list[tuple[Matrix, int]]) -> dict[str, Any] | None:
    """How many tokens the experts of a mixture saw, by matrix; None where there are none.

    Fewer than an expert's inputs have dimensions cannot tell what it does.
    """
    if not counts:
        return None
    few = {m.expert: count for m, count in counts if count < m.d_in}
    experts, unseen = {m.expert for m, _ in counts}, sum(count == 0 for count in few.values())
    fewest = dict(sorted(few.items(), key=lambda item: item[1])[:FEWEST])
    if few:
        name, count = next(iter(fewest.items()))
        log.warning(
            "%d of %d experts saw fewer tokens than their inputs have dimensions, %d of them none; "
            "the least: %s, %d. What they do for the task is a guess; raise calibration.tokens.",
            len(few), len(experts), unseen, name, count,
        )  # fmt: skip
    return {"experts": len(experts), "unseen": unseen, "few": len(few), "fewest": fewest}


def _needs(run: Run) -> Needs:
    """What the projection asks for; a shared V asks for the moments of the inputs."""
    needs = get_projection(run.config.projection.name).needs
    return replace(needs, input=needs.input or run.config.projection.joint)


def _groups(matrices: list[Matrix], layers_at_once: int | None) -> list[list[Matrix]]:
    """Matrices whose moments are in memory together: all, or those of so many blocks."""
    if layers_at_once is None:
        return [matrices]
    blocks = list(blocks_of(matrices).values())
    starts = range(0, len(blocks), layers_at_once)
    groups = [sum(blocks[start : start + layers_at_once], []) for start in starts]
    head = [matrix for matrix in matrices if matrix.layer is None]
    return [*groups, head] if head else groups


def _collect(run: Run, matrices: list[Matrix], weighting: str) -> Moments:
    """One pass over the calibration rows."""
    settings, needs = run.config.calibration, _needs(run)
    module = CalibrationModule(
        run.backbone.model, matrices, needs, settings.answers, weighting,
        settings.checkpointing, run.config.seed,
    )  # fmt: skip
    run.trainer.predict(module, datamodule=run.data, return_predictions=False)
    run.settle()
    assert module.moments is not None
    return module.moments
