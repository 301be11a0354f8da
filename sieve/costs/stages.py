"""The stages that every run has: operations, seconds and bytes."""

from dataclasses import replace

from sieve.calibration.schedule import groups_of
from sieve.costs.passes import Rows, activation_bytes, logit_bytes, moment_flops
from sieve.costs.plan import ITEMSIZE, KEPT, Part, Plan, Stage, Work
from sieve.costs.searching import search_evaluations
from sieve.costs.solving import fit_flops, solve_bytes
from sieve.model.matrices import Matrix, siblings
from sieve.projections.moments import FLOAT32, Side, moment_bytes, plan_streams

# Memory that the C library keeps after backward passes on a processor, over their activations:
# 0.42 to 0.68 for Llamas of 25M to 400M parameters (experiments/scaling.json).
UNRELEASED = 0.5
QUANTIZED_BYTES = {"int8": 1.0, "int4": 0.5}


def calibrate(plan: Plan) -> Stage:
    """Forward passes over the calibration rows, and backward passes if gradients are needed."""
    settings, shape = plan.config.calibration, plan.shape
    backward = plan.needs.gradient or plan.by_gradient
    streams, tokens = settings.strategy == "stream", plan.config.batch_tokens
    rows = plan.calibration_rows(settings.tokens)
    groups = groups_of(list(shape.matrices), 1 if streams else settings.layers_at_once)
    moments = [moment_bytes(group, plan.needs, plan.by_gradient) for group in groups]
    largest = max(moments, key=sum)
    passes = 1 if streams else len(groups)
    again = backward and (settings.checkpointing or streams)
    work = plan.run(rows, backward=int(backward), again=again) * passes
    work += plan.products(moment_flops(shape, rows, plan.needs, plan.by_gradient))
    work += plan.write(float(sum(map(sum, moments))))
    parts, remark = [plan.weights], f"{passes} passes" if passes > 1 else ""
    saved = backward * (1 if again else shape.layers)
    activations = activation_bytes(shape, tokens, plan.itemsize, saved)
    activations += 2 * FLOAT32 * tokens * shape.widest  # The copies that a hook makes.
    if streams:
        # Hidden states before and after a block; for gradients, of all blocks.
        states = shape.layers + 2 if backward else 2
        hidden = states * rows.tokens * shape.hidden * plan.itemsize
        in_memory = settings.hidden == "memory"
        parts = [
            Part("weights of two blocks", 2 * plan.block_bytes),
            Part("embedding or head", plan.embedding_bytes),
            Part("hidden states", hidden * in_memory, host=True),
        ]
        on_disk = hidden * (not in_memory)
        read = (1 + backward) * shape.parameters * ITEMSIZE[plan.stored]
        work += replace(plan.write(on_disk + read), written=0.0)
        remark = f"one block at a time, {on_disk / 2**30:.2g} GiB of hidden states on disk"
    elif again:
        activations += tokens * shape.layers * shape.hidden * plan.itemsize
    positions = tokens / plan.lengths.calibration * plan.lengths.answer
    parts += [
        Part("moments", largest[0]),
        Part("moments of gradients", largest[1]),
        Part("activations", activations),
        Part("unreleased", UNRELEASED * activations * (plan.device.on_cpu and backward)),
        Part("logits", logit_bytes(shape, positions, plan.itemsize, backward)),
    ]
    return Stage("calibrate", work, tuple(parts), remark=remark)


def fit(plan: Plan) -> Stage:
    """The closed form of every matrix."""
    work, workspace = solve_all(plan)
    weights = plan.weights
    if plan.config.calibration.strategy == "stream":
        largest = max(matrix.size for matrix in plan.shape.matrices)
        weights = Part("weights of a matrix", largest * plan.itemsize)
    # The factors of a block are in memory, and once more as they are written.
    block = Part("factors of a block", 2 * plan.bank.size / plan.shape.layers, host=True)
    return Stage("fit", work + plan.write(plan.bank.size), (weights, workspace, block))


