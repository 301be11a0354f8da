"""Encoder classifiers: pruned, searched, exported and loaded again."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from models import VOCAB_SIZE, randomized, tiny_tokenizer
from runs import finished, make_world, run_sieve
from sieved import uniform
from transformers import AutoModelForSequenceClassification

import sieve
from sieve.calibration.calibration import calibrate
from sieve.config import ModelConfig
from sieve.data.batches import as_inputs
from sieve.data.classifier import classes_of, classifier_batches, classifier_calibration_batches
from sieve.data.reader import Reader
from sieve.evaluation.evaluation import score
from sieve.model.backbone import load_backbone
from sieve.model.matrices import find_matrices
from sieve.search.lines import search_waterfill
from sieve.search.objective import Objective
from sieve.tasks import Task
from sieve.tasks.example import Example
from sieve.tasks.metrics import ACCURACY

ENCODER = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 130, "vocab_size": VOCAB_SIZE, "pad_token_id": 0, "num_labels": 3,
}  # fmt: skip
KINDS = {
    "Bert": "q k v o up down", "Roberta": "q k v o up down",
    "ModernBert": "qkv Wo Wi Wo", "Llama": "q k v o gate up down",
}  # fmt: skip
EXAMPLES = [
    Example("a good movie" + " the" * (2 * i % 7) + f" {i}", (" a", " b", " c"), i % 3)
    for i in range(12)
]
CLASSES = (0, 1, 2)


def tiny_classifier(name: str = "Bert", **options: Any) -> Any:
    """A random classifier of three classes."""
    model_class = getattr(transformers, f"{name}ForSequenceClassification")
    if name == "ModernBert":
        options = {"local_attention": 8, "cls_token_id": 1, "sep_token_id": 2} | options
    return randomized(model_class, model_class.config_class(**(ENCODER | options)))


def alone(model: Any) -> torch.Tensor:
    """Logits of every example by itself, without padding."""
    with torch.no_grad():
        rows = [torch.tensor([tiny_tokenizer()(e.prompt).input_ids]) for e in EXAMPLES]
        return torch.cat([model(input_ids=row).logits for row in rows])


@pytest.mark.parametrize("name", KINDS)
def test_padded_rows_are_scored_as_each_by_itself(name: str) -> None:
    model = tiny_classifier(name)
    batches = classifier_batches(EXAMPLES, tiny_tokenizer(), CLASSES, batch_tokens=60)
    assert len(batches) > 1
    found, expected = score(model, batches), alone(model)
    assert found.predicted.tolist() == expected.argmax(1).tolist()
    answers = torch.tensor([e.answer for e in EXAMPLES])
    losses = torch.nn.functional.cross_entropy(expected, answers, reduction="none")
    np.testing.assert_allclose(found.losses, losses.numpy(), atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_matrices_are_found_and_level_one_is_the_identity(name: str) -> None:
    model = tiny_classifier(name)
    matrices = find_matrices(model)
    for layer in (0, 1):
        found = [m.kind for m in matrices if m.layer == layer]
        assert sorted(found) == sorted(KINDS[name].split())
    assert not any("classifier" in m.name or "score" in m.name for m in matrices)


@pytest.mark.parametrize("projection", ["output", "loss_aware"])
@pytest.mark.parametrize("name", KINDS)
def test_a_classifier_is_pruned_searched_exported_and_loaded_again(
    name: str, projection: str, tmp_path: Path
) -> None:
    model, tokenizer = tiny_classifier(name), tiny_tokenizer()
    labelled = alone(model).argmax(1).tolist()
    examples = [Example(e.prompt, e.choices, a) for e, a in zip(EXAMPLES, labelled, strict=True)]
    batches = classifier_calibration_batches(examples, tokenizer, CLASSES, None, 60, 0)
    moments = calibrate(model, batches, projection=projection)
    bank = sieve.fit(model, moments, projection, "pivoted")
    rows = classifier_batches(examples, tokenizer, CLASSES, 60)
    objective = Objective(model, bank, rows, tolerance=0.25)
    assert objective.baseline.accuracy == 1
    genome = search_waterfill(bank, objective)
    assert bank.kept_fraction(genome) < 0.9
    sieve.apply(model, bank, genome)
    folder = sieve.export(model, tokenizer, tmp_path / "export")
    loaded, info = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(alone(loaded), alone(model), rtol=0, atol=1e-4)
    assert sieve.load(folder)[0](input_ids=torch.ones(1, 3).long()).logits.shape == (1, 3)


def test_gradients_are_those_of_the_classes_whatever_the_padding() -> None:
    model, tokenizer = tiny_classifier(), tiny_tokenizer()
    together = classifier_calibration_batches(EXAMPLES, tokenizer, CLASSES, None, 10_000, 0)
    apart = classifier_calibration_batches(EXAMPLES, tokenizer, CLASSES, None, 1, 0)
    assert len(together) == 1 and len(apart) == len(EXAMPLES)
    first, second = (calibrate(model, b, projection="loss_aware") for b in (together, apart))
    for matrix in find_matrices(model):
        for part in ("second", "power"):
            one, two = (getattr(m.of(matrix).gradient, part) for m in (first, second))
            torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(two), rtol=1e-3,
                                       atol=1e-6)  # fmt: skip
    tokens = sum(int(as_inputs(batch)["attention_mask"].sum()) for batch in apart)
    assert first.tokens == tokens


def test_a_dense_export_is_a_plain_classifier(tmp_path: Path) -> None:
    model, tokenizer = tiny_classifier(), tiny_tokenizer()
    moments = calibrate(
        model, classifier_calibration_batches(EXAMPLES, tokenizer, CLASSES, None, 60, 0)
    )
    bank = sieve.fit(model, moments)
    sieve.apply(model, bank, uniform(bank, 0.5))
    folder = sieve.export(model, tokenizer, tmp_path / "dense", "dense")
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert type(loaded).__name__ == "BertForSequenceClassification"
    torch.testing.assert_close(alone(loaded), alone(model), rtol=0, atol=1e-4)


def task_of(*labels: str, kind: str = "classification") -> Any:
    return SimpleNamespace(labels=labels, kind=kind, name="toy")


def test_labels_are_classes_by_name_or_else_by_position() -> None:
    named = tiny_classifier(id2label={0: "Bad", 1: "Good", 2: "Fair"})
    assert classes_of(named, task_of("good", "fair")) == (1, 2)
    assert classes_of(named, task_of("x", "y", "z")) == (0, 1, 2)
    with pytest.raises(ValueError, match="3 classes .* labels x, y, expected as many"):
        classes_of(named, task_of("x", "y"))
    with pytest.raises(ValueError, match="is a classifier .* expected task.kind=classification"):
        classes_of(named, task_of("x", "y", "z", kind="generation"))


@pytest.mark.parametrize("pad", [1, None])
def test_a_decoder_that_classifies_finds_its_last_token_whatever_its_padding(
    pad: int | None, tmp_path: Path
) -> None:
    tiny_classifier("Llama", pad_token_id=pad).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    backbone = load_backbone(ModelConfig(path=str(tmp_path)), torch.device("cpu"))
    batches = classifier_batches(EXAMPLES, backbone.tokenizer, CLASSES, batch_tokens=200)
    found = score(backbone.model, batches).losses
    each = classifier_batches(EXAMPLES, backbone.tokenizer, CLASSES, batch_tokens=1)
    assert len(batches) < len(each) == len(EXAMPLES)
    np.testing.assert_allclose(found, score(backbone.model, each).losses, atol=1e-4)


def test_mixed_tasks_have_classes_of_their_own() -> None:
    model = tiny_classifier(id2label={0: "no", 1: "yes", 2: "so"})
    reader = Reader(tiny_tokenizer(), classes=partial(classes_of, model))
    found = []
    for labels in (("no", "yes", "so"), ("so", "no", "yes")):
        rows = [Example("text", tuple(f" {label}" for label in labels), 0)]
        task = Task("toy", "d", ACCURACY, {"calibration": rows}, {}, labels=labels)
        [batch] = reader.calibration(task, None, 100, 0)
        found.append(int(batch.targets.max()))
    assert found == [0, 2]


def test_a_field_is_shortened_and_the_prompt_keeps_its_end() -> None:
    prompt = "Review: " + "the movie " * 40 + "\nSentiment:"
    example = Example(prompt, (" a", " b", " c"), 0, cut=(8, len(prompt) - 11))
    told: list[int] = []
    [batch] = classifier_batches([example], tiny_tokenizer(), CLASSES, 900, 60, told.append)
    text = tiny_tokenizer().decode(batch.input_ids[0])
    assert told == [1] and len(batch.input_ids[0]) <= 60
    assert text.startswith("Review: the") and text.endswith("\nSentiment:")
    with pytest.raises(ValueError, match="1 of 1 prompts are longer"):
        classifier_batches([example], tiny_tokenizer(), CLASSES, 900, 5)


@pytest.mark.slow
def test_a_run_takes_a_classifier_from_the_directory_to_the_export(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    tiny_classifier(num_labels=2).save_pretrained(world / "bert")
    tiny_tokenizer().save_pretrained(world / "bert")
    result = finished(
        world, "run", f"model.path={world / 'bert'}", "tolerance=.5", "recovery=lora",
        "recovery.steps=4", "projection.refit_tries=1",
    )  # fmt: skip
    assert result["speed"]["decode_ratio"] is None and result["speed"]["prefill_ratio"] > 0
    refused = run_sieve(
        world, world / "no", f"model.path={world / 'bert'}", "calibration.weighting=answer"
    )
    assert refused.status == 1 and "of which a classifier has none" in refused.stderr
    loaded = AutoModelForSequenceClassification.from_pretrained(world / "run" / "export")
    assert type(loaded).__name__ == "SieveBertForSequenceClassification"
