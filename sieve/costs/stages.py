"""The stages that every run has: seconds and bytes."""

import math

from sieve.bank.solver import NEURON_BYTES
from sieve.calibration.schedule import groups_of, most_tokens
from sieve.costs.batches import UNRELEASED
from sieve.costs.closed_forms import fit_threads, pivot_seconds, solve_seconds
from sieve.costs.plan import ITEMSIZE, Parts, Plan, Stage
from sieve.costs.searching import DIFFERING, search_evaluations
from sieve.costs.shape import Rows
from sieve.costs.solving import fit_flops, solve_bytes
from sieve.model.groups import siblings
from sieve.model.matrices import Matrix
from sieve.projections.moments import FLOAT32, Side, moment_bytes, plan_streams
from sieve.search.shared_blocks import BYTES
from sieve.tasks.config import UNLABELLED
from sieve.tasks.metrics import AGREEMENT
from sieve.tasks.splits import COMPARED_FRACTION, MOST_COMPARED

GGUF_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "q8_0": 34 / 32}  # "auto": as stored
START_SECONDS = 8  # of a process that imports torch and transformers
QUANTIZED_BYTES = {"int8": 1.0, "int4": 0.5}


def answer(plan: Plan) -> Stage | None:
    """The dense model answers every row that a stage reads; None unless the metric is agreement."""
    if plan.config.task.metric != AGREEMENT:
        return None
    lengths = plan.long or plan.lengths
    rows = min(lengths.rows["calibration"], most_tokens(plan.config) / lengths.calibration)
    rows += lengths.rows["selection"] + lengths.rows["test"]
    seconds = plan.score(rows, 1.0, lengths)
    return Stage("answers", seconds, plan.weights | plan.scoring)


def calibrate(plan: Plan) -> Stage:
    """Forward passes over the calibration rows, and backward passes if gradients are needed."""
    settings, shape = plan.config.calibration, plan.shape
    backward = plan.needs.gradient or plan.by_gradient
    streams, tokens = settings.strategy == "stream", plan.batch_tokens
    asked = math.inf if settings.rows else settings.tokens
    rows = plan.calibration_rows(asked, not settings.checkpointing, settings.rows)
    groups = groups_of(list(shape.matrices), 1 if streams else settings.layers_at_once)
    moments = [moment_bytes(group, plan.needs, plan.by_gradient) for group in groups]
    passes, written = 1 if streams else len(groups), float(sum(map(sum, moments)))
    again = backward and (settings.checkpointing or streams)
    seconds = plan.run(rows, backward=int(backward), again=again) * passes + plan.write(written)
    seconds += plan.sums(shape.moment_flops(rows, plan.needs, plan.by_gradient))
    parts = plan.activations(tokens, rows, backward, again)
    parts["activations"] += 2 * FLOAT32 * tokens * shape.widest  # The copies that a hook makes.
    parts |= zip(("moments", "moments of gradients"), max(moments, key=sum), strict=True)
    remark = f"{passes} passes" if passes > 1 else ""
    if streams:
        # Hidden states before and after a block; for gradients, of all blocks.
        states = shape.layers + 2 if backward else 2
        hidden = states * rows.tokens * shape.hidden * plan.itemsize
        on_disk = hidden * (settings.hidden != "memory")
        parts |= plan.on_host("hidden states", hidden - on_disk)
        parts |= sweep_weights(plan)
        seconds += plan.write(on_disk + (1 + backward) * shape.parameters * ITEMSIZE[plan.stored])
        remark = f"one block at a time, {on_disk / 2**30:.2g} GiB of hidden states on disk"
    else:
        parts |= plan.weights
        parts["activations"] += again * tokens * shape.layers * shape.hidden * plan.itemsize
    parts["unreleased"] = UNRELEASED * parts["activations"] * (plan.on_cpu and backward)
    return Stage("calibrate", seconds, parts, written, remark=remark)


def sweep_weights(plan: Plan) -> Parts:
    """What is in memory of a model while all tokens go through one block after the other."""
    table = plan.shape.embedding * plan.itemsize
    return {"weights of two blocks": 2 * plan.block_bytes, "embedding or head": table}


def fit(plan: Plan) -> Stage:
    """The closed form of every matrix."""
    seconds, parts = solve_all(plan)
    layers = plan.shape.layers
    blocks = max(1, fit_threads(plan))
    rounds = math.ceil(layers / plan.devices / blocks)  # The devices, and threads, take turns.
    seconds *= rounds * blocks / layers
    if plan.config.calibration.strategy == "stream":
        largest = max(matrix.size for matrix in plan.shape.matrices)
        parts["weights of a matrix"] = largest * plan.itemsize
    else:
        parts |= plan.weights
    parts |= plan.on_host("factors of a block", blocks * plan.bank_bytes / layers)
    return Stage("fit", seconds + plan.write(plan.bank_bytes), parts, plan.bank_bytes)


