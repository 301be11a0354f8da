"""The stages that train factors, or solve them again on what the pruned model reads."""

from sieve.costs.passes import Rows, activation_bytes, logit_bytes
from sieve.costs.plan import KEPT, Part, Plan, Stage, Work
from sieve.costs.solving import refit_flops, solve_bytes
from sieve.costs.stages import solve_all
from sieve.model.matrices import blocks_of
from sieve.projections.moments import FLOAT32

# Passes through all blocks by a refit: dense, pruned, up to each input, and a quarter of the rows
# three times for divergences.
REFIT_PASSES = 4.7 + 3 / 4
# Products of inputs that a refit sums: two on the rows that it fits, three on the held-out quarter.
REFIT_SUMS = 2.25
REFIT_BYTES = 5 * (FLOAT32 + 8)  # of these sums, in float32 and averaged in float64
SWITCHES = 4  # copies of the factors at a time, two of them to compare divergences
ADAM = 4 * FLOAT32  # bytes of a parameter in float32, its gradient and two moments
MIN_BATCHES = 8  # of a refit


def learn(plan: Plan) -> Stage:
    """The fit of projection=learned: Adam on one factor of every matrix, or two if untied."""
    settings, shape = plan.config.projection.learning, plan.shape
    rows, tokens = plan.calibration_rows(settings.tokens), settings.batch_tokens
    ranks = [(m, plan.sizing.rank(m, settings.level) or 0) for m in shape.matrices]
    products = sum(
        6 * r * (rows.tokens * (m.d_in + m.d_out) + rows.tokens / tokens * m.size) for m, r in ranks
    )
    trained = sum(r * (m.d_in if settings.tied else m.d_in + m.d_out) for m, r in ranks)
    solves, workspace = solve_all(plan)
    work = (plan.run(rows) + plan.products(products)) * settings.epochs
    hooks = 6 * FLOAT32 * tokens * shape.widest
    activations = Part("activations", hooks + activation_bytes(shape, tokens, plan.itemsize))
    adam = Part("factors and Adam", ADAM * trained)
    parts = (plan.weights, adam, activations, workspace, plan.bank)
    return Stage("fit", work + solves + plan.write(plan.bank.size), parts, remark="learned")


def refit(plan: Plan) -> Stage | None:
    """Genomes solved again on what the pruned model reads, or tuned; None if neither is set."""
    settings, shape = plan.config.projection, plan.shape
    if not (settings.refit or settings.tune_steps):
        return None
    rows = plan.calibration_rows(min(settings.refit_tokens, plan.config.calibration.tokens))
    one, tries = Work(), settings.refit_tries
    work = plan.score(plan.lengths.rows["selection"], again=2) * (tries + 2)
    parts = [plan.weights, plan.factors((SWITCHES if settings.refit else 2) * KEPT), plan.bank]
    if settings.refit:
        matrices = [matrix for matrix in shape.blocks if not matrix.expert]
        sources = {m.source: m for m in matrices}.values()
        summed = sum(m.d_in**2 for m in (matrices if plan.by_gradient else sources))
        ranks = [(m, plan.sizing.rank(m, KEPT) or 0) for m in matrices]
        one += plan.run(rows) * REFIT_PASSES
        one += plan.products(REFIT_SUMS * 2 * rows.tokens * summed)
        one += plan.solves([refit_flops(settings.name, m.d_out, m.d_in, r) for m, r in ranks])
        if plan.by_gradient:
            work += plan.run(rows, backward=True)
        inputs = [{m.source: m.d_in for m in b} for b in blocks_of(matrices).values()]
        widths = 2 * plan.itemsize * shape.hidden + FLOAT32 * max(sum(i.values()) for i in inputs)
        workspace = max(
            solve_bytes(settings.name, m, m.d_in) + REFIT_BYTES * m.d_in**2 for m in matrices
        )
        parts += [Part("hidden states", rows.tokens * widths), Part("solver workspace", workspace)]
    batch = min(plan.config.batch_tokens, rows.tokens / MIN_BATCHES)
    if settings.tune_steps:
        steps = Rows(settings.tune_steps * batch / rows.length, rows.length, rows.logits)
        one += _trained(plan, steps, settings.tune_steps, full=True, teacher=True)
        parts.append(Part("factors and Adam", ADAM * KEPT * shape.prunable))
    saved = shape.layers * bool(settings.tune_steps or plan.by_gradient)
    parts.append(Part("activations", activation_bytes(shape, batch, plan.itemsize, saved)))
    return Stage("refit", work + one * tries, tuple(parts), evaluations=(tries, tries))


def _trained(plan: Plan, rows: Rows, steps: float, full: bool, teacher: bool) -> Work:
    """Training steps on a pruned model; `teacher`: the dense model answers the rows too."""
    work = plan.run(rows, KEPT, steps, backward=True, trained=full)
    return work + plan.run(rows, 1.0, steps) * teacher


def recover(plan: Plan) -> Stage | None:
    """LoRA or the factors trained, checked on the selection rows; None if not set."""
    settings, shape, tokens = plan.config.recovery, plan.shape, plan.config.recovery.batch_tokens
    if settings.method == "none":
        return None
    full, length = settings.method == "full", plan.lengths.calibration
    batch, steps = max(1.0, tokens / length), settings.steps * settings.accumulate
    rows = Rows(steps * batch * plan.devices, length, plan.lengths.answer)
    checks = settings.steps / settings.check_every + 1
    work = plan.score(plan.lengths.rows["selection"]) * checks
    work += _trained(plan, rows, steps * plan.devices, full, teacher=settings.loss != "task")
    ranks = [(m, plan.sizing.rank(m, KEPT) or 0) for m in shape.matrices]
    factors = trained = sum(r * (m.d_out + m.d_in) for m, r in ranks)
    if not full:
        added = {"in": (1, 0), "out": (0, 1), "both": (1, 1)}[settings.factors]
        trained = settings.rank * sum(
            added[0] * (m.d_in + r) + added[1] * (m.d_out + r) for m, r in ranks
        )
    logits = logit_bytes(shape, batch * plan.lengths.answer, plan.itemsize, backward=True)
    parts = (
        plan.weights,
        plan.factors(KEPT),
        plan.bank,
        Part("factors in float32", FLOAT32 * factors),
        Part("trained and Adam", ADAM * trained),
        Part("activations", activation_bytes(shape, tokens, plan.itemsize, shape.layers)),
        Part("logits", logits),
    )
    return Stage("recover", work, parts, remark=f"at most {settings.steps:,} steps")
