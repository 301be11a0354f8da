"""What follows a search where it is asked for: factors solved again, tuned, or trained."""

from sieve.costs.passes import (
    Rows,
    backward_flops,
    forward_flops,
    held_bytes,
    logit_bytes,
    passing_bytes,
)
from sieve.costs.plan import KEPT, Part, Plan, Stage
from sieve.costs.shape import FLOAT32
from sieve.costs.solving import Work, refit_work, refit_workspace
from sieve.costs.stages import calibration_rows, scoring
from sieve.model.matrices import Matrix

BLOCKS = 3.7  # passes through all blocks by a refit: dense, pruned, and up to each input
SWITCHES = 4  # copies of the factors at a time, two of them to compare divergences
ADAM = 4 * FLOAT32  # a parameter in float32, its gradient and two moments
PARTS = 8  # batches of a refit at least


def refit(plan: Plan) -> Stage | None:
    """Genomes solved again on what the pruned model reads, or tuned; None where neither is."""
    settings = plan.config.projection
    if not (settings.refit or settings.tune_steps):
        return None
    tokens = min(settings.refit_tokens, plan.config.calibration.tokens)
    rows, tries = calibration_rows(plan, tokens), settings.refit_tries
    examples = plan.lengths.rows["selection"]
    one, one_seconds = scoring(plan, plan.lengths, examples, KEPT, passes=2)
    flops, seconds = (tries + 2) * one, (tries + 2) * one_seconds
    if settings.refit:
        more, longer = _solved_again(plan, rows)
        flops, seconds = flops + tries * more, seconds + tries * longer
        if plan.by_gradient:
            weighed = forward_flops(plan.shape, rows) + backward_flops(plan.shape, rows)
            flops, seconds = flops + weighed, seconds + plan.seconds(weighed, rows)
    if settings.tune_steps:
        more, longer = _tuned(plan, rows)
        flops, seconds = flops + tries * more, seconds + tries * longer
    return Stage(
        "refit", flops, seconds, _refit_parts(plan, rows),
        tokens=tries * rows.tokens, rows=(tries + 2) * examples, evaluations=(tries, tries),
    )  # fmt: skip


def _solved_again(plan: Plan, rows: Rows) -> tuple[float, float]:
    """One genome: passes block by block, sums of pairs, and solves."""
    shape, device = plan.shape, plan.device
    passes = (1 + BLOCKS + 3 / 4) * forward_flops(shape, rows)  # 3/4: divergences, of a quarter
    matrices = [m for m in shape.blocks if not m.expert]
    summed = matrices if plan.by_gradient else list({m.source: m for m in matrices}.values())
    sums = sum(2.25 * 2 * rows.tokens * m.d_in**2 for m in summed)
    work = Work()
    for matrix in matrices:
        rank = plan.sizing.rank(matrix, KEPT) or 0
        work += refit_work(matrix, plan.config.projection.name, rank)
    seconds = plan.seconds(passes, rows) + device.sums(sums)
    return passes + sums + work.flops, seconds + device.solves(work.products, work.spectral)


def _tuned(plan: Plan, rows: Rows) -> tuple[float, float]:
    """Adam on all factors of a genome, a batch a step."""
    steps = plan.config.projection.tune_steps
    batch = min(plan.config.batch_tokens, rows.tokens / PARTS)
    one = Rows(steps * batch / rows.length, rows.length, rows.kept)
    flops = forward_flops(plan.shape, one) + forward_flops(plan.shape, one, KEPT)
    flops += backward_flops(plan.shape, one, KEPT, trained=True)
    device = plan.device
    weights = plan.weights.size
    return flops, device.passes(flops, plan.compute, 3 * steps, plan.shape.layers, weights)


def _refit_parts(plan: Plan, rows: Rows) -> tuple[Part, ...]:
    settings, shape = plan.config.projection, plan.shape
    sources: dict[int | None, dict[str, Matrix]] = {}
    for matrix in shape.blocks:
        sources.setdefault(matrix.layer, {})[matrix.source] = matrix
    inputs = max(sum(m.d_in for m in block.values()) for block in sources.values())
    states = rows.tokens * (2 * plan.itemsize * shape.hidden + FLOAT32 * inputs)
    batch = min(plan.config.batch_tokens, max(rows.tokens / PARTS, 1))
    back = settings.tune_steps or plan.by_gradient
    held = held_bytes if back else passing_bytes
    parts = [
        plan.weights,
        plan.factors(SWITCHES if settings.refit else 2, share=KEPT),
        plan.held_bank,
        Part("hidden states", states if settings.refit else 0.0),
        Part("activations", held(shape, batch, plan.itemsize)),
    ]
    if settings.refit:
        group = max(refit_workspace(matrix, settings.name) for matrix in shape.blocks)
        parts.append(Part("solver workspace", group))
    if settings.tune_steps:
        parts.append(Part("factors and Adam", ADAM * KEPT * shape.prunable))
    return tuple(parts)


def recover(plan: Plan) -> Stage | None:
    """LoRA or the factors trained, with looks at the selection rows; None where it is not asked."""
    settings, shape = plan.config.recovery, plan.shape
    if settings.method == "none":
        return None
    steps = settings.steps * settings.accumulate
    length = plan.lengths.calibration
    rows = Rows(max(1.0, settings.batch_tokens / length), length, plan.lengths.answer)
    full = settings.method == "full"
    flops = forward_flops(shape, rows, KEPT) + backward_flops(shape, rows, KEPT, trained=full)
    if settings.loss != "task":
        flops += forward_flops(shape, rows)
    looks = settings.steps / settings.check_every + 1
    look, look_seconds = scoring(plan, plan.lengths, plan.lengths.rows["selection"], KEPT)
    weights = plan.weights.size
    seconds = steps * plan.device.passes(flops, plan.compute, 3, shape.layers, weights)
    trained, pairs = _trained(plan)
    tokens = settings.batch_tokens
    parts = (
        plan.weights, plan.factors(share=KEPT), plan.held_bank,
        Part("factors in float32", FLOAT32 * pairs),
        Part("trained and Adam", ADAM * trained),
        Part("activations", held_bytes(shape, tokens, plan.itemsize)),
        Part("logits", logit_bytes(shape, rows.count, rows.kept, plan.itemsize, back=True)),
    )  # fmt: skip
    return Stage(
        "recover", steps * flops + looks * look, seconds + looks * look_seconds, parts,
        tokens=steps * rows.tokens * plan.devices,
        rows=looks * plan.lengths.rows["selection"], remark=f"at most {settings.steps:,} steps",
    )  # fmt: skip


def _trained(plan: Plan) -> tuple[float, float]:
    """Numbers that are trained, and those of all factors."""
    settings = plan.config.recovery
    ranks = [(m, plan.sizing.rank(m, KEPT) or 0) for m in plan.shape.matrices]
    pairs = sum(r * (m.d_out + m.d_in) for m, r in ranks)
    if settings.method == "full":
        return pairs, pairs
    thin = sum(
        settings.rank * ((m.d_in + r) * (settings.factors != "out"))
        + settings.rank * ((m.d_out + r) * (settings.factors != "in"))
        for m, r in ranks
    )
    return thin, pairs
