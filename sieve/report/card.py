"""The model card of an export, from the result: what it is, what it keeps, how to load it."""

from collections.abc import Mapping
from typing import Any

from sieve.report.sentence import answer_sentence, verdict
from sieve.report.units import metric_name, metric_value
from sieve.report.values import look, percent

Result = Mapping[str, Any]

ONNX = """\
```python
import sieve

model, tokenizer = sieve.load("{folder}")  # onnxruntime behind the call of a transformers model
```

Without Sieve it is a plain graph: `input_ids`, `attention_mask`, `position_ids` (rows × tokens) and
`logits_to_keep` (the positions whose logits are wanted) in, as far as the architecture has them,
`logits` out.

```python
import onnxruntime

session = onnxruntime.InferenceSession("{folder}/model.onnx")
```

It scores: there is no key-value cache in it, so it is no good for writing long texts.
"""

LOADING = {
    "factorized": """\
```python
import sieve

model, tokenizer = sieve.load("{folder}")
```

Without Sieve, transformers loads it with the code that this directory carries:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{folder}", trust_remote_code=True)
```
""",
    "dense": """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```

The factors are merged into plain weights: it loads anywhere, but is as large as the dense model.
For llama.cpp, give this directory to its `convert_hf_to_gguf.py`.
""",
    "onnx": ONNX,
    "onnx_int8": ONNX,
}


PIPELINES = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForSequenceClassification": "text-classification",
}
QUANTIZED = """\
The weights are quantized by torchao, which must be installed: `pip install torchao`.
"""


def model_card(
    result: Result,
    base: str,
    prompt: str,
    form: str = "factorized",
    folder: str = "export",
    auto_class: str = "AutoModelForCausalLM",
) -> str:
    """Markdown with the front matter of the Hub.

    base: the model that was pruned, a Hub name or what else it is called; prompt: of the task, with
    its fields; form: of the export; auto_class: that loads the model.
    """
    loading = LOADING[form].format(folder=folder).replace("AutoModelForCausalLM", auto_class)
    sections = [
        _front(base, "onnx" if form.startswith("onnx") else "transformers", PIPELINES[auto_class]),
        f"# {look(result, 'task')} on {look(result, 'model')}, sieved\n",
        f"{answer_sentence(result)} {verdict(result).text}\n",
        "## Intended use\n",
        "The task it was sieved for, with this prompt, and nothing else: what the task does not "
        f"use of the base model is gone.\n\n```\n{prompt}\n```\n",
        "## How to load it\n",
        loading,
        *([QUANTIZED] if look(result, "quantization") else []),
        "## How it was made\n",
        _made(result, base),
        "## Licence\n",
        "That of the base model, which this one is derived from; see there, and the terms of the "
        "task's data.\n",
    ]
    return "\n".join(sections)


def _front(base: str, library: str, pipeline: str) -> str:
    lines = ["---", f"library_name: {library}", f"pipeline_tag: {pipeline}"]
    if base.count("/") == 1:
        lines.append(f"base_model: {base}")
    return "\n".join([*lines, "tags: [sieve, low-rank, pruning]", "---", ""])


def _made(result: Result, base: str) -> str:
    graph = look(result, "export.accuracy")
    rows = {
        "Base model": base,
        "Kept of the prunable parameters": percent(look(result, "kept_fraction.prunable")),
        "Kept of the whole model": percent(look(result, "kept_fraction.model")),
        "Projection, storage": f"{look(result, 'projection')}, {look(result, 'storage')}",
        "Search": look(result, "search.method"),
        "Quantization": look(result, "quantization.method"),
        f"{metric_name(result).capitalize()} on test, as exported": None
        if graph is None
        else metric_value(result, graph),
        "Seed": look(result, "seed"),
        "Sieve": look(result, "sieve_version"),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items() if value is not None)
    command = look(result, "command")
    shown = f"\n\n    {command}\n" if command else "\n"
    return f"| | |\n|---|---|\n{table}{shown}"
