"""The stages of a run: operations, seconds and bytes, as `sieve/stages` goes about them."""

from sieve.costs.passes import (
    Rows,
    backward_flops,
    cache_bytes,
    forward_flops,
    held_bytes,
    logit_bytes,
    moment_flops,
    observed_bytes,
    passing_bytes,
)
from sieve.costs.plan import ITEMSIZE, KEPT, Lengths, Part, Plan, Stage
from sieve.costs.searching import search_evaluations
from sieve.costs.shape import FLOAT32
from sieve.costs.solving import fit_work, fit_workspace, pivot_flops
from sieve.model.matrices import Matrix, blocks_of
from sieve.projections import get_projection
from sieve.projections.moments import MomentBytes, moment_bytes

# Of activations, that a processor's heap holds beside them between batches with a way back: 0.42 to
# 0.68 of Llamas of 25M to 400M parameters (experiments/scaling.json).
HEAP = 0.5
LEAST = 0.1  # seconds of an export: tokenizer, code and card


def calibration_rows(plan: Plan, tokens: int) -> Rows:
    """Calibration rows of so many tokens, as far as there are."""
    lengths = plan.lengths
    most = lengths.rows["calibration"] * lengths.calibration
    count = min(tokens, most) / lengths.calibration
    return Rows(count, lengths.calibration, lengths.answer)


def moment_groups(plan: Plan) -> list[list[Matrix]]:
    """Matrices whose moments are in memory together, a pass for each group."""
    at_once, matrices = plan.config.calibration.layers_at_once, list(plan.shape.matrices)
    if at_once is None or plan.streams:
        return [matrices]
    blocks = list(blocks_of(matrices).values())
    starts = range(0, len(blocks), at_once)
    groups = [sum(blocks[start : start + at_once], []) for start in starts]
    head = [matrix for matrix in matrices if matrix.layer is None]
    return [*groups, head] if head else groups


def calibrate(plan: Plan) -> Stage:
    """Passes over the calibration rows, and backwards where gradients are asked for."""
    settings, shape = plan.config.calibration, plan.shape
    rows, groups = calibration_rows(plan, settings.tokens), moment_groups(plan)
    flops = forward_flops(shape, rows)
    if plan.backwards:
        flops += backward_flops(shape, rows, again=settings.checkpointing or plan.streams)
    sums = moment_flops(shape, rows, plan.needs, plan.by_gradient)
    flops *= len(groups)
    passes = len(groups) * plan.seconds(flops / len(groups), rows)
    sizes = [moment_bytes(group, plan.needs, plan.by_gradient) for group in groups]
    whole = moment_bytes(list(shape.matrices), plan.needs, plan.by_gradient)
    seconds = passes + plan.device.sums(sums) / plan.devices + plan.device.writes(whole.total)
    if plan.streams:
        parts, hidden = streamed_parts(plan, rows)
        remark = f"a block at a time, {hidden / 2**30:.2g} GiB of hidden states on disk"
        seconds += plan.device.writes(hidden + (1 + plan.backwards) * plan.stored_weights)
    else:
        remark = f"{len(groups)} passes" if len(groups) > 1 else ""
        parts = _calibration_parts(plan, max(sizes, key=lambda size: size.total))
    return Stage(
        "calibrate", flops + sums, seconds, parts,
        tokens=len(groups) * rows.tokens, written=whole.total,
        remark=remark,
    )  # fmt: skip


def streamed_parts(plan: Plan, rows: Rows) -> tuple[tuple[Part, ...], float]:
    """What is held with one block in memory, and bytes of hidden states that go to the disk."""
    shape, batch = plan.shape, plan.config.batch_tokens
    blocks = list(blocks_of(list(shape.matrices)).values())
    sums = max(moment_bytes(block, plan.needs, plan.by_gradient).total for block in blocks)
    layers = shape.layers + 2 if plan.backwards else 2  # And the gradients at one of them.
    hidden = layers * rows.tokens * shape.hidden * plan.itemsize
    in_memory = plan.config.calibration.hidden == "memory"
    kept = rows.count * batch / rows.tokens * rows.kept
    block = held_bytes(shape, batch, plan.itemsize, checkpointing=True)
    block -= batch * shape.layers * plan.itemsize * shape.hidden  # Those are the hidden states.
    activations = block if plan.backwards else passing_bytes(shape, batch, plan.itemsize)
    return (
        Part("weights of two blocks", 2 * shape.block_size * plan.itemsize),
        Part("embedding or head", shape.hidden * shape.vocabulary * plan.itemsize),
        Part("moments of a block", sums),
        Part("hidden states", hidden if in_memory else 0.0, host=True),
        Part("activations", activations + observed_bytes(shape, batch)),
        Part("logits", logit_bytes(shape, kept, 1, plan.itemsize, plan.backwards)),
    ), 0.0 if in_memory else hidden  # fmt: skip


