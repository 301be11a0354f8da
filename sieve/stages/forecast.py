"""How long the stages of an open run take, by the formulas of a dry run and what is loaded."""

from sieve.costs.dry_run import plan_of, stages_of
from sieve.costs.lengths import Lengths, measured
from sieve.costs.shape import shape_of
from sieve.stages.run import Run
from sieve.streaming.streamed_backbone import StreamedBackbone
from sieve.tasks import Task

PROBE_S = 0.02  # of a measurement of this machine: the whole probe takes less than half a second


def forecast(run: Run) -> dict[str, float] | None:
    """Expected seconds by stage, on rank 0 alone.

    None for a genetic search, which other jobs compute, for a streamed model, which would be loaded
    whole, and for a sharded one, which no rank can look into alone.
    """
    config, backbone = run.config, run.backbone
    streams = isinstance(backbone, StreamedBackbone)
    if config.search.method == "genetic" or streams or run.sharded:
        return None
    projection = config.projection
    matrices = backbone.matrices(projection.prune_head, projection.prune_embedding)
    shape = shape_of(backbone.skeleton, matrices=matrices)

    def lengths(task: Task) -> Lengths:
        return measured(task, config, backbone.tokenizer, backbone.skeleton)

    own = lengths(run.task)
    long = own if run.dense_task is None else lengths(run.dense_task)
    others = [lengths(data.task) for data in run.others.values()]
    plan = plan_of(config, backbone.skeleton, shape, (own, long, others), {}, PROBE_S)
    return {stage.name: stage.seconds for stage in stages_of(plan)}