def solve_all(plan: Plan) -> tuple[float, Parts]:
    """Seconds of all closed forms, also of groups of siblings, and their memory."""
    projection, matrices = plan.config.projection, list(plan.shape.matrices)
    streams = plan_streams(matrices, plan.needs, shared=not plan.by_gradient)
    solved: list[tuple[Matrix, tuple[Side, int]]] = [
        (matrix, streams.get(matrix.name) or streams[matrix.source]) for matrix in matrices
    ]
    workspace = max(solve_bytes(projection.name, matrix, width) for matrix, (_, width) in solved)
    if projection.joint:
        solved += [(group, ("input", group.d_in)) for group in siblings(plan.shape.blocks)]
    threads = fit_threads(plan)
    flops = [
        fit_flops(projection.name, m.d_out, m.d_in, side, plan.sizing.top_rank(m), threads > 0)
        for m, (side, _) in solved
    ]
    # Inverse and two Cholesky factors are decompositions; removing neurons is products.
    flops += [(2.0 * group.d_in**3, 2.4 * group.d_in**3) for group in plan.neurons]
    workspace = max([workspace, *(NEURON_BYTES * group.d_in**2 for group in plan.neurons)])
    workspace *= max(1, threads)
    return solve_seconds(plan, flops, threads), {"solver workspace": workspace}


def search(plan: Plan) -> Stage:
    """Genomes scored on the selection rows, with factors of every rank in memory."""
    rows = plan.lengths.rows["selection"]
    settings, shares = plan.config.search, plan.shards == 1
    genomes, scored, remark = search_evaluations(
        plan.shape, plan.sizing, settings, rows, plan.sweeper, DIFFERING if shares else 1.0
    )
    expected, most = scored / plan.workers
    factors = plan.sharded(plan.factor_bytes, 2 * plan.factor_bytes / plan.shape.layers)
    parts = plan.dense | plan.factor_parts(factors) | plan.scoring
    measured = settings.method == "genetic" and "measured" in settings.seeds
    if shares and (settings.bottlenecks or measured):
        tokens = rows * plan.lengths.scored / plan.devices
        states = tokens * plan.shape.hidden * plan.shape.layers * plan.itemsize
        parts["hidden states"] = min(states, BYTES)
    return Stage(
        "search",
        plan.score(expected),
        parts,
        genomes=tuple(genomes.tolist()),
        most_seconds=plan.score(most, kept=1.0),
        remark=remark,
    )


def evaluate(plan: Plan) -> Stage:
    """Score the dense, the pruned and the curve's models, and measure speeds.

    With a confidence, both models answer the selection rows once more.
    """
    speed, config = plan.config.speed, plan.config
    measures = speed.enabled and plan.shards == 1 and not plan.streams
    repeats = speed.repeats + 1 if measures else 0
    # A map of bottlenecks is tested on two more models, and a quantized model once more.
    others = [max(kept, plan.least) for kept in config.curve]
    others += [1.0, 1.0] * config.search.bottlenecks
    others += [1.0] * bool(others) + [plan.typical] * (config.quantization.method != "none")
    seconds = sum(plan.score(plan.lengths.rows["test"], kept) for kept in others)
    other_rows = rows_to_compare(plan)
    if config.confidence is not None:
        other_rows += plan.lengths.rows["selection"] * (config.search.confirmation or 1.0)
    for kept in (1.0, plan.typical):
        own = plan.lengths if kept < 1 else plan.long or plan.lengths
        seconds += plan.score(other_rows, kept, own) if other_rows else 0.0
        for lengths in (own, *plan.others):
            seconds += plan.score(lengths.rows["test"], kept, lengths)
        for length, steps in ((speed.prompt_tokens, 2), (1, speed.new_tokens)):
            one = plan.run(Rows(speed.batch_size, length, padding=1.0), kept)
            seconds += one * plan.devices * steps * repeats
    parts = (plan.pruned if config.quantization.method != "none" else plan.shared) | plan.scoring
    seconds += pivot_seconds(plan) + plan.write(plan.spooled)
    return Stage("evaluate", seconds, parts, written_bytes=plan.spooled)


def rows_to_compare(plan: Plan) -> float:
    """Rows without labels on which the answers of both models are compared."""
    recovery, rows = plan.config.recovery, plan.lengths.rows.get(UNLABELLED, 0)
    trains = recovery.method != "none" and recovery.unlabelled
    return min(rows * (COMPARED_FRACTION if trains else 1.0), MOST_COMPARED)


def export(plan: Plan) -> Stage | None:
    """Write the pruned model; None if the run exports nothing."""
    form, method = plan.config.export.format, plan.config.quantization.method
    if form == "none":
        return None
    stored: float = FLOAT32 if form.startswith("onnx") else ITEMSIZE[plan.bank_dtype]
    if form == "gguf":
        stored = GGUF_BYTES.get(plan.config.export.gguf_dtype, stored)
    size = plan.shape.kept_parameters(1.0 if form in ("dense", "gguf") else plan.kept) * stored
    storage = plan.config.export.storage
    if storage is not None:
        size += plan.converted(storage) * stored
    if plan.config.export.merge_head and form == "factorized":
        ends = sum(m.size for m in plan.shape.matrices if m.layer is None)
        size += (1 - plan.kept) * ends * stored
    if method != "none":
        size -= plan.kept * plan.shape.prunable * (stored - QUANTIZED_BYTES[method])
    size += plan.spooled
    seconds, parts = pivot_seconds(plan, storage) + plan.write(size), plan.pruned
    checked = min(plan.config.export.check_rows, plan.lengths.rows["test"])
    if checked and method == "none" and plan.shards == 1:
        fresh = plan.typical if form == "factorized" else 1.0
        seconds += plan.score(checked) + plan.score(checked, fresh) + START_SECONDS
    if (
        plan.shards > 1
        and form == "factorized"
        and method == "none"
        and not plan.config.projection.joint
    ):
        parts = plan.dense | plan.on_host("factors", parts["factors"])  # of the first process
    return Stage("export", seconds, parts, written_bytes=size)
