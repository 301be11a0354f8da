"""What the demo's model takes on disk in every export format, which README shows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import sieve
from experiments import figures
from experiments.jobs import Job, composed, run_here
from sieve import stages
from sieve.config import QuantizationConfig
from sieve.exports.loading import load
from sieve.quantization import quantize
from sieve.stages.export import export_accuracy

CLAIM, DEMO = "elsewhere", "demo"
FORMS = ("factorized", "gguf", "onnx", "onnx_int8")  # export=dense has no place for its biases
INT8 = "int8"  # factors in 8 bits
ROUNDED = (INT8, "onnx_int8")  # scored again on all test rows
SERVE = "vllm serve small --model-impl transformers --trust-remote-code"
TASKS = "python -m sieve.exports.lm_eval_task tasks +task=sst2"
OPENAI = "python -m sieve.serve.completions small --trust-remote-code"
ROWS = (  # engine, command, form, what is lost (empty: measured)
    ("transformers, PEFT", 'sieve.load("small")', "factorized", "nothing"),
    ("vLLM", SERVE, "factorized", "nothing"),
    ("torchao, vLLM", "quantization=int8", INT8, ""),
    ("llama.cpp", "export=gguf", "gguf", "all but removed parts"),
    ("ONNX Runtime, onnxruntime-genai", "export=onnx", "onnx", "16-bit storage"),
    ("ONNX Runtime", "export=onnx_int8", "onnx_int8", ""),
    ("any other", "export=dense", "dense", "all savings"),
    ("OpenAI clients", OPENAI, "factorized", "nothing"),
    ("lm-evaluation-harness", TASKS, "factorized", "nothing"),
)
WEIGHTS = ("*.safetensors", "*.gguf", "*.onnx", "*.onnx.data")


def jobs() -> list[Job]:
    """The demo run, whose model is then written in every format."""
    return [Job(CLAIM, (), "call", f"{__name__}:measure")]


def measure(out: Path) -> dict[str, Any]:
    """Bytes of weights by format, and the accuracy of those in 8 bits."""
    folder = out / CLAIM / DEMO
    result = run_here(DEMO, out, folder, ["export=factorized", "speed.enabled=false"])
    exports = {name: {"bytes": size} for name, size in written(folder, result).items()}
    with stages.opened(composed([f"+experiment={DEMO}"], out), folder) as run:
        for name in ROUNDED:
            model, _ = load(folder / name)
            exports[name]["accuracy"] = export_accuracy(model, run)
    return {
        "exports": exports,
        "accuracy": result["pruned"]["accuracy"],
        "rows": result["examples"],
        "dense_bytes": result["bytes"]["dense"],
    }


def written(folder: Path, result: Mapping[str, Any]) -> dict[str, int]:
    """Write the export of a run in every format; the bytes of their files of weights."""
    model, tokenizer = load(folder / "export")
    for form in FORMS:
        sieve.export(model, tokenizer, folder / form, form, torch.float16)
    names = [matrix["name"] for matrix in result["matrices"]]
    quantize(model, names, QuantizationConfig(INT8), torch.float16)
    sieve.export(model, tokenizer, folder / INT8, dtype=torch.float16)
    return {name: weight_bytes(folder / name) for name in (*FORMS, INT8)}


def weight_bytes(folder: Path) -> int:
    """Bytes of the files of weights in a folder."""
    return sum(file.stat().st_size for kind in WEIGHTS for file in folder.glob(kind))


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """As measured; accuracies as shares of the test rows."""
    [result] = results.values()
    exports = {
        name: export | {"accuracy": figures.share(export["accuracy"], result["rows"])}
        if "accuracy" in export
        else export
        for name, export in result["exports"].items()
    }
    accuracy = figures.share(result["accuracy"], result["rows"])
    return {"exports": exports, "accuracy": accuracy, "dense_bytes": result["dense_bytes"]}


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """A row per engine: what to type, megabytes of weights, and what is lost."""
    exports, before = summary["exports"], summary["accuracy"]["value"]
    size = {name: export["bytes"] for name, export in exports.items()}
    size["dense"] = summary["dense_bytes"]
    lost = {
        name: f"{100 * (before - exports[name]['accuracy']['value']):.1f} points"
        for name in ROUNDED
    }
    rows = [
        [engine, f"`{command}`", f"{size[form] / 1e6:.1f}", lost.get(form, why)]
        for engine, command, form, why in ROWS
    ]
    return {CLAIM: figures.markdown(["engine", "command", "MB", "lost"], rows)}