def _calibration_parts(plan: Plan, moments: MomentBytes) -> tuple[Part, ...]:
    checkpointing = plan.config.calibration.checkpointing
    shape, tokens, itemsize = plan.shape, plan.config.batch_tokens, plan.itemsize
    activations = observed_bytes(shape, tokens) + (
        held_bytes(shape, tokens, itemsize, checkpointing)
        if plan.backwards
        else passing_bytes(shape, tokens, itemsize)
    )
    rows = tokens / plan.lengths.calibration
    logits = logit_bytes(shape, rows, plan.lengths.answer, itemsize, plan.backwards)
    return (
        plan.weights,
        Part("moments", moments.activations),
        Part("moments of gradients", moments.gradients),
        Part("activations", activations),
        Part(
            "freed, yet held", HEAP * activations if plan.device.local and plan.backwards else 0.0
        ),
        Part("logits", logits),
    )


def fit(plan: Plan) -> Stage:
    """The closed form of every matrix, or what `learned` learns."""
    if get_projection(plan.config.projection.name).learned:
        return _learn(plan)
    projection, shape = plan.config.projection, plan.shape
    work = fit_work(shape, projection.name, plan.needs, plan.by_gradient, projection.joint)
    device = plan.device
    return Stage(
        "fit", work.flops,
        device.solves(work.products, work.spectral) + device.writes(plan.banked),
        (_fitted_weights(plan), _workspace(plan, projection.name),
         Part("factors of a block", 2 * plan.banked / shape.layers, host=True)),  # And as written.
        written=plan.banked,
    )  # fmt: skip


def _fitted_weights(plan: Plan) -> Part:
    if not plan.streams:
        return plan.weights
    largest = max(matrix.size for matrix in plan.shape.matrices)
    return Part("weights of a matrix", largest * plan.itemsize)


def _workspace(plan: Plan, projection: str) -> Part:
    size = fit_workspace(plan.shape, projection, plan.needs, plan.by_gradient)
    return Part("solver workspace", size)


def _learn(plan: Plan) -> Stage:
    """Adam on one factor of every matrix, two for untied ones, in float32."""
    settings, shape = plan.config.projection.learning, plan.shape
    rows = calibration_rows(plan, settings.tokens)
    ranks = [(m, plan.sizing.rank(m, settings.level) or 0) for m in shape.matrices]
    batches = rows.batches(settings.batch_tokens)
    products = sum(
        6 * rows.tokens * r * (m.d_in + m.d_out) + 6 * batches * r * m.size for m, r in ranks
    )
    work = fit_work(shape, "output", plan.needs, plan.by_gradient, joint=False)
    flops = settings.epochs * (forward_flops(shape, rows) + products)
    free = sum(r * (m.d_in if settings.tied else m.d_in + m.d_out) for m, r in ranks)
    squares = sum(r * r for _, r in ranks)
    device = plan.device
    seconds = settings.epochs * (
        plan.seconds(forward_flops(shape, rows), rows) + device.sums(products) / plan.devices
    )
    tokens = settings.batch_tokens
    return Stage(
        "fit", flops + work.flops, seconds + device.solves(work.products, work.spectral),
        (plan.weights, Part("factors and Adam", FLOAT32 * (4.0 * free + squares)),
         Part("activations", passing_bytes(shape, tokens, plan.itemsize)
              + 3 * observed_bytes(shape, tokens)),
         _workspace(plan, "output"), plan.held_bank),
        tokens=settings.epochs * rows.tokens, written=plan.banked, remark="learnt",
    )  # fmt: skip


def scoring(
    plan: Plan, lengths: Lengths, examples: float, fraction: float, passes: int = 1
) -> tuple[float, float]:
    """Operations and seconds to score examples; passes: of answers that are written, those over
    what was written or is right, without writing."""
    rows = lengths.scoring(examples)
    flops, share = forward_flops(plan.shape, rows, fraction), _share(plan, fraction)
    weights = plan.weights.size * share
    seconds = plan.seconds(flops, rows, weights)
    if not lengths.written:
        return flops, seconds
    tokens = Rows(examples, lengths.written, lengths.written)
    room = Rows(rows.count, rows.length + lengths.written)
    steps = room.batches(plan.config.batch_tokens) * lengths.written
    written = forward_flops(plan.shape, tokens, fraction)
    slow = plan.device.passes(written, plan.compute, steps, plan.shape.layers, weights)
    return (1 + passes) * flops + written, (1 + passes) * seconds + slow / plan.devices


def _share(plan: Plan, fraction: float) -> float:
    """The fraction of all parameters that stays."""
    return 1 - (1 - fraction) * plan.shape.prunable / plan.shape.parameters


def scoring_parts(plan: Plan, lengths: Lengths) -> tuple[Part, ...]:
    """What a pass over scoring batches has in hand."""
    tokens, itemsize = plan.config.batch_tokens, plan.itemsize
    rows = tokens / (lengths.scored + lengths.written)
    activations = passing_bytes(plan.shape, tokens, itemsize)
    if lengths.written:
        activations += cache_bytes(plan.shape, tokens, itemsize)
    return (
        Part("activations", activations),
        Part("logits", logit_bytes(plan.shape, rows, lengths.answer, itemsize, back=False)),
    )


