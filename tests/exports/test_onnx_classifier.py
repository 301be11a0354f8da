"""The ONNX graph of a classifier has the logits of the model, and scores a task as it does."""

from functools import partial
from pathlib import Path

import pytest
import torch
from classifiers import EXAMPLES, tiny_classifier
from models import tiny_tokenizer

import sieve
from sieve.data.classifier import classes_of
from sieve.data.reader import Reader
from sieve.evaluation.evaluation import score
from sieve.exports.onnx_model import OnnxForSequenceClassification
from sieve.tasks import Task
from sieve.tasks.metrics import ACCURACY

LABELS = ("bad", "fair", "good")
TASK = Task("toy", "classification", ACCURACY, {}, {}, labels=LABELS, kind="classification")


@pytest.mark.parametrize(
    "name", ["Bert", *(pytest.param(x, marks=pytest.mark.slow) for x in ("ModernBert", "Llama"))]
)
def test_a_graph_scores_rows_as_the_classifier_does(name: str, tmp_path: Path) -> None:
    model = tiny_classifier(name)
    batches = Reader(tiny_tokenizer(), classes=partial(classes_of, model)).scoring(
        TASK, EXAMPLES, 100
    )
    assert len(batches) > 1 and any((b.attention_mask == 0).any() for b in batches)
    graph, _ = sieve.load(sieve.export(model, tiny_tokenizer(), tmp_path / "export", "onnx"))
    assert isinstance(graph, OnnxForSequenceClassification)
    assert graph.names == ["input_ids", "attention_mask"]
    of_graph, of_model = score(graph, batches), score(model, batches)
    torch.testing.assert_close(
        torch.as_tensor(of_graph.losses), torch.as_tensor(of_model.losses), rtol=0, atol=1e-4
    )
    assert of_graph.predicted.tolist() == of_model.predicted.tolist()
    assert len({round(loss, 3) for loss in of_model.losses.tolist()}) > 6
