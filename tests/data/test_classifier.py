"""Encoder classifiers: pruned, searched, exported and loaded again."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from classifiers import EXAMPLES, tiny_classifier
from models import tiny_tokenizer
from runs import finished, make_world, run_sieve
from sieved import uniform
from transformers import AutoModelForSequenceClassification, PreTrainedModel

import sieve
from sieve.calibration.calibration import calibrate
from sieve.config import ModelConfig
from sieve.data.batches import TokenBatch
from sieve.data.classifier import classes_of
from sieve.data.reader import Reader
from sieve.data.scored import ScoredBatch
from sieve.evaluation.evaluation import score
from sieve.model.backbone import load_backbone
from sieve.model.matrices import find_matrices
from sieve.search.lines import search_waterfill
from sieve.search.objective import Objective
from sieve.tasks import Task
from sieve.tasks.example import Example
from sieve.tasks.metrics import ACCURACY

KINDS = {
    "Bert": "q k v o up down",
    "Roberta": "q k v o up down",
    "ModernBert": "qkv Wo Wi Wo",
    "Llama": "q k v o gate up down",
}


def task_of(
    rows: list[Example], labels: tuple[str, ...] = ("x", "y", "z"), kind: str = "classification"
) -> Task:
    return Task("toy", kind, ACCURACY, {"calibration": rows}, {}, labels=labels, kind=kind)


def reader_of(model: PreTrainedModel, **options: object) -> Reader:
    return Reader(tiny_tokenizer(), classes=partial(classes_of, model), **options)


def scoring_batches(
    model: PreTrainedModel, rows: list[Example] = EXAMPLES, tokens: int = 60
) -> Sequence[ScoredBatch]:
    return reader_of(model).scoring(task_of(rows), rows, tokens)


def calibration_batches(
    model: PreTrainedModel, rows: list[Example] = EXAMPLES, tokens: int = 60
) -> list[TokenBatch]:
    return reader_of(model).calibration(task_of(rows), None, tokens, seed=0)


def logits_of_single_rows(model: PreTrainedModel) -> torch.Tensor:
    """Logits of each example in a batch of its own, without padding."""
    with torch.no_grad():
        rows = [torch.tensor([tiny_tokenizer()(e.prompt).input_ids]) for e in EXAMPLES]
        return torch.cat([model(input_ids=row).logits for row in rows])


@pytest.mark.parametrize("name", KINDS)
def test_padded_rows_have_the_scores_of_single_rows(name: str) -> None:
    model = tiny_classifier(name)
    batches = scoring_batches(model)
    assert len(batches) > 1
    scores, expected = score(model, batches), logits_of_single_rows(model)
    assert scores.predicted.tolist() == expected.argmax(1).tolist()
    answers = torch.tensor([e.answer for e in EXAMPLES])
    losses = torch.nn.functional.cross_entropy(expected, answers, reduction="none")
    np.testing.assert_allclose(scores.losses, losses.numpy(), atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_every_matrix_of_a_block_is_found_and_the_classifier_head_is_not(name: str) -> None:
    matrices = find_matrices(tiny_classifier(name))
    for layer in (0, 1):
        kinds = [m.kind for m in matrices if m.layer == layer]
        assert sorted(kinds) == sorted(KINDS[name].split())
    assert not any("classifier" in m.name or "score" in m.name for m in matrices)


@pytest.mark.parametrize(
    ("name", "projection"),
    [
        ("Bert", "output"),
        ("Roberta", "output"),
        ("ModernBert", "loss_aware"),
        ("Llama", "loss_aware"),
    ],
)
def test_a_classifier_is_pruned_searched_exported_and_loaded_again(
    name: str, projection: str, tmp_path: Path
) -> None:
    model, tokenizer = tiny_classifier(name), tiny_tokenizer()
    predicted = logits_of_single_rows(model).argmax(1).tolist()
    examples = [Example(e.prompt, e.choices, a) for e, a in zip(EXAMPLES, predicted, strict=True)]
    moments = calibrate(model, calibration_batches(model, examples), projection=projection)
    bank = sieve.fit(model, moments, projection, "pivoted")
    objective = Objective(model, bank, scoring_batches(model, examples), tolerance=0.25)
    assert objective.baseline.accuracy == 1
    genome = search_waterfill(bank, objective)
    assert bank.kept_fraction(genome) < 0.9
    sieve.apply(model, bank, genome)
    folder = sieve.export(model, tokenizer, tmp_path / "export")
    loaded, info = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = logits_of_single_rows(model)
    torch.testing.assert_close(logits_of_single_rows(loaded), expected, rtol=0, atol=1e-4)
    assert sieve.load(folder)[0](input_ids=torch.ones(1, 3).long()).logits.shape == (1, 3)


def test_gradients_do_not_depend_on_padding() -> None:
    model = tiny_classifier()
    together = calibration_batches(model, tokens=10_000)
    apart = calibration_batches(model, tokens=1)
    assert len(together) == 1 and len(apart) == len(EXAMPLES)
    first, second = (calibrate(model, b, projection="loss_aware") for b in (together, apart))
    for matrix in find_matrices(model):
        for part in ("second", "power"):
            left, right = (getattr(m.of(matrix).gradient, part) for m in (first, second))
            torch.testing.assert_close(
                torch.as_tensor(left), torch.as_tensor(right), rtol=1e-3, atol=1e-6
            )
    assert first.tokens == sum(int(batch.attention_mask.sum()) for batch in apart)


def test_a_dense_export_is_a_plain_classifier(tmp_path: Path) -> None:
    model = tiny_classifier()
    bank = sieve.fit(model, calibrate(model, calibration_batches(model)))
    sieve.apply(model, bank, uniform(bank, 0.5))
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "dense", "dense")
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert type(loaded).__name__ == "BertForSequenceClassification"
    expected = logits_of_single_rows(model)
    torch.testing.assert_close(logits_of_single_rows(loaded), expected, rtol=0, atol=1e-4)


def test_labels_are_classes_by_name_or_else_by_position() -> None:
    named = tiny_classifier(id2label={0: "Bad", 1: "Good", 2: "Fair"})
    assert classes_of(named, task_of([], ("good", "fair"))) == (1, 2)
    assert classes_of(named, task_of([], ("x", "y", "z"))) == (0, 1, 2)
    with pytest.raises(ValueError, match="3 classes .* labels x, y, expected labels that match"):
        classes_of(named, task_of([], ("x", "y")))
    with pytest.raises(ValueError, match="is a classifier .* expected task.kind=classification"):
        classes_of(named, task_of([], kind="generation"))


@pytest.mark.parametrize("pad", [1, None])
def test_a_decoder_classifier_finds_the_last_token_of_padded_rows(
    pad: int | None, tmp_path: Path
) -> None:
    tiny_classifier("Llama", pad_token_id=pad).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    backbone = load_backbone(ModelConfig(path=str(tmp_path)), torch.device("cpu"))
    reader = Reader(backbone.tokenizer, classes=partial(classes_of, backbone.model))
    padded, single = (reader.scoring(task_of([]), EXAMPLES, tokens) for tokens in (200, 1))
    assert len(padded) < len(single) == len(EXAMPLES)
    losses = score(backbone.model, padded).losses
    np.testing.assert_allclose(losses, score(backbone.model, single).losses, atol=1e-4)


def test_mixed_tasks_use_their_own_classes() -> None:
    reader = reader_of(tiny_classifier(id2label={0: "no", 1: "yes", 2: "so"}))
    targets = []
    for labels in (("no", "yes", "so"), ("so", "no", "yes")):
        rows = [Example("text", tuple(f" {label}" for label in labels), 0)]
        [batch] = reader.calibration(task_of(rows, labels), None, 100, seed=0)
        targets.append(int(batch.targets.max()))
    assert targets == [0, 2]


def test_a_field_is_shortened_and_the_prompt_keeps_its_end() -> None:
    prompt = "Review: " + "the movie " * 40 + "\nSentiment:"
    example = Example(prompt, (" a", " b", " c"), 0, cut=(8, len(prompt) - 11))
    shortened: list[int] = []
    reader = reader_of(tiny_classifier(), context_length=60, cut=shortened.append)
    [batch] = reader.scoring(task_of([]), [example], 900)
    text = tiny_tokenizer().decode(batch.input_ids[0])
    assert shortened == [1] and len(batch.input_ids[0]) <= 60
    assert text.startswith("Review: the") and text.endswith("\nSentiment:")
    with pytest.raises(ValueError, match="1 of 1 prompts are longer"):
        reader_of(tiny_classifier(), context_length=5).scoring(task_of([]), [example], 900)


@pytest.mark.slow
def test_a_run_takes_a_classifier_from_the_directory_to_the_export(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    tiny_classifier(num_labels=2).save_pretrained(world / "bert")
    tiny_tokenizer().save_pretrained(world / "bert")
    settings = "tolerance=.5 recovery=lora recovery.steps=4 projection.refit_tries=1".split()
    result = finished(world, "run", f"model.path={world / 'bert'}", *settings)
    assert result["speed"]["decode_ratio"] is None and result["speed"]["prefill_ratio"] > 0
    refused = run_sieve(
        world, world / "no", f"model.path={world / 'bert'}", "calibration.weighting=answer"
    )
    assert refused.status == 1 and "calibration.weighting=answer" in refused.stderr
    loaded = AutoModelForSequenceClassification.from_pretrained(world / "run" / "export")
    assert type(loaded).__name__ == "SieveBertForSequenceClassification"
