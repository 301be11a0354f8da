"""The speed of pruned models relative to the dense one, and the break-even rank.

    python -m experiments.speed                                    # all of it, about half an hour
    python -m experiments.speed --subjects embedded --engines eager --batches 8

Prefill of 128 tokens per row and greedy decoding at uniform levels, dense and pruned alternately,
with the default rank rounding. Figures are medians of paired ratios. Factors are random, because
speed depends on shapes alone. With one thread on a CPU, processor time is measured, which excludes
other processes. Results are added to `speed.json`; figure and tables are rewritten. On a GPU,
layers with the shapes of Llama-3.1-8B are timed in bfloat16 as well; that part has not been run
yet.
"""

import argparse
import copy
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import sieve
from experiments.running import FOLDER, SHARED
from experiments.speed_summary import RECORDS, write
from sieve.bank.genome import Sizing, get_storage
from sieve.bank.pivoting import Pivoted
from sieve.bank.switch import pivoted_layer
from sieve.config import ProjectionConfig, QuantizationConfig
from sieve.evaluation.speed import describe_machine
from sieve.factorized.modeling_layers import FactorizedLinear
from sieve.model.matrices import Matrix, find_matrices
from sieve.quantization import quantize

EMBEDDED = FOLDER.parent / "sieve/assets/embedded"
LEVELS = (0.95, 0.75, 0.5, 0.25, 0.1)
PROMPT, STEPS = 128, 16
MULTIPLE = ProjectionConfig.rank_multiple
SHAPES = ((256, 256), (688, 256), (256, 688), (768, 768), (2048, 768), (768, 2048))
LLAMA_8B = ((4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336))
TOKENS = (1, 8, 1024)
AS_QUICK = 1.03  # of the dense layer's time: counts as no slower
Works = dict[Any, Callable[[], object]]


