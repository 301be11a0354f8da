"""Whole runs on other kinds of tasks and models, and what bad input of theirs gets."""

import json
from pathlib import Path

import pytest
from models import WithOwnExperts, tiny_mixtral, tiny_odd, tiny_tokenizer
from runs import finished, make_world, run_sieve, write_rows
from transformers import AutoModelForCausalLM

from sieve.config import Config
from sieve.model.matrices import check_supported, find_matrices
from sieve.run import check_job
from sieve.tasks import TaskConfig

QUICK = ("projection.refit_tries=1", "tolerance=.5", "speed.enabled=false")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_world(tmp_path_factory.mktemp("world"))
    tiny_mixtral().save_pretrained(made / "mixtral")
    tiny_tokenizer().save_pretrained(made / "mixtral")
    for split, count in (("train", 60), ("validation", 30), ("test", 30)):
        rows = [
            {
                "q": f"{split} {i}",
                "answer": ["yes", "aye"],
                "text": f"{split} the good movie {i}",
                "options": ["a", "b", "c"],
                "grades": [i % 2, 1, 2],
            }
            for i in range(count)
        ]
        write_rows(made / "words" / f"{split}.jsonl", rows)
    return made


def words(world: Path) -> tuple[str, ...]:
    return (*QUICK, f"task.data_dir={world / 'words'}", "task.labels=[]")


@pytest.mark.slow
def test_a_mixture_of_experts_is_sieved_and_says_who_saw_too_little(world: Path) -> None:
    result = finished(
        world, "moe", *QUICK, f"model.path={world / 'mixtral'}", "calibration.tokens=60"
    )
    kinds = {row["kind"] for row in result["matrices"]}
    assert {"expert_gate_up", "expert_down"} < kinds
    experts = result["calibration"]["experts"]
    assert experts["experts"] == 8 and experts["few"] >= 1
    assert min(experts["fewest"].values()) < 32
    loaded = AutoModelForCausalLM.from_pretrained(world / "moe" / "export")
    assert type(loaded).__name__ == "SieveMixtralForCausalLM"
    assert "experts saw fewer tokens" in (world / "moe" / "report.html").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("search", ["waterfill", "evopress", "genetic"])
def test_answers_that_are_written_are_searched_and_reported(world: Path, search: str) -> None:
    quick = {
        "evopress": ["search.evaluations=8", "search.seeds=[waterfill]"],
        "genetic": [
            "search.seeds=[waterfill]",
            "hydra.sweeper.population=4",
            "search.bottlenecks=false",
            "hydra.sweeper.generations=2",
        ],
    }.get(search, [])
    run_dir = [f"hydra.sweep.dir={world / f'write {search}'}"] if search == "genetic" else []
    settings = (
        "task.kind=generation",
        "task.prompt='{q}: '",
        "task.max_new_tokens=3",
        "task.metric=f1",
        f"search={search}",
    )
    if search == "genetic":
        done = run_sieve(world, world / "unused", *words(world), *settings, *quick, *run_dir)
        assert done.status == 0, done.stderr
        path = world / f"write {search}" / "result" / "result.json"
        result = json.loads(path.read_text())
    else:
        result = finished(world, f"write {search}", *words(world), *settings, *quick)
    assert result["metric"] == "f1" and result["relative"] is False
    assert result["baseline"]["chance"] is None and result["examples"] == 30
    chosen = [point for point in result["search"]["curve"] if point["chosen"]]
    assert len(chosen) == 1 and chosen[0]["divergence"] >= 0


@pytest.mark.slow
def test_a_perplexity_is_held_to_a_fraction_of_it(world: Path) -> None:
    result = finished(
        world,
        "text",
        *words(world),
        "task.kind=perplexity",
        "task.prompt='{text}'",
        "tolerance=.5",
        "confidence=0.9",
    )
    ratio = result["pruned"]["accuracy"] / result["baseline"]["accuracy"]
    assert result["relative"] and result["drop"]["point"] == pytest.approx(ratio - 1)
    [chosen] = [point for point in result["search"]["curve"] if point["chosen"]]
    assert chosen["margin"] >= 0
    limit = result["search"]["baseline_accuracy"] * 1.5
    assert chosen["accuracy"] <= limit
    page = (world / "text" / "report.html").read_text("utf-8")
    assert "Rise, over the dense model" in page and "Sign test" in page


@pytest.mark.slow
def test_options_are_ranked_and_the_worst_grade_is_no_answer(world: Path) -> None:
    result = finished(
        world,
        "rank",
        *words(world),
        "task.kind=ranking",
        "task.prompt='{q}: {option}?'",
        "task.relevance_field=grades",
        "task.metric=ndcg",
    )
    assert result["metric"] == "ndcg" and 0 < result["baseline"]["accuracy"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["task.kind=generation", "task.prompt='{q}'", "task.extract='#### (\\d+)'"],
            "task.extract '#### (\\\\d+)' matches none of the 30 answers",
        ),
        (["task.kind=generation", "task.prompt='{q}'", "task.shots=60"], "task.shots is 60"),
        (
            ["task.label_field=nothing", "task.prompt='{q}'"],
            "no field 'nothing'|has 0 distinct labels",
        ),
        (
            ["task.kind=generation", "task.prompt='{q}'", "task.metric=judge"],
            "needs ++task.judge.url",
        ),
        (["task.kind=perplexity", "task.prompt='{nowhere}'"], "has no field 'nowhere'"),
    ],
)
def test_what_does_not_hold_is_one_sentence(world: Path, settings: list[str], said: str) -> None:
    done = run_sieve(world, world / "refused", *words(world), *settings)
    assert done.status == 1 and "Traceback" not in done.stderr
    assert any(part in done.stderr for part in said.split("|")), done.stderr