def solve_all(plan: Plan) -> tuple[Work, Part]:
    """Closed forms of all matrices and groups of siblings, and what one of them holds."""
    projection, matrices = plan.config.projection, list(plan.shape.matrices)
    streams = plan_streams(matrices, plan.needs, shared=not plan.by_gradient)
    solved: list[tuple[Matrix, tuple[Side, int]]] = [
        (matrix, streams.get(matrix.name) or streams[matrix.source]) for matrix in matrices
    ]
    workspace = max(solve_bytes(projection.name, matrix, width) for matrix, (_, width) in solved)
    if projection.joint:
        solved += [(group, ("input", group.d_in)) for group in siblings(plan.shape.blocks)]
    flops = [
        fit_flops(projection.name, m.d_out, m.d_in, side, plan.sizing.top_rank(m))
        for m, (side, _) in solved
    ]
    return plan.solves(flops), Part("solver workspace", workspace)


def search(plan: Plan) -> Stage:
    """Genomes scored on the selection rows, with factors of every rank in memory."""
    rows = plan.lengths.rows["selection"]
    forecast = search_evaluations(plan.shape, plan.sizing, plan.config.search, rows, plan.sweeper)
    work = plan.score(forecast.rows)
    return Stage(
        "search",
        replace(work, seconds=work.seconds / plan.workers),
        (plan.weights, plan.factors(sharded=True), plan.bank, *plan.scoring_parts),
        evaluations=(forecast.expected, forecast.most),
        most_seconds=plan.score(forecast.most_rows, kept=1.0).seconds / plan.workers,
        remark=forecast.remark,
    )


def curve(plan: Plan) -> Stage | None:
    """Other sizes on the test rows, and a model without its bottlenecks; None if not set."""
    sizes = [*plan.config.curve, *[1.0, 1.0] * plan.config.search.bottlenecks]
    if not sizes:
        return None
    work = sum((plan.score(plan.lengths.rows["test"], kept) for kept in (1.0, *sizes)), Work())
    return Stage("curve", work, (plan.weights, plan.factors(), plan.bank, *plan.scoring_parts))


def quantize(plan: Plan) -> Stage | None:
    """The quantized model on the test rows; None if not set."""
    if plan.config.quantization.method == "none":
        return None
    work, parts = plan.score(plan.lengths.rows["test"]), (*plan.pruned, *plan.scoring_parts)
    return Stage("quantize", work, parts, remark="within evaluate")


def evaluate(plan: Plan) -> Stage:
    """Both models on the test rows, also of other tasks, and the speed of both."""
    speed, work = plan.config.speed, Work()
    repeats = speed.repeats + 1 if speed.enabled and plan.shards == 1 else 0
    for kept in (1.0, KEPT):
        for lengths in (plan.lengths, *plan.others):
            work += plan.score(lengths.rows["test"], kept, lengths)
        for length, steps in ((speed.prompt_tokens, 2), (1, speed.new_tokens)):
            one = plan.run(Rows(speed.batch_size, length, padding=1.0), kept)
            work += Work(one.flops, one.seconds * plan.devices) * (steps * repeats)
    work += plan.pivots(1 + repeats)
    return Stage("evaluate", work, (*plan.pruned, *plan.scoring_parts))


def export(plan: Plan) -> Stage | None:
    """The pruned model, written; None if not set."""
    form, method = plan.config.export.format, plan.config.quantization.method
    if form == "none":
        return None
    stored = FLOAT32 if form.startswith("onnx") else ITEMSIZE[plan.bank_dtype]
    kept = 1.0 if form == "dense" else plan.kept_parameters(KEPT)
    size = plan.shape.parameters * kept * stored
    if method != "none":
        size -= KEPT * plan.shape.prunable * (stored - QUANTIZED_BYTES[method])
    return Stage("export", plan.pivots() + plan.write(size), plan.pruned)
