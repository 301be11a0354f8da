"""fit: the bank, nested factors of every matrix, from its moments and weights."""

from dataclasses import asdict, replace
from pathlib import Path

import torch

from sieve.bank import learned
from sieve.bank.bank import FORMAT, Bank, finish, fit_blocks, unfinished
from sieve.bank.files import INDEX
from sieve.bank.genome import Sizing
from sieve.bank.solver import Solver
from sieve.config import ProjectionConfig
from sieve.data.batches import every_batch
from sieve.distributed.trainer import make_trainer
from sieve.model.matrices import find_matrices
from sieve.projections import get_projection
from sieve.runtime.artifacts import fingerprint
from sieve.stages.cached import BANK
from sieve.stages.calibrate import Calibrated
from sieve.stages.run import Run
from sieve.streaming.streamed_backbone import StreamedBackbone


def fit(run: Run, calibrated: Calibrated) -> Bank:
    """Fit nested factors of every matrix."""
    settings = run.config.projection
    key = bank_key(settings, calibrated.key, run.backbone.storage_dtype, run.config.seed)
    if get_projection(settings.name).learned:
        [bank] = run.cached("fit", key, {"bank": BANK}, lambda: [_learn(run, calibrated, key)])
        return bank
    folder = run.cache.folder("bank", key)
    index = folder / INDEX  # written last
    run.cached("fit", key, {}, lambda: _solve(run, calibrated, folder, key), beside=[index])
    return replace(Bank.load(folder), structural=run.config.search.alleles == "structural")


def bank_key(
    settings: ProjectionConfig, moments_key: str, storage_dtype: torch.dtype, seed: int
) -> str:
    """Fingerprint of a bank. `Projection.version` stands for the code that computes it."""
    projection = get_projection(settings.name)
    factors = [settings.name, projection.version, settings.damping, settings.joint]
    stored = [settings.storage, settings.rank_multiple, settings.dtype, str(storage_dtype)]
    learning = [asdict(settings.learning), settings.learning_rate, seed]
    training = learning if projection.learned else None
    head = [settings.prune_head, *["embedding"] * settings.prune_embedding]
    head += ["narrow"] * settings.narrow
    return fingerprint("bank", FORMAT, moments_key, factors, stored, training, *head)


def _solve(run: Run, calibrated: Calibrated, folder: Path, key: str) -> tuple[()]:
    """Write the closed-form factors, one file per block; the ranks take blocks in turn."""
    settings, trainer, backbone = run.config.projection, run.trainer, run.backbone
    solver = Solver(
        backbone.skeleton,
        calibrated.moments(),
        projection=settings.name,
        storage=settings.storage,
        rank_multiple=settings.rank_multiple,
        dtype=_bank_dtype(run),
        damping=settings.damping,
        prune_head=settings.prune_head,
        joint=settings.joint,
        narrow=settings.narrow,
        device=backbone.device,
        matrix_list=backbone.matrices(settings.prune_head, settings.prune_embedding),
    )
    loaded = backbone.blocks.loaded if isinstance(backbone, StreamedBackbone) else None
    blocks = unfinished(solver, folder)
    trainer.strategy.barrier("fit")  # Every rank must list the blocks before one writes a file.
    fit_blocks(solver, folder, key, blocks, trainer.global_rank, trainer.world_size, loaded)
    trainer.strategy.barrier("fitted")
    if run.leads:
        finish(solver, folder)
    return ()


def _learn(run: Run, calibrated: Calibrated, key: str) -> Bank:
    """Learn the factors of one level by gradient; the ranks take matrices in turn."""
    settings, model = run.config.projection, run.backbone.model
    options = settings.learning
    sizing, matrices = Sizing(settings.storage, settings.rank_multiple), find_matrices(model)
    module = learned.LearningModule(
        model,
        {matrix.name: sizing.rank(matrix, options.level) or 0 for matrix in matrices},
        calibrated.moments(),
        tied=options.tied,
        init=options.init,
        learning_rate=settings.learning_rate,
        seed=run.config.seed,
    )
    batches = run.data.calibration_batches(options.batch_tokens, options.tokens, share=False)
    trainer = make_trainer(run.config.trainer | {"max_epochs": options.epochs})
    trainer.fit(module, every_batch(batches, run.config.seed))
    run.settle()
    assert module.factors is not None
    return learned.learned_bank(
        model,
        module.factors,
        matrices,
        storage=settings.storage,
        rank_multiple=settings.rank_multiple,
        dtype=_bank_dtype(run),
        key=key,
    )


def _bank_dtype(run: Run) -> torch.dtype:
    name = run.config.projection.dtype
    return run.backbone.storage_dtype if name == "auto" else getattr(torch, name)
