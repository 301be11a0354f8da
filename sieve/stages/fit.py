"""fit: moments and weights to bank.safetensors, nested factors of every matrix."""

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch

import sieve.projections
from sieve.bank import learned as learning
from sieve.bank.bank import FORMAT, Bank, Solver, finish, fit_blocks, unfinished
from sieve.bank.files import is_finished
from sieve.bank.genome import Sizing
from sieve.data.batches import every_batch
from sieve.distributed.trainer import make_trainer
from sieve.model.matrices import find_matrices
from sieve.projections import get_projection
from sieve.runtime.artifacts import fingerprint, hash_files
from sieve.stages.calibrate import Calibrated
from sieve.stages.run import Run
from sieve.streaming.streamed_backbone import StreamedBackbone


def fit(run: Run, calibrated: Calibrated) -> Bank:
    """Nested factors of every matrix."""
    settings = run.config.projection
    learned = get_projection(settings.name).learned
    sources = [*Path(sieve.projections.__file__).parent.glob("*.py"), Path(learning.__file__)]
    key = fingerprint(
        "bank", FORMAT, calibrated.key, settings.name, settings.storage, settings.rank_multiple,
        settings.dtype, settings.damping, settings.prune_head, settings.joint, hash_files(sources),
        [asdict(settings.learning), settings.learning_rate, run.config.seed] if learned else None,
        str(run.backbone.storage_dtype),
    )  # fmt: skip
    if learned:
        path = run.cache.path("bank", key, "safetensors")
        with run.stage("fit", cached=path.exists()):
            if not path.exists():
                bank = _learn(run, calibrated, key)
                if run.leads:
                    bank.save(path)
        return Bank.load(path)
    folder = run.cache.folder("bank", key)
    done = is_finished(folder)
    with run.stage("fit", cached=done):
        if not done:
            _solve(run, calibrated, folder, key)
    return Bank.load(folder)


def _solve(run: Run, calibrated: Calibrated, folder: Path, key: str) -> None:
    """The closed form, a file per block, the blocks dealt to the ranks."""
    settings, trainer = run.config.projection, run.trainer
    backbone = run.backbone
    solver = Solver(
        backbone.skeleton, calibrated.moments(), settings.name, settings.storage,
        settings.rank_multiple, _bank_dtype(run), settings.damping, settings.prune_head,
        settings.joint, backbone.device, backbone.matrices(settings.prune_head),
    )  # fmt: skip
    loaded = backbone.blocks.loaded if isinstance(backbone, StreamedBackbone) else nullcontext
    left = unfinished(solver, folder)
    trainer.strategy.barrier("fit")  # All have looked before the first one writes.
    fit_blocks(solver, folder, key, left, trainer.global_rank, trainer.world_size, loaded)
    trainer.strategy.barrier("fitted")
    if run.leads:
        finish(solver, folder)


def _learn(run: Run, calibrated: Calibrated, key: str) -> Bank:
    """Factors by gradient, the matrices dealt to the ranks; at one level, and cut below it."""
    settings, model = run.config.projection, run.backbone.model
    options = settings.learning
    sizing, matrices = Sizing(settings.storage, settings.rank_multiple), find_matrices(model)
    ranks = {matrix.name: sizing.rank(matrix, options.level) or 0 for matrix in matrices}
    module = learning.LearningModule(
        model,
        ranks,
        calibrated.moments(),
        options.tied,
        options.init,
        settings.learning_rate,
        run.config.seed,
    )
    batches = run.data.calibration_batches(options.batch_tokens, options.tokens)
    trainer = make_trainer(run.config.trainer | {"max_epochs": options.epochs})
    trainer.fit(module, every_batch(batches, run.config.seed))
    run.settle()
    assert module.factors is not None
    return learning.learned_bank(
        model, module.factors, matrices, settings.storage, settings.rank_multiple,
        _bank_dtype(run), key,
    )  # fmt: skip


def _bank_dtype(run: Run) -> torch.dtype:
    name = run.config.projection.dtype
    return run.backbone.storage_dtype if name == "auto" else getattr(torch, name)
