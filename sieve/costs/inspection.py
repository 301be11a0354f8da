"""`inspect=true`: a table of a model's matrices, from its configuration alone.

The model is built of tensors without numbers: seconds for any size, and no download beyond
`config.json`.
"""

import re
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from sieve.bank.genome import Sizing
from sieve.config import Config, ModelConfig
from sieve.model.backbone import auto_class, count_parameters, find_model, loaded_config
from sieve.model.matrices import Matrix, find_matrices, unsupported
from sieve.runtime.artifacts import write_json_atomic

NAME = "matrices.json"
FUSED = ("qkv", "gate_up", "expert_gate_up")


def inspect(config: Config, run_dir: Path) -> RenderableType:
    """Write `matrices.json` to a run's directory; returns the table to show.

    Raises ValueError where the model has no configuration, cannot be built, or nothing to prune.
    """
    with FakeTensorMode():
        model = build_without_weights(config)
        matrices = find_matrices(model, config.projection.prune_head)
        faults = unsupported(model)
    sizing = Sizing(config.projection.storage, config.projection.rank_multiple)
    record = {
        "model": config.model.label,
        "shapes": known_config(config.model)[1],
        "parameters": count_parameters(model),
        "prunable": sum(matrix.size for matrix in matrices),
        "storage": config.projection.storage,
        "matrices": [row(matrix, sizing) for matrix in matrices],
        "unsupported": faults,
    }
    write_json_atomic(run_dir / NAME, record)
    return _table(record)


def build_without_weights(config: Config) -> PreTrainedModel:
    """The model of a run under the FakeTensorMode at hand, parameters tied as they would be."""
    found, _ = known_config(config.model)
    try:
        model: PreTrainedModel = auto_class(found).from_config(
            found, trust_remote_code=config.model.trust_remote_code
        )
    except (AttributeError, ImportError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"the model of {config.model.path!r} could not be built as its config.json says "
            f"({reason}); check model.path."
        ) from error
    model.tie_weights()
    return model.eval()


def known_config(model: ModelConfig) -> tuple[PreTrainedConfig, str]:
    """A model's configuration without its weights, and where it comes from, in words.

    That of its config.json, on the Hub too; where `model.architecture` states shapes of this very
    path, and config.json is not on this machine, they are taken and nothing is fetched.
    Raises ValueError where neither is to be had, or the shapes do not hold.
    """
    options = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    stated = dict(model.architecture)
    if stated.pop("of", model.path) == model.path and stated:
        with suppress(OSError, ValueError, KeyError):
            path = find_model(model.path, weights=False)
            found = AutoConfig.from_pretrained(path, local_files_only=True, **options)
            return found, "by its config.json"
        try:
            made = AutoConfig.for_model(stated.pop("model_type"), **stated)
        except (KeyError, TypeError, ValueError) as error:
            known = stated.get("model_type", model.architecture.get("model_type"))
            raise ValueError(
                f"model.architecture of {model.label} does not hold (model_type {known!r}), "
                "expected what its config.json says; mend it."
            ) from error
        return made, f"as model.architecture of {model.label} states them"
    try:
        return loaded_config(model, find_model(model.path, weights=False)), "by its config.json"
    except ValueError as error:
        raise ValueError(
            f"{str(error).removesuffix('.')}, or state its shapes as model.architecture, as "
            "conf/model/llama3_1_8b.yaml does."
        ) from error


def row(matrix: Matrix, sizing: Sizing) -> dict[str, Any]:
    """What there is to know of a matrix before anything is computed.

    break_even_rank: the largest rank whose factors hold no more numbers than the dense matrix.
    """
    known = {k: v for k, v in asdict(matrix).items() if k not in ("members", "source")}
    return known | {
        "parameters": matrix.size,
        "break_even_rank": sizing.top_rank(matrix),
        "shares_input_of": None if matrix.source == matrix.name else matrix.source,
        "fused": matrix.kind in FUSED,
    }


def _table(record: dict[str, Any]) -> RenderableType:
    """Rows that differ in their block or expert alone stand there once, with their number."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for entry in record["matrices"]:
        shape = entry["d_out"], entry["d_in"], entry["has_bias"], entry["tied"]
        groups.setdefault((_pattern(entry["name"]), *shape), []).append(entry)
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for name in ("matrix", "kind"):
        table.add_column(name, no_wrap=True)
    for name in ("shape", "number", "params", "break-even"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for (name, *_), rows in groups.items():
        first = rows[0]
        marks = [word for word in ("tied", "fused") if first[word]]
        marks += ["bias"] if first["has_bias"] else []
        if shared := first["shares_input_of"]:
            marks.append(f"with {shared.rpartition('.')[2]}")
        table.add_row(
            name.partition("*.")[2] or name, first["kind"], f"{first['d_out']}×{first['d_in']}",
            f"{len(rows):,}", _short(sum(entry["parameters"] for entry in rows)),
            f"{first['break_even_rank']:,}", ", ".join(marks),
        )  # fmt: skip
    share = record["prunable"] / record["parameters"]
    total = Text(
        f"\n{record['model']}: {_short(record['prunable'])} of {_short(record['parameters'])} "
        f"parameters ({share:.1%}) are prunable, in {len(record['matrices']):,} matrices.",
        style="bold",
    )
    stored = Text(
        f"Break-even: the largest rank whose {record['storage']} factors hold no more than the "
        f"dense matrix; with: reads the same input. Every matrix by its full name: {NAME}. Shapes "
        f"are {record['shapes']}.",
        style="dim",
    )
    told = [
        Text(f"{name} cannot be factorized: {why}.", style="yellow")
        for name, why in list(record["unsupported"].items())[:8]
    ]
    return Group(table, total, stored, *told)


def _short(count: int) -> str:
    """A number of parameters: "1.06 M"."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def _pattern(name: str) -> str:
    """A module path with its numbers blanked."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
