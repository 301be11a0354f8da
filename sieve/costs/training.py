"""The stages that train factors, or solve them again on what the pruned model reads."""

import math
from dataclasses import replace

from sieve.bank.solver import FLOAT64
from sieve.calibration.sums import summed_entries
from sieve.costs.closed_forms import by_lapack, solve_seconds
from sieve.costs.plan import ITEMSIZE, Parts, Plan, Stage
from sieve.costs.shape import Rows
from sieve.costs.solving import refit_flops, solve_bytes
from sieve.costs.stages import solve_all, sweep_weights
from sieve.projections.moments import FLOAT32
from sieve.recovery.hidden import BLOCKS
from sieve.recovery.recovery import HELD_OUT
from sieve.recovery.teacher import STATE_BYTES

# Passes of a refit through all blocks. The dense model computes hidden states, and the answers to
# the quarter of the rows that is held out. The pruned model computes the arguments of the blocks,
# the inputs of the matrices and hidden states, and these answers with the factors before and after.
DENSE_PASSES, PRUNED_PASSES = 1 + 1 / 4, 3 + 2 / 4
# Of the averages of one half of the batches and their Cholesky factor in float64, beyond what
# `solve_bytes` counts; of the sums of the other half in float32.
SOLVED_BYTES, WAITING_BYTES = 0.5 * 8, 2 * FLOAT32
SWITCHES = 4  # copies of the factors at a time, two of them to compare divergences
ADAM = 4 * FLOAT32  # bytes of a parameter in float32, its gradient and two moments
MIN_BATCHES = 8  # of a refit
FLOAT16 = 2  # bytes of a number of a hidden state


def train(
    plan: Plan, rows: Rows, batch_tokens: float, trained: float, taught: Rows | None
) -> tuple[float, Parts]:
    """Seconds of Adam on factors, and its memory beside the model.

    Args:
        rows: all rows of all steps.
        batch_tokens: tokens of one batch on one device.
        trained: number of parameters that Adam updates.
        taught: the rows as the dense model reads them; None: it answers none.
    """
    batches = rows.tokens / batch_tokens
    seconds = plan.run(rows, plan.typical, batches, backward=2)
    seconds += plan.run(taught, 1.0, taught.tokens / batch_tokens) if taught else 0.0
    parts = plan.activations(batch_tokens, rows, backward=True)
    return seconds, parts | {"trained and Adam": (ADAM + FLOAT32) * trained}  # and a running mean


def learn(plan: Plan) -> Stage:
    """The fit of projection=learned: Adam on one factor of every matrix, or two if untied."""
    settings, shape = plan.config.projection.learning, plan.shape
    rows, tokens = plan.calibration_rows(settings.tokens, shares=False), settings.batch_tokens
    rows = replace(rows, count=min(rows.count, settings.tokens / rows.length))
    ranks = plan.ranks(settings.level)
    widths = sum(rank * (m.d_in + m.d_out) for m, rank in ranks)
    updates = sum(rank * m.size for m, rank in ranks) / tokens
    epoch = plan.run(rows) + plan.products(6 * rows.tokens * (widths + updates))
    solves, parts = solve_all(plan)
    trained = sum(rank * m.d_in for m, rank in ranks) if settings.tied else widths
    parts |= plan.dense | plan.activations(tokens, rows) | {"trained and Adam": ADAM * trained}
    parts["activations"] += 6 * FLOAT32 * tokens * shape.widest
    seconds = epoch * settings.epochs + solves + plan.write(plan.bank_bytes)
    return Stage("fit", seconds, parts, plan.bank_bytes, remark="learned")


def refit(plan: Plan) -> Stage | None:
    """Refit genomes on the pruned model's inputs, or tune them; None if neither is set."""
    settings, shape, calibration = plan.config.projection, plan.shape, plan.config.calibration
    if not (settings.refit or settings.tune_steps):
        return None
    asked = math.inf if calibration.rows else calibration.tokens
    rows = plan.calibration_rows(min(settings.refit_tokens, asked), most=calibration.rows)
    batch = min(plan.batch_tokens, rows.tokens / MIN_BATCHES)
    weighs, streams = settings.refit and plan.by_gradient, plan.streams
    once, parts = 0.0, plan.activations(batch, rows, plan.by_gradient, streams)
    if settings.refit:
        once = plan.run(rows) * DENSE_PASSES + plan.run(rows, plan.typical) * PRUNED_PASSES
        ranks = [
            (m, r) for m, r in plan.ranks(plan.typical) if m.layer is not None and not m.expert
        ]
        lapack = by_lapack(plan)
        flops = [refit_flops(settings.name, m.d_out, m.d_in, r, lapack) for m, r in ranks]
        once += solve_seconds(plan, flops)
        once += plan.sums(paired_flops(plan, rows))
        parts |= refit_bytes(plan, rows)
    if settings.tune_steps:
        steps = replace(rows, count=settings.tune_steps * batch / rows.length)
        seconds, trained = train(plan, steps, batch, plan.kept * shape.prunable, steps)
        once, parts = once + seconds, parts | trained
    switches = (SWITCHES if settings.refit else 2) * plan.kept * plan.factor_bytes
    parts |= plan.factor_parts(switches)
    scored = plan.score(plan.lengths.rows["selection"]) * (settings.refit_tries + 1)
    if weighs:  # The tokens, once for all genomes.
        scored += plan.run(rows, backward=1, again=streams)
    if streams:
        tries, held_out = settings.refit_tries, math.ceil(rows.tokens / batch / 4)
        reads = tries * (2 + 3 * held_out) + 2 * weighs
        states = weighs * (shape.layers + 2) * rows.tokens * shape.hidden * plan.itemsize
        on_disk = states * (calibration.hidden != "memory")
        scored += plan.write(reads * shape.parameters * ITEMSIZE[plan.stored] + on_disk)
        weighing = plan.activations(batch, rows, weighs, again=True) | sweep_weights(plan)
        parts = max(parts, weighing, key=lambda p: Stage("", 0.0, p).peak(plan.device))
        parts = parts | plan.on_host("hidden states of all blocks", states - on_disk)
    remark = f"at most {settings.refit_tries} genomes"
    return Stage("refit", once * settings.refit_tries + scored, plan.dense | parts, remark=remark)