@pytest.mark.slow
def test_what_is_wrong_with_other_tasks_is_said_before_anything_is_computed(world: Path) -> None:
    other = ["+task@also.text=perplexity", "also.text.data_dir=nowhere"]
    done = run_sieve(world, world / "late", *QUICK, *other)
    assert done.status == 1 and "nowhere does not exist" in done.stderr
    assert "calibrate" not in done.stderr


def test_a_task_of_almanac_beside_another_does_not_choose_the_model() -> None:
    task = TaskConfig("sst2", hub={"path": "x"})
    config = Config(task, also={"a": TaskConfig("a", almanac={"domain": "reviews"})})
    with pytest.raises(ValueError, match="choose the model, as model=embedded"):
        check_job(config, ["+task=sst2", "+task@also.a=almanac_reviews"], {})
    check_job(config, ["+task=sst2", "model=embedded"], {})
    check_job(Config(config.also["a"], also=config.also), [], {})


@pytest.mark.slow
def test_a_label_that_no_other_split_has_is_named(world: Path, tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        labels = ["no", "yes"] if split != "test" else ["no", "perhaps"]
        rows = [{"text": f"{split} {i}", "label": labels[i % 2]} for i in range(20)]
        write_rows(tmp_path / "data" / f"{split}.jsonl", rows)
    labels = ["task.labels=[no,yes]", f"task.data_dir={tmp_path / 'data'}"]
    done = run_sieve(world, tmp_path / "run", *labels)
    assert done.status == 1 and "row 2 of test has the label 'perhaps'" in done.stderr


def test_a_model_that_can_be_handled_in_part_goes_on_only_where_that_is_allowed() -> None:
    model = tiny_odd()
    model.rungs[0] = WithOwnExperts(32)
    with pytest.raises(ValueError) as caught:
        check_supported(model, allow_partial=False)
    said = str(caught.value)
    assert said.startswith("rungs.0.own of OddForCausalLM cannot be factorized: its 3,072 weights")
    assert said.endswith("set model.allow_partial=true to leave such layers dense.")
    check_supported(model, allow_partial=True)
    assert len(find_matrices(model)) == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["projection=affine"],
        ["projection.refit_target=residual", "recovery=lora", "recovery.steps=3"],
        ["projection.joint=true", "calibration.layers_at_once=1", "calibration.checkpointing=true"],
        ["quantization=int8", "projection.tune_steps=3"],
    ],
)
def test_a_mixture_goes_through_every_stage(world: Path, settings: list[str]) -> None:
    result = finished(world, "stages", *QUICK, f"model.path={world / 'mixtral'}", *settings)
    assert result["kept_fraction"]["prunable"] < 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["projection=learned"], "belongs to an expert, which reads only some of the tokens"),
        (["export=onnx"], "got a mixture of experts, which Sieve cannot export to ONNX"),
    ],
)
def test_what_a_mixture_cannot_have_is_one_sentence(
    world: Path, settings: list[str], said: str
) -> None:
    done = run_sieve(world, world / "no", *QUICK, f"model.path={world / 'mixtral'}", *settings)
    assert done.status == 1 and said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("recovery=full", "recovery.short_steps=4", "recovery.steps=4", "recovery.tries=2"),
        ("search=evopress", "search.evaluations=20", "calibration.strategy=stream"),
        ("projection.joint=true", "search.alleles=ranks", "projection.narrow=true"),
    ],
)
def test_mlps_lose_neurons_in_a_whole_run(world: Path, settings: tuple[str, ...]) -> None:
    name = settings[0].replace("=", "_")
    asked = ("search.alleles=structural", "projection.storage=plain", *settings)
    result = finished(world, name, *QUICK, *asked, "task.labels=[no,yes]", "tolerance=.45")
    rows = result["matrices"]
    if "search.alleles=ranks" not in settings:
        assert all(row["rank"] in (None, 0) for row in rows)
    loaded = AutoModelForCausalLM.from_pretrained(world / name / "export")
    stored = sum(parameter.numel() for parameter in loaded.parameters())
    assert stored == result["parameters"]["model_kept"]
    shapes = {row["name"]: row["neurons"] for row in rows if row["kind"] == "down"}
    for path, neurons in shapes.items():
        if neurons is not None:
            assert loaded.get_submodule(path).weight.shape[1] == neurons
    assert result["kept_fraction"]["prunable"] < 1