def main() -> None:
    """Measure, and write JSON, figure and tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--subjects", default="embedded,reader-6m,random-91m")
    parser.add_argument("--engines", default="eager,int8,compile,onnx,onnx_int8")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--levels", default="0.95,0.75,0.5,0.25,0.1")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--break-even", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    path = FOLDER / "speed.json"
    found = json.loads(path.read_text()) if path.exists() else {RECORDS: [], "break_even": []}
    levels = [float(level) for level in arguments.levels.split(",")]
    found["machine"] = describe_machine(torch.device("cpu"))
    for subject in arguments.subjects.split(","):
        model = load(subject)
        if model is None:
            logging.info("skipping %s: its model does not exist", subject)
            continue
        for engine in arguments.engines.split(","):
            batches = [int(batch) for batch in arguments.batches.split(",")]
            for batch in batches if engine == "eager" else [8]:
                records = measure(subject, model, engine, batch, levels, arguments.repeats)
                keep(found, records)
                path.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.break_even:
        found["break_even"] = [break_even(*shape, n) for shape in SHAPES for n in TOKENS]
    if torch.cuda.is_available():
        found["llama_8b_layers"] = [time_layer(*shape, n) for shape in LLAMA_8B for n in TOKENS]
    path.write_text(json.dumps(found, indent=1) + "\n")
    write(found)


def keep(found: dict[str, Any], records: list[dict[str, Any]]) -> None:
    """Replace older records with the same settings."""

    def setting(record: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(record[key] for key in ("subject", "engine", "batch", "storage", "level"))

    held = {setting(record): record for record in found[RECORDS]}
    held |= {setting(record): record for record in records}
    found[RECORDS] = [held[key] for key in sorted(held, key=str)]
    for record in records:
        logging.info(json.dumps(record))


def load(subject: str) -> Any:
    """A dense model in float32; None if its folder does not exist."""
    if subject == "random-91m":
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=12,
            num_attention_heads=12,
            vocab_size=8192,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
        )
        return LlamaForCausalLM(config).eval().requires_grad_(False)
    path = EMBEDDED if subject == "embedded" else SHARED / "models" / subject
    if not path.exists():
        return None
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def measure(
    subject: str, model: Any, engine: str, batch: int, levels: list[float], repeats: int
) -> list[dict[str, Any]]:
    """Speed-up at every level and storage form: prefill, and decoding if the engine has a cache.

    The dense model uses the same engine; int8 is compared with dense float32.
    """
    matrices = find_matrices(model)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (batch, PROMPT), generator=generator)
    settings: list[tuple[str, float]] = [("pivoted", level) for level in levels]
    if engine == "eager":
        settings += [("plain", level) for level in levels]
    models: dict[Any, Any] = {"dense": model}
    models |= {setting: pruned(model, matrices, *setting) for setting in settings}
    if engine == "int8":
        for setting in settings:
            names = [matrix.name for matrix in matrices]
            quantize(models[setting], names, QuantizationConfig("int8"), torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        if engine == "compile":
            models = {name: torch.compile(each) for name, each in models.items()}
        if engine.startswith("onnx"):
            models = {n: _onnx(m, engine, Path(folder) / str(n)) for n, m in models.items()}
        prefill = paired({n: partial(_prefill, m, ids) for n, m in models.items()}, repeats)
        decode = {}
        if engine in ("eager", "int8"):
            decode = paired({n: partial(_decode, m, ids) for n, m in models.items()}, repeats)
    dense = flops(model, matrices, batch, {}, "plain")
    records = []
    for storage, level in settings:
        ranks = {m.name: Sizing(storage, MULTIPLE).rank(m, level) for m in matrices}
        kept = flops(model, matrices, batch, ranks, storage) / dense
        records.append(
            {
                "subject": subject,
                "engine": engine,
                "batch": batch,
                "storage": storage,
                "level": level,
                "kept_flops": round(kept, 4),
                "prefill": round(prefill[storage, level], 3),
                "decode": round(decode[storage, level], 3) if decode else None,
            }
        )
    return records


def pruned(model: Any, matrices: list[Matrix], storage: str, level: float) -> Any:
    """A copy of the model with factorized matrices at the ranks of a level."""
    small = copy.deepcopy(model)
    for matrix in matrices:
        rank = Sizing(storage, MULTIPLE).rank(matrix, level)
        if rank is not None:
            weight = model.get_submodule(matrix.name).weight
            small.set_submodule(matrix.name, made_up(weight, rank, storage))
    return small


def made_up(weight: Tensor, rank: int, storage: str) -> FactorizedLinear:
    """A factorized layer with random factors of the same scale as fitted ones."""
    d_out, d_in = weight.shape
    generator = torch.Generator().manual_seed(rank)
    chosen = torch.randperm(d_out, generator=generator).to(weight.device)
    rows = weight[chosen[torch.arange(rank) % d_out]].detach()
    mixed = d_out - rank if storage == "pivoted" else d_out
    mix = torch.randn(mixed, rank, generator=generator) / max(rank, 1) ** 0.5
    mix = mix.to(weight.device, weight.dtype)
    if storage == "pivoted" and rank:
        order = torch.argsort(chosen).int()
        return pivoted_layer(Pivoted(rows, mix, order, None, None), weight.dtype)
    layer = FactorizedLinear(d_in, d_out, rank, bias=False).eval()
    layer.factor_in.weight = nn.Parameter(rows.contiguous(), requires_grad=False)
    layer.factor_out.weight = nn.Parameter(mix, requires_grad=False)
    return layer


def flops(
    model: Any, matrices: list[Matrix], batch: int, ranks: dict[str, int | None], storage: str
) -> int:
    """Floating-point operations of the timed prefill, two per multiply-add.

    Counts all matrices for every token, the head for the last token of each row, and attention over
    all pairs of positions; not norms, activations and rotations.
    """
    config, tokens, sizing = model.config, batch * PROMPT, Sizing(storage)
    kept = sum(sizing.kept(matrix, ranks.get(matrix.name)) for matrix in matrices)
    head_size = (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    attention = config.num_hidden_layers * PROMPT * config.num_attention_heads * head_size
    return 2 * tokens * (kept + 2 * attention) + 2 * batch * config.vocab_size * config.hidden_size


def _onnx(model: Any, engine: str, folder: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    return sieve.load(sieve.export(model, tokenizer, folder, engine))[0]


@torch.inference_mode()
def _prefill(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False, logits_to_keep=1).logits


@torch.inference_mode()
def _decode(model: Any, ids: Tensor) -> float:
    """Seconds of greedy decoding steps, without the prefill."""
    out = model(input_ids=ids[:, :8], use_cache=True)
    start = _now()
    for _ in range(STEPS):
        out = model(input_ids=out.logits[:, -1:].argmax(-1), cache=out.cache, use_cache=True)
    return _now() - start


def paired(works: Works, repeats: int) -> dict[Any, float]:
    """Median speed-ups over the dense model, measured alternately after a warm-up."""
    seconds: dict[Any, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            start = _now()
            told = work()
            spent = told if isinstance(told, float) else _now() - start
            if repeat:
                seconds[name].append(spent)
    dense = seconds.pop("dense")
    return {
        name: statistics.median(a / b for a, b in zip(dense, own, strict=True))
        for name, own in seconds.items()
    }


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def break_even(d_out: int, d_in: int, tokens: int) -> dict[str, Any]:
    """The largest rank at which a pivoted layer is no slower, found by bisection."""
    low, high = 0, min(d_out, d_in)
    while low < high:
        middle = (low + high + 1) // 2
        if 1 / layer_ratio(d_out, d_in, tokens, middle) <= AS_QUICK:
            low = middle
        else:
            high = middle - 1
    kept = low * (d_out + d_in - low) / (d_out * d_in)
    return {"d_out": d_out, "d_in": d_in, "tokens": tokens, "rank": low, "kept": round(kept, 3)}


def time_layer(d_out: int, d_in: int, tokens: int) -> dict[str, Any]:
    """Speed-up of one pivoted layer by level."""
    sizing = Sizing("pivoted", MULTIPLE)
    largest = [get_storage("pivoted").largest_rank(d_out, d_in, n * d_out * d_in) for n in LEVELS]
    ranks = [sizing.rounded(rank) for rank in largest]
    return {
        "d_out": d_out,
        "d_in": d_in,
        "tokens": tokens,
        "speed_up": {
            f"{level:g}": round(layer_ratio(d_out, d_in, tokens, rank), 3)
            for level, rank in zip(LEVELS, ranks, strict=True)
        },
    }


@torch.inference_mode()
def layer_ratio(d_out: int, d_in: int, tokens: int, rank: int) -> float:
    """Speed-up of a pivoted layer of a rank over the dense layer."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.inference_mode(False), torch.no_grad():
        dense = nn.Linear(d_in, d_out, bias=False, device=device, dtype=dtype).eval()
        layer = made_up(dense.weight, rank, "pivoted")
    x = torch.randn(tokens, 1, d_in, device=device, dtype=dtype)
    rounds = max(1, 2_000_000_000 // (tokens * d_out * d_in * 20 + 4_000_000))

    works = {
        "dense": partial(_repeat, dense, x, rounds),
        "pivoted": partial(_repeat, layer, x, rounds),
    }
    return paired(works, 9)["pivoted"]


def _repeat(module: nn.Module, x: Tensor, rounds: int) -> None:
    for _ in range(rounds):
        module(x)


if __name__ == "__main__":
    main()
