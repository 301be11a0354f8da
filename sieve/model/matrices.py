"""What can be factorized in an architecture: Linear, Conv1D, fused projections.

The only file, beside `backbone.py`, that knows how architectures are built. Matrices are found by
structure (weight-holding layers inside the repeated decoder blocks), never by model names.
"""

import inspect
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sieve.factorized.modeling_experts import unfold
from sieve.model.structure import TOKENS, Read, expert_of, faults_of, meant_dense, stacked_faults

log = logging.getLogger(__name__)

# Leaf module names in use across architectures -> kind. An unknown leaf is its own kind.
KINDS = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "out_proj": "o",
    "query": "q", "key": "k", "value": "v", "q_lin": "q", "k_lin": "k", "v_lin": "v",
    "gate_proj": "gate", "up_proj": "up", "down_proj": "down",
    "qkv_proj": "qkv", "c_attn": "qkv", "query_key_value": "qkv", "Wqkv": "qkv",
    "gate_up_proj": "gate_up",
    "wq": "q", "wk": "k", "wv": "v", "wo": "o", "wqkv": "qkv",
    "c_fc": "up", "fc1": "up", "fc_in": "up", "dense_h_to_4h": "up", "w1": "gate", "w3": "up",
    "fc2": "down", "fc_out": "down", "dense_4h_to_h": "down", "w2": "down",
}  # fmt: skip


@dataclass(frozen=True)
class Matrix:
    """One prunable weight, y = W x with W of shape (d_out, d_in).

    `source` names the first matrix that reads the same input (itself when it reads alone): moments
    of an input are kept once, under that name. `tied`: the weight is the embedding table's, which
    stays, so that factors come on top of it. `members`: of a group of siblings (`siblings`), the
    matrices whose outputs follow each other in its own. `expert`: the path of the expert that it
    is part of, which sees no tokens but those routed to it.
    """

    name: str
    d_out: int
    d_in: int
    kind: str
    layer: int | None
    has_bias: bool
    source: str
    tied: bool = False
    members: tuple[str, ...] = ()
    expert: str | None = None

    @property
    def size(self) -> int:
        """Number of weights of the dense matrix."""
        return self.d_out * self.d_in


def dense_weight(module: nn.Module) -> Tensor:
    """The weight of a Linear or Conv1D as W (d_out, d_in), a view without a copy."""
    if isinstance(module, Conv1D):
        return module.weight.T
    if isinstance(module, nn.Linear):
        return module.weight
    raise ValueError(f"got a {type(module).__name__}, expected a Linear or Conv1D layer.")


def dense_like(module: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A new dense layer of the same class as `module` with W = weight (d_out, d_in)."""
    d_out, d_in = weight.shape
    with torch.device("meta"):
        if isinstance(module, Conv1D):
            dense: nn.Module = Conv1D(d_out, d_in)
            weight = weight.T
        else:
            dense = nn.Linear(d_in, d_out, bias=bias is not None)
    dense.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        dense.bias = nn.Parameter(bias, requires_grad=False)
    return dense


def kind_of(name: str) -> str:
    """Kind of a matrix from its module path: `q k v o gate up down qkv gate_up`, or the leaf."""
    *parents, leaf = name.split(".")
    if leaf in KINDS:
        return KINDS[leaf]
    block = parents[-1].lower() if parents else ""
    if leaf in ("c_proj", "dense"):  # GPT-2 and others name both output projections alike.
        if block == "intermediate":  # BERT's, whose attention ends in a block of its own.
            return "up"
        return "o" if any("att" in part.lower() for part in parents[-2:]) else "down"
    return leaf if not leaf.isdigit() else f"{block}.{leaf}".lstrip(".")


def layer_of(name: str) -> int | None:
    """Index of the decoder block in a module path: its first number."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def block_of(name: str) -> str:
    """Module path of the decoder block that holds a matrix: up to its first number, or itself."""
    parts = name.split(".")
    end = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[: end + 1])


def blocks_of(matrices: list[Matrix]) -> dict[str, list[Matrix]]:
    """Matrices by the decoder block that holds them, in order; the output head is in none."""
    blocks: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        if matrix.layer is not None:
            blocks.setdefault(block_of(matrix.name), []).append(matrix)
    return blocks


def block_paths(model: PreTrainedModel) -> list[str]:
    """Module paths of the decoder blocks, in order, found without a forward pass."""
    unfold(model)
    return list(dict.fromkeys(block_of(name) for name in _layers_in_blocks(model)))


def siblings(matrices: list[Matrix]) -> list[Matrix]:
    """Groups of matrices that read one input, each as the one matrix of all their rows."""
    readers: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        readers.setdefault(matrix.source, []).append(matrix)
    return [
        Matrix(
            "+".join([group[0].name, *(m.name.split(".")[-1] for m in group[1:])]),
            sum(m.d_out for m in group),
            group[0].d_in,
            "+".join(m.kind for m in group),
            group[0].layer,
            group[0].has_bias,
            source,
            members=tuple(m.name for m in group),
        )
        for source, group in readers.items()
        if len(group) > 1 and len({m.has_bias for m in group}) == 1
    ]


