"""How many tokens a pass of a run takes, so that it does not run out of memory."""

import logging
import math
from functools import partial

from sieve.calibration.schedule import groups_of, needs_of
from sieve.config import Config
from sieve.costs.batches import calibration_bytes, fitting_tokens
from sieve.costs.shape import shape_of
from sieve.model.backbone import Backbone
from sieve.projections.moments import BY_GRADIENT, moment_bytes, weighting_for
from sieve.runtime.memory import free_bytes
from sieve.tasks import Task

log = logging.getLogger(__name__)
ANSWER_SHARE = 0.1  # the largest share of a row's tokens whose logits a task with choices needs


def batch_tokens(config: Config, task: Task, backbone: Backbone) -> int:
    """Tokens of a pass: the run's setting, or as many as fit into free memory."""
    if config.batch_tokens:
        return config.batch_tokens
    on_cpu, calibration = backbone.device.type == "cpu", config.calibration
    projection = config.projection
    matrices = backbone.matrices(projection.prune_head, projection.prune_embedding)
    shape = shape_of(backbone.skeleton, matrices=matrices)
    needs = needs_of(config.projection)
    by_gradient = weighting_for(calibration.weighting, needs) in BY_GRADIENT
    streams = calibration.strategy == "stream"
    kinds = {task.kind, *(other.kind for other in calibration.mix.values())}
    pass_bytes = partial(
        calibration_bytes,
        shape,
        itemsize=backbone.dtype.itemsize,
        logits=1.0 if kinds & {"perplexity", "generation"} else ANSWER_SHARE,
        on_cpu=on_cpu,
        saved_blocks=1 if streams or calibration.checkpointing else shape.layers,
    )
    groups = groups_of(list(shape.matrices), 1 if streams else calibration.layers_at_once)
    moments = max(sum(moment_bytes(group, needs, by_gradient)) for group in groups)
    tokens = fitting_tokens(pass_bytes, free_bytes(backbone.device) - moments, on_cpu)
    if tokens < fitting_tokens(pass_bytes, math.inf, on_cpu):
        log.info("A pass takes %d tokens, since more do not fit into free memory.", tokens)
    return tokens
