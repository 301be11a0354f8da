"""A setting that is out of range, or contradicts another one, is refused with what to do."""

import pytest
from test_conf_groups import load

from sieve.checks import ABOVE_0, AT_LEAST_1, CHOICES, _value


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["confidence=0.5"],
            "confidence is 0.5, expected null or a probability above 0.5 and below",
        ),
        (["confidence=90"], "set confidence=0.9"),
        (["search.levels=[0.5]"], "expected kept fractions from 0 to 1 with 1 among them"),
        (["projection.learning.level=1"], "projection.learning.level is 1.0, expected a kept"),
        (["projection=learned", "projection.prune_head=true"], "does not learn the output head"),
        (
            ["projection=learned", "projection.prune_embedding=true"],
            "projection=learned does not learn the embedding; set projection.prune_embedding=false",
        ),
        (
            ["calibration.strategy=stream", "projection.prune_embedding=true"],
            "strategy=stream does not load the embedding as a matrix; set projection.prune_emb",
        ),
        (
            ["trainer=fsdp", "projection.prune_embedding=true"],
            "its embedding stays whole; set projection.prune_embedding=false, or trainer=ddp.",
        ),
        (
            ["recovery=lora", "projection.prune_embedding=true"],
            "cannot train an embedding; set recovery=full, or projection.prune_embedding=false.",
        ),
        (["projection.refit_target=all"], "expected one of output, residual"),
        (["calibration.layers_at_once=0"], "expected at least 1"),
        (["recovery=lora", "recovery.rank=0"], "recovery.rank is 0, expected at least 1"),
        (["recovery=lora", "recovery.max_norm=0"], "recovery.max_norm is 0.0, expected a number"),
        (["recovery=full", "recovery.learning_rate=-1"], "learning_rate is -1.0, expected a"),
        (["recovery=full", "recovery.hidden=-1"], "hidden is -1.0, expected a weight of at least"),
        (
            ["recovery=full", "recovery.first=1"],
            "first is 1.0, expected a fraction above 0 and below 1",
        ),
        (["recovery.method=qlora"], "expected one of none, lora, full"),
        (["recovery=full", "projection.joint=true"], "set projection.joint=false"),
        (["projection.narrow=true", "projection=svd"], "set projection.narrow=false, or choose"),
        (["search.alleles=structural", "projection=svd"], "set search.alleles=ranks, or choose"),
        (["projection.narrow=true", "projection=kl"], "an MLP that loses neurons has none"),
        (["projection.narrow=true", "trainer=fsdp"], "trainer=fsdp shards weights"),
        (["search.alleles=structural", "search=uniform"], "search=waterfill or search=genetic"),
        (["search.alleles=structural", "projection.joint=true"], "projection.joint=false."),
        (["recovery.student_prompt=row"], "recovery.method is none; set recovery=bake"),
        (["recovery=bake", "recovery.student_prompt=rows"], "'rows', expected row or a template"),
        (["recovery=bake", "task.kind=perplexity"], "set recovery.student_prompt=null"),
        (["vocabulary.method=half"], "expected one of none, task"),
        (
            ["vocabulary.min_rows=0"],
            "vocabulary.min_rows is a number of rows, got 0; set 1 or more",
        ),
        (["vocabulary.fill=2"], "vocabulary.fill is a share of the model's parameters, got 2"),
        (["vocabulary=task", "calibration.strategy=stream"], "runs the whole model"),
        (["vocabulary=task", "task.kind=perplexity"], "tokens that a perplexity is of"),
        (
            ["vocabulary=task", "trainer=fsdp"],
            "vocabulary=task needs the whole model on one",
        ),
        (["export=gguf", "search.levels=[1,.5]"], "set search.alleles=structural, vocabulary=task"),
        (["export=gguf", "export.gguf_dtype=q4_k"], "gguf_dtype is 'q4_k', expected one of auto"),
        (["export.storage=zip"], "export.storage is 'zip', expected one of plain, pivoted"),
        (["export=gguf", "export.storage=plain"], "set export=factorized, or export.storage=null"),
        (["export.storage=plain", "quantization=int8"], "set projection.storage=plain, or quant"),
        (["export.merge_head=true", "quantization=int8"], "set projection.prune_head=false and"),
        (["export.merge_head=true", "trainer=fsdp"], "choose export.merge_head=false, or trainer"),
        (["export.storage=plain", "trainer=fsdp"], "choose export.storage=null, or trainer=gpu"),
        (["export=gguf", "trainer=fsdp"], "export=gguf needs the whole model on one device"),
        (["logger.artifact=true", "export=none"], "export=none writes none"),
        (["task.metric=agreement", "calibration.strategy=stream"], "calibration.strategy=whole"),
        (
            ["+task@also.sst2=sst2", "also.sst2.metric=agreement"],
            "also.sst2.metric is agreement, which only the run's own task can have",
        ),
        (["share_prefix=0"], "share_prefix is 0.0, expected a number above 0"),
        (["inspect=rows"], "inspect is 'rows', expected one of true, false, data."),
        (["speed.repeats=0"], "speed.repeats is 0, expected at least 1"),
        (["+trainer.limit_predict_batches=1"], "limit_predict_batches is not a setting of a run"),
    ],
)
def test_a_bad_setting_is_refused_with_what_to_do(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError) as error:
        load("+task=sst2", *overrides)
    assert message in str(error.value)


def test_every_checked_key_is_a_setting() -> None:
    config = load("+task=sst2")
    for key in (*CHOICES, *AT_LEAST_1, *ABOVE_0):
        _value(config, key)