def find_matrices(model: PreTrainedModel, head: bool = False) -> list[Matrix]:
    """List the prunable matrices in module order, siblings tied to a common input.

    head: the output head too, as the last, with `layer` None.

    Prunable is every Linear or Conv1D inside a repeated block that reads every token exactly once
    per forward pass, and those of experts, which are unfolded in place where transformers stacks
    them (`modeling_experts.py`); embeddings, the output head and routers are not. What cannot be
    factorized is named in one warning per model (`unsupported`). Raises ValueError when nothing
    can.
    """
    unfold(model)
    heads = _head(model) if head else {}
    candidates = _layers_in_blocks(model) | heads
    inputs = _observe_inputs(model, candidates)
    faults = faults_of(model, candidates, inputs)
    if model not in _warned:
        _warned.add(model)
        _warn(faults | stacked_faults(model))
    aside = faults.keys() | meant_dense(model, candidates)
    sources: dict[tuple[int, int], str] = {}
    matrices = []
    for name, module in candidates.items():
        if name in aside:
            continue
        d_out, d_in = dense_weight(module).shape
        expert = expert_of(model, name)
        source = name if expert else sources.setdefault(inputs[name][0].tensor, name)
        bias = getattr(module, "bias", None) is not None
        kind = "head" if name in heads else kind_of(name)
        tied = name in heads and shares_embedding(model)
        matrices.append(
            Matrix(
                name,
                d_out,
                d_in,
                f"expert_{kind}" if expert else kind,
                layer_of(name),
                bias,
                source,
                tied,
                expert=expert,
            )  # fmt: skip
        )
    if not matrices:
        raise ValueError(
            f"{type(model).__name__} has no prunable matrix: no Linear or Conv1D layer inside a "
            "repeated block was found; choose a model that is made of such blocks."
        )
    return matrices


_warned: WeakSet[nn.Module] = WeakSet()


def unsupported(model: PreTrainedModel) -> dict[str, str]:
    """What of a model's blocks cannot be factorized: path of the module -> why."""
    unfold(model)
    candidates = _layers_in_blocks(model)
    faults = faults_of(model, candidates, _observe_inputs(model, candidates))
    return faults | stacked_faults(model)


def check_supported(model: PreTrainedModel, allow_partial: bool) -> None:
    """ValueError where a part of the blocks cannot be factorized, unless that is allowed."""
    faults = {} if allow_partial else unsupported(model)
    if faults:
        name = next(iter(faults))
        others = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise ValueError(
            f"{name}{others} of {type(model).__name__} cannot be factorized: {faults[name]}; set "
            "model.allow_partial=true to leave such parts dense and go on."
        )


def _layers_in_blocks(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Linear and Conv1D layers under a number in their path, but neither embedding nor head."""
    outside = [model.get_output_embeddings()]
    with suppress(NotImplementedError):  # A custom model may not say where its embedding is.
        outside.append(model.get_input_embeddings())
    weights = {id(getattr(module, "weight", None)) for module in outside if module is not None}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and layer_of(name) is not None
        and id(module.weight) not in weights
    }


def shares_embedding(model: PreTrainedModel) -> bool:
    """Whether the output head, as it stands, is the table of the input embedding."""
    head = getattr(model.get_output_embeddings(), "weight", None)
    with suppress(NotImplementedError):
        return head is not None and head is model.get_input_embeddings().weight
    return False


def _head(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The output head by name; ValueError where there is none that can be factorized."""
    found = model.get_output_embeddings()
    if not isinstance(found, nn.Linear | Conv1D):
        raise ValueError(
            f"{type(model).__name__} has no linear output head to factorize; set "
            "projection.prune_head=false."
        )
    return {name: module for name, module in model.named_modules() if module is found}


@torch.inference_mode(False)  # Inference tensors have no versions.
@torch.no_grad()
def _observe_inputs(model: PreTrainedModel, modules: dict[str, nn.Module]) -> dict[str, list[Read]]:
    """Run a few tokens and note what each module reads: equal `tensor`, same values."""
    seen: dict[str, list[Read]] = {name: [] for name in modules}
    keep_alive: list[Tensor] = []  # An id is unique only while its tensor lives.

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            keep_alive.append(x)
            seen[name].append(Read((id(x), x._version), x.numel() // x.shape[-1]))

        return hook

    handles = [
        module.register_forward_pre_hook(watch(name), with_kwargs=True)
        for name, module in modules.items()
    ]
    training = model.training
    try:
        vocabulary = getattr(model.config.get_text_config(), "vocab_size", 1)
        tokens = (torch.arange(TOKENS, device=model.device) % vocabulary)[None]
        known = inspect.signature(model.forward).parameters
        options = {"use_cache": False} if "use_cache" in known else {}
        model.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens), **options)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return seen


def _warn(faults: dict[str, str]) -> None:
    """Say which modules inside the blocks stay dense, and why the first does."""
    if faults:
        names = sorted(faults)
        more = f", and so do {', '.join(names[1:4])}{', ...' * (len(names) > 4)}" * (len(names) > 1)
        log.warning("%s stays dense (%s)%s.", names[0], faults[names[0]], more)