def refit_bytes(plan: Plan, rows: Rows) -> Parts:
    """The memory of a refit's solver and hidden states; some of it waits on a streamed run's host.

    The two models' hidden states are held for all tokens, and the inputs of a block's matrices.
    """
    shape, name = plan.shape, plan.config.projection.name
    widest = max(shape.blocks, key=lambda matrix: matrix.d_in)
    solved = solve_bytes(name, widest, widest.d_in) + SOLVED_BYTES * widest.d_in**2
    if name.endswith("affine"):
        solved += FLOAT64 * widest.d_in**2  # of the centered inputs
    if plan.config.projection.refit_target == "residual":
        solved += FLOAT64 * widest.size * (1 + name.endswith("affine"))  # of the losses
    hidden = rows.tokens * 2 * plan.itemsize * shape.hidden
    inputs = sum({m.source: m.d_in for m in shape.blocks if not m.expert}.values())
    waiting = {
        "inputs of matrices": rows.tokens * FLOAT32 * inputs / shape.layers,
        "sums of other tokens": WAITING_BYTES * widest.d_in**2,
    }
    if plan.config.projection.refit_target == "residual":
        hidden += rows.tokens * FLOAT32 * shape.hidden  # what the stream has lost
    if plan.streams:
        waiting = {k: v for one in waiting.items() for k, v in plan.on_host(*one).items()}
    return {"hidden states": hidden, "solver workspace": solved} | waiting


def paired_flops(plan: Plan, rows: Rows) -> float:
    """Operations of the sums of x̃ x̃ᵀ, (x − x̃) x̃ᵀ and e x̃ᵀ over all tokens.

    Matrices that read the same input share its sums unless each weights the tokens in its own way.
    """
    flops = 0.0
    residual = plan.config.projection.refit_target == "residual"
    for matrix in (m for m in plan.shape.blocks if not m.expert):
        if plan.by_gradient or matrix.name == matrix.source:
            flops += 2 * rows.tokens * (summed_entries(matrix.d_in) + matrix.d_in**2)
        if residual and matrix.kind in ("o", "down"):
            flops += 2 * rows.tokens * matrix.size
    return flops


def recover(plan: Plan) -> Stage | None:
    """Train LoRA or the factors, at one size or at several; None if recovery is off."""
    settings, lengths = plan.config.recovery, plan.lengths
    if settings.method == "none":
        return None
    tries = 0 if plan.config.search.recover is False else settings.tries
    steps = settings.steps + tries * settings.short_steps
    batch = max(settings.batch_tokens, lengths.calibration)
    count = steps * settings.accumulate * plan.devices * batch / lengths.calibration
    rows = Rows(count, lengths.calibration, lengths.answer, shared=lengths.prefix)
    factors = trained = sum(rank * (m.d_out + m.d_in) for m, rank in plan.ranks(plan.kept))
    if settings.method == "lora":
        trained = settings.rank * sum(
            m.d_out + m.d_in + 2 * rank for m, rank in plan.ranks(plan.kept)
        )
    taught, long, memory = None, plan.long or lengths, 0.0
    if settings.loss != "task" or settings.hidden:  # The dense model answers each row once.
        once = min(count, lengths.rows["calibration"], settings.tokens / lengths.calibration)
        if settings.hidden:  # Beyond the room for its hidden states, it computes rows again.
            states = FLOAT16 * BLOCKS * plan.shape.hidden * lengths.calibration * once
            memory = min(states, STATE_BYTES)
            once = max(once, count * (1 - memory / states))
        taught = replace(rows, count=once, length=long.calibration, shared=long.prefix)
    seconds, parts = train(plan, rows, batch, trained, taught)
    remark = f"at most {steps:,} steps"
    if settings.minutes is not None:
        seconds, remark = 60 * settings.minutes, f"{settings.minutes:g} minutes of training"
    held_out = min(HELD_OUT * lengths.rows["calibration"], lengths.rows["selection"])
    checks = steps / settings.check_every + 1 + tries
    seconds += plan.score(held_out) * checks + plan.score(lengths.rows["selection"]) * 2
    parts |= {"factors": plan.kept * plan.factor_bytes, "factors in float32": FLOAT32 * factors}
    parts |= plan.on_host("hidden states", memory)
    return Stage("recover", seconds, plan.dense | parts, remark=remark)