def search(plan: Plan) -> Stage:
    """Genomes scored on the selection rows, by factors of every rank in memory."""
    rows, lengths = plan.lengths.rows["selection"], plan.lengths
    found = search_evaluations(plan.shape, plan.sizing, plan.config.search, rows, plan.sweeper)
    flops, seconds = scoring(plan, lengths, found.rows, KEPT, passes=2)
    _, most = scoring(plan, lengths, found.most_rows, 1.0, passes=2)
    return Stage(
        "search", flops, seconds / plan.workers,
        (plan.weights, plan.factors(dealt=True), plan.held_bank, *scoring_parts(plan, lengths)),
        tokens=lengths.scoring(found.rows).tokens, rows=found.rows,
        evaluations=(found.expected, found.most), most_seconds=most / plan.workers,
        remark=found.words,
    )  # fmt: skip


def evaluate(plan: Plan) -> Stage:
    """Dense and pruned model on the test rows, of other tasks too, and both timed."""
    flops = seconds = tokens = rows = 0.0
    for lengths in (plan.lengths, *plan.others):
        examples = lengths.rows["test"]
        for fraction in (1.0, KEPT):
            more, longer = scoring(plan, lengths, examples, fraction)
            flops, seconds = flops + more, seconds + longer
            tokens, rows = tokens + lengths.scoring(examples).tokens, rows + examples
    timed = _timed(plan)
    repeats = 1 + (plan.config.speed.repeats + 1) * plan.times_speed
    pivots = repeats * pivot_flops(plan.shape.matrices, plan.sizing, KEPT)
    return Stage(
        "evaluate", flops + timed[0] + pivots, seconds + timed[1] + pivots / plan.device.host,
        (plan.weights, plan.chosen, plan.held_bank,
         *scoring_parts(plan, plan.lengths)),
        tokens=tokens, rows=rows,
    )  # fmt: skip


def curve(plan: Plan) -> Stage | None:
    """Other sizes on the test rows, and a model without its bottlenecks; None where unasked."""
    config = plan.config
    mapped = [1.0, 1.0] if config.search.bottlenecks else []
    sizes = [*config.curve, *mapped]
    if not sizes:
        return None
    examples = plan.lengths.rows["test"]
    found = [scoring(plan, plan.lengths, examples, fraction) for fraction in (1.0, *sizes)]
    return Stage(
        "curve", sum(flops for flops, _ in found), sum(seconds for _, seconds in found),
        (plan.weights, plan.factors(), plan.held_bank, *scoring_parts(plan, plan.lengths)),
        tokens=len(found) * plan.lengths.scoring(examples).tokens, rows=len(found) * examples,
    )  # fmt: skip


def _timed(plan: Plan) -> tuple[float, float]:
    """Prefill and decode of both models, in turn, by one device."""
    speed = plan.config.speed
    if not plan.times_speed:
        return 0.0, 0.0
    flops = seconds = 0.0
    for fraction in (1.0, KEPT):
        weights = plan.weights.size * _share(plan, fraction)
        for length, steps in ((speed.prompt_tokens, 2), (1, speed.new_tokens)):
            rows = Rows(speed.batch_size, length, padding=1.0)
            one = forward_flops(plan.shape, rows, fraction)
            flops += steps * one
            seconds += steps * plan.device.passes(one, plan.compute, 1, plan.shape.layers, weights)
    return (speed.repeats + 1) * flops, (speed.repeats + 1) * seconds


def quantize(plan: Plan) -> Stage | None:
    """The test rows once more in fewer bits; None where it is not asked for."""
    if plan.config.quantization.method == "none":
        return None
    rows = plan.lengths.rows["test"]
    flops, seconds = scoring(plan, plan.lengths, rows, KEPT)
    factors = plan.chosen
    parts = (plan.weights, factors, plan.held_bank, *scoring_parts(plan, plan.lengths))
    tokens = plan.lengths.scoring(rows).tokens
    return Stage(
        "quantize", flops, seconds, parts, tokens=tokens, rows=rows, remark="within evaluate"
    )


def export(plan: Plan) -> Stage | None:
    """The pruned model, written; None where it is not asked for."""
    config, stored = plan.config, ITEMSIZE[plan.bank_dtype]
    form = config.export.format
    if form == "none":
        return None
    kept = 1.0 if form == "dense" else _share(plan, KEPT)
    size = plan.shape.parameters * kept * (FLOAT32 if form.startswith("onnx") else stored)
    if config.quantization.method != "none":
        bits = {"int8": 1, "int4": 0.5}[config.quantization.method]
        size -= KEPT * plan.shape.prunable * (stored - bits)
    pivots = pivot_flops(plan.shape.matrices, plan.sizing, KEPT)
    return Stage(
        "export", pivots, LEAST + plan.device.writes(size) + pivots / plan.device.host,
        (plan.weights, plan.chosen, plan.held_bank), written=size,
    )  # fmt: skip
