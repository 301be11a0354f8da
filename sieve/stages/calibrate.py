"""calibrate: task prompts through the dense model, to moments.safetensors."""

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from sieve.calibration.calibration import CalibrationModule
from sieve.data.batches import batches_of_rank, count_rows
from sieve.model.matrices import Matrix, blocks_of
from sieve.projections import get_projection
from sieve.projections.moments import (
    BY_GRADIENT,
    FORMAT,
    Moments,
    Needs,
    StoredMoments,
    weighting_for,
)
from sieve.runtime.artifacts import fingerprint, read_json, write_json_atomic
from sieve.stages.run import Run
from sieve.streaming.hidden_states import hidden_states
from sieve.streaming.streamed_backbone import StreamedBackbone
from sieve.streaming.streaming import StreamingModule, log_needs

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
    weighting = weighting_for(settings.weighting, needs)
    loss = (settings.answers,) if needs.gradient or weighting in BY_GRADIENT else ()
    streamed = isinstance(run.backbone, StreamedBackbone)
    matrices = run.backbone.matrices(run.config.projection.prune_head)
    groups = _groups(matrices, 1 if streamed else settings.layers_at_once)
    key = fingerprint(
        "moments", FORMAT, run.backbone.fingerprint, str(run.backbone.dtype),
        run.config.model.attn_implementation, settings.tokens, weighting, asdict(needs),
        loss, run.config.seed, run.split_key("calibration"),
        [[matrix.name for matrix in group] for group in groups], *["stream"] * streamed,
    )  # fmt: skip
    keys = [key] if len(groups) == 1 else [f"{key}.{index}" for index in range(len(groups))]
    paths = [run.cache.path("moments", one, "safetensors") for one in keys]
    record_path = run.cache.path("calibration", key, "json")
    done = all(path.exists() for path in (*paths, record_path))
    counts: list[tuple[Matrix, int]] = []
    with run.stage("calibrate", cached=done):
        if not done:
            collect = _stream if streamed else _pass_by_pass
            tokens, counts = collect(run, groups, paths, key, weighting)
            rows = count_rows(run.data.calibration())
            record = {"tokens": tokens, "tokens_asked": settings.tokens, "rows": rows}
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


def _pass_by_pass(
    run: Run, groups: list[list[Matrix]], paths: list[Path], key: str, weighting: str
) -> tuple[int, list[tuple[Matrix, int]]]:
    """A pass over the rows for each group; tokens seen, and those of each expert."""
    counts: list[tuple[Matrix, int]] = []
    for path, group in zip(paths, groups, strict=True):
        moments = _collect(run, group, weighting)
        counts += _of_experts(group, moments)
        if run.leads:
            replace(moments, fingerprint=key).save(path)
    return moments.tokens, counts


def _stream(
    run: Run, groups: list[list[Matrix]], paths: list[Path], key: str, weighting: str
) -> tuple[int, list[tuple[Matrix, int]]]:
    """The same, one block of the model in memory at a time."""
    settings, trainer, backbone = run.config.calibration, run.trainer, run.backbone
    assert isinstance(backbone, StreamedBackbone)
    blocks, seen, counts = backbone.blocks, [0], list[tuple[Matrix, int]]()
    homes = {group[0].name: (path, group) for path, group in zip(paths, groups, strict=True)}

    def save(moments: Moments, matrices: list[Matrix]) -> None:
        path, group = homes[matrices[0].name]
        counts.extend(_of_experts(group, moments))
        seen[0] = max(seen[0], moments.tokens)
        if run.leads:
            replace(moments, fingerprint=key).save(path)

    batches = batches_of_rank(run.data.calibration(), trainer.global_rank, trainer.world_size)
    log_needs(blocks, batches, _needs(run), weighting, settings.hidden)
    with hidden_states(None if settings.hidden == "memory" else run.cache.root) as hidden:
        module = StreamingModule(
            blocks, batches, hidden, save, _needs(run), settings.answers, weighting,
            run.config.seed,
        )  # fmt: skip
        steps: Any = module.steps()
        trainer.predict(
            module, DataLoader(steps, batch_size=None, collate_fn=_same), return_predictions=False
        )
    return seen[0], counts


def _same(step: Any) -> Any:
    return step


def _of_experts(matrices: list[Matrix], moments: Moments) -> list[tuple[Matrix, int]]:
    return [(m, moments.of(m).count) for m in matrices if m.expert]


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
