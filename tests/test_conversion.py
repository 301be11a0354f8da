"""Small mistakes in settings are corrected where their meaning is clear, and a log line says so."""

import pytest
from omegaconf import OmegaConf
from test_conf_groups import compose_raw, load

from sieve.conversion import register_resolvers, to_config

OWN = ("+task=jsonl", "model=embedded")


@pytest.mark.slow
def test_a_space_between_prompt_and_answer_is_not_doubled(caplog: pytest.LogCaptureFixture) -> None:
    assert load(*OWN, "task.prompt='{text}: '").task.prompt == "{text}:"
    assert "the space at the end of task.prompt is removed" in caplog.text
    kept = load(*OWN, "task.prompt='{text}: '", "task.delimiter=''").task.prompt
    assert kept == "{text}: "


def test_spaces_around_label_words_are_removed(caplog: pytest.LogCaptureFixture) -> None:
    assert load(*OWN, "task.labels=['no ',' yes']").task.labels == ["no", "yes"]
    assert "spaces around the words of task.labels are removed: no, yes." in caplog.text


@pytest.mark.parametrize(
    ("data_dir", "name"),
    [
        ("work/reviews", "reviews"),
        ("work/my reviews/", "my-reviews"),
        ("reviews/train.csv", "reviews"),
        ("work/reviews.csv", "reviews"),
        ("work/v1.2", "v1.2"),
        ("", "own_data"),
    ],
)
def test_own_data_is_named_after_its_folder(data_dir: str, name: str) -> None:
    own = (*OWN, f"task.data_dir='{data_dir}'")
    assert load(*own).task.name == name and load(*own, "task.name=mine").task.name == "mine"


def test_no_name_of_a_task_leads_out_of_the_folder_of_runs() -> None:
    register_resolvers()
    for name in ("../../x", "/etc", "..", "a/b"):
        folder = OmegaConf.create({"name": name, "dir": "runs/${folder_of:${name}}"}).dir
        assert folder.count("/") == 1 and not folder.endswith((".", "/"))


def test_structural_alleles_order_neurons_and_leave_nothing_to_refit() -> None:
    config = to_config(compose_raw("+task=sst2", "search.alleles=structural"))
    assert config.projection.narrow and not config.projection.refit
    plain = to_config(compose_raw("+task=sst2"))
    assert plain.projection.refit and not plain.projection.narrow
