"""calibrate: the moments of every matrix, from the task's prompts through the dense model."""

import logging
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from sieve.calibration.calibration import CalibrationModule
from sieve.calibration.schedule import groups_of, needs_of
from sieve.data.batches import batches_of_rank, count_rows
from sieve.model.matrices import Matrix
from sieve.projections.moments import (
    BY_GRADIENT,
    FORMAT,
    Moments,
    StoredMoments,
    weighting_for,
)
from sieve.runtime.artifacts import fingerprint
from sieve.stages.cached import JSON, Record
from sieve.stages.run import Run
from sieve.streaming.hidden_states import hidden_states
from sieve.streaming.streamed_backbone import StreamedBackbone
from sieve.streaming.streaming import StreamingModule, log_needs

log = logging.getLogger(__name__)
RAREST = 8  # experts named in the record
Counts = list[tuple[Matrix, int]]  # tokens that each expert saw


@dataclass(frozen=True)
class Calibrated:
    """The files of the moments, their fingerprint, and what the run records (tokens, rows, ...)."""

    key: str
    paths: list[Path]
    record: Record

    def moments(self) -> StoredMoments:
        """The moments, read from disk one matrix at a time."""
        return StoredMoments(self.paths, self.key)


def calibrate(run: Run) -> Calibrated:
    """Collect the moments of every matrix on the task's prompts."""
    calibration = _Calibration(run)
    key = calibration.key
    [record] = run.cached(
        "calibrate",
        key,
        {"calibration": JSON},
        lambda: [calibration.collect()],
        beside=calibration.paths,
    )
    return Calibrated(key, calibration.paths, record)


class _Calibration:
    """One calibration: which moments, of which matrices together, and how they are collected."""

    def __init__(self, run: Run) -> None:
        self.run, self.settings = run, run.config.calibration
        self.streamed = isinstance(run.backbone, StreamedBackbone)
        self.needs = needs_of(run.config.projection)
        self.weighting = weighting_for(self.settings.weighting, self.needs)
        projection = run.config.projection
        matrices = run.backbone.matrices(projection.prune_head, projection.prune_embedding)
        self.groups = groups_of(matrices, 1 if self.streamed else self.settings.layers_at_once)

    @cached_property
    def key(self) -> str:
        """Fingerprint of the moments."""
        run = self.run
        with_gradients = self.needs.gradient or self.weighting in BY_GRADIENT
        answers = self.settings.answers if with_gradients else None
        size = [self.settings.tokens, self.settings.rows, run.config.share_prefix]
        needs = {
            name: need for name, need in asdict(self.needs).items() if need or name != "neurons"
        }
        moments = [size, self.weighting, needs, answers]
        rows = [run.split_key("calibration"), run.config.seed]
        names = [[matrix.name for matrix in group] for group in self.groups]
        return fingerprint("moments", FORMAT, run.model_key, moments, rows, names, self.streamed)

    @property
    def paths(self) -> list[Path]:
        """A file of moments for each group of matrices."""
        count = len(self.groups)
        keys = [self.key] if count == 1 else [f"{self.key}.{index}" for index in range(count)]
        return [self.run.cache.path("moments", key, "safetensors") for key in keys]

    def collect(self) -> Record:
        """Write the moments; returns the record of what they saw."""
        run = self.run
        tokens, counts = self._stream() if self.streamed else self._pass_by_pass()
        rows = count_rows(run.data.calibration)
        asked = None if self.settings.rows else self.settings.tokens
        record: Record = {"tokens": tokens, "tokens_asked": asked, "rows": rows}
        run.logger.log_metrics({f"calibrate/{name}": count for name, count in record.items()})
        experts = tokens_of_experts(counts)
        if experts and experts["few"] and run.leads:
            name, count = next(iter(experts["fewest"].items()))
            log.warning(
                "%d of %d experts saw fewer tokens than their inputs have dimensions, %d of them "
                "none (fewest: %s, %d). Their factors are a guess; raise calibration.tokens.",
                *(experts["few"], experts["experts"], experts["unseen"], name, count),
            )
        return record | {"experts": experts, "mix": token_shares(run)}

    def _pass_by_pass(self) -> tuple[int, Counts]:
        """Pass over the rows once per group of matrices; returns tokens and experts' counts."""
        run, counts = self.run, Counts()
        for path, group in zip(self.paths, self.groups, strict=True):
            module = CalibrationModule(
                run.backbone.model,
                group,
                needs=self.needs,
                answers=self.settings.answers,
                weighting=self.weighting,
                checkpointing=self.settings.checkpointing,
                seed=run.config.seed,
            )
            run.trainer.predict(module, datamodule=run.data, return_predictions=False)
            run.settle()
            assert module.moments is not None
            tokens = module.moments.tokens
            counts += self._save(path, group, module.moments)
        return tokens, counts

    def _stream(self) -> tuple[int, Counts]:
        """Collect moments with one block of the model in memory at a time."""
        run, trainer, backbone = self.run, self.run.trainer, self.run.backbone
        assert isinstance(backbone, StreamedBackbone)
        tokens, counts = [0], Counts()
        files = {g[0].name: (path, g) for path, g in zip(self.paths, self.groups, strict=True)}

        def save(moments: Moments, matrices: list[Matrix]) -> None:
            counts.extend(self._save(*files[matrices[0].name], moments))
            tokens[0] = max(tokens[0], moments.tokens)

        batches = batches_of_rank(run.data.calibration, trainer.global_rank, trainer.world_size)
        log_needs(backbone.blocks, batches, self.needs, self.weighting, self.settings.hidden)
        in_memory = self.settings.hidden == "memory"
        with hidden_states(None if in_memory else run.cache.root) as hidden:
            module = StreamingModule(
                backbone.blocks,
                batches,
                hidden,
                save,
                needs=self.needs,
                answers=self.settings.answers,
                weighting=self.weighting,
                seed=run.config.seed,
            )
            steps: Any = module.steps()
            loader = DataLoader(steps, batch_size=None, collate_fn=_unchanged)
            trainer.predict(module, loader, return_predictions=False)
        return tokens[0], counts

    def _save(self, path: Path, group: list[Matrix], moments: Moments) -> Counts:
        """Write the moments of a group; returns the tokens that its experts saw."""
        if self.run.leads:
            replace(moments, fingerprint=self.key).save(path)
        return [(matrix, moments.of(matrix).count) for matrix in group if matrix.expert]


def token_shares(run: Run) -> dict[str, float] | None:
    """Share of the calibration tokens by task; None if all are the run's own task's."""
    shares = [(task.name, share) for task, share in run.data.mix]
    return None if shares == [(run.task.name, 1.0)] else dict(shares)


def tokens_of_experts(counts: Counts) -> Record | None:
    """How many experts of a mixture saw few tokens, and which saw fewest; None without experts.

    Few tokens are fewer than the input dimensions of the expert's matrices.
    """
    if not counts:
        return None
    few = {matrix.expert: count for matrix, count in counts if count < matrix.d_in}
    return {
        "experts": len({matrix.expert for matrix, _ in counts}),
        "unseen": sum(count == 0 for count in few.values()),
        "few": len(few),
        "fewest": dict(sorted(few.items(), key=lambda item: item[1])[:RAREST]),
    }


def _unchanged(step: object) -> object:
    return step
