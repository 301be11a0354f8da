"""The prunable matrices of a model: Linear, Conv1D and fused projections in its decoder blocks.

This folder alone knows how architectures are built, and it finds matrices by structure (layers with
weights inside repeated decoder blocks), never by model names.
"""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sieve.factorized.modeling_experts import unfold
from sieve.model.observation import Observation, observe
from sieve.model.structure import Layer, expert_of, faults_of, meant_dense
from sieve.model.units import has_neurons, owner_of, writers_of

log = logging.getLogger(__name__)

# The last part of a layer's path -> kind. A name that is not listed is its own kind.
KINDS = {
    leaf: kind
    for kind, leaves in {
        "q": "q_proj query q_lin wq",
        "k": "k_proj key k_lin wk",
        "v": "v_proj value v_lin wv",
        "qkv": "qkv_proj c_attn query_key_value Wqkv wqkv",
        "o": "o_proj out_proj wo",
        "gate": "gate_proj w1",
        "up": "up_proj c_fc fc1 fc_in dense_h_to_4h w3",
        "gate_up": "gate_up_proj",
        "down": "down_proj fc2 fc_out dense_4h_to_h w2",
    }.items()
    for leaf in leaves.split()
}


@dataclass(frozen=True)
class Matrix:
    """One prunable weight, y = W x with W of shape (d_out, d_in)."""

    name: str  # path of its module
    d_out: int
    d_in: int
    kind: str
    layer: int | None  # index of its decoder block; None for the embedding and the output head
    has_bias: bool
    source: str  # the first matrix that reads the same input; moments are kept under this name
    tied: bool = False  # embedding and head share the weight: factors of one leave it in the other
    members: tuple[str, ...] = ()  # matrices whose rows are stacked in this one, see `siblings`
    expert: str | None = None  # path of its expert, which sees only the tokens routed to it
    feeds: str | None = None  # the matrix that all its output passes through, see `units.py`
    owner: str | None = None  # path of the module that computes this matrix's output and no more
    owner_results: int = 0  # length of the tuple that the owner returns; 0: the output alone
    reads_neurons: bool = False  # each number that it reads comes from rows of its own, `units.py`
    neurons: bool = False  # its rank is how many neurons its members keep, see `narrowed`
    written: int = 0  # of such a group: d_out of the member that writes

    @property
    def size(self) -> int:
        """Number of weights of the dense matrix."""
        return self.d_out * self.d_in

    @property
    def outputs(self) -> int:
        """Numbers that the model gets from it: the length of its bias."""
        return self.written or self.d_out


def dense_weight(module: nn.Module) -> Tensor:
    """The weight of a Linear or Conv1D as W (d_out, d_in), a view without a copy."""
    if isinstance(module, Conv1D):
        return module.weight.T
    if isinstance(module, nn.Linear):
        return module.weight
    if isinstance(module, nn.Embedding):
        return module.weight.T
    raise ValueError(f"got a {type(module).__name__}, expected a Linear, Conv1D or Embedding.")


def dense_like(module: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A new dense layer of the same class as `module` with W = weight (d_out, d_in)."""
    d_out, d_in = weight.shape
    with torch.device("meta"):
        if isinstance(module, Conv1D):
            dense: nn.Module = Conv1D(d_out, d_in)
            weight = weight.T
        elif isinstance(module, nn.Embedding):
            dense, weight = nn.Embedding(d_in, d_out), weight.T
        else:
            dense = nn.Linear(d_in, d_out, bias=bias is not None)
    dense.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        dense.bias = nn.Parameter(bias, requires_grad=False)
    return dense


def kind_of(name: str) -> str:
    """Kind of a matrix by its module path: `q k v o gate up down qkv gate_up`, or the last part."""
    *parents, leaf = name.split(".")
    if leaf in KINDS:
        return KINDS[leaf]
    block = parents[-1].lower() if parents else ""
    if leaf in ("c_proj", "dense"):  # GPT-2 and others give both output projections one name.
        if block == "intermediate":  # In BERT this is the first layer of the feed-forward network.
            return "up"
        return "o" if any("att" in part.lower() for part in parents[-2:]) else "down"
    return leaf if not leaf.isdigit() else f"{block}.{leaf}".lstrip(".")


def layer_of(name: str) -> int | None:
    """Index of the decoder block in a module path: its first number."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def block_of(name: str) -> str:
    """Path of the decoder block in a module path: up to its first number, or the whole path."""
    parts = name.split(".")
    end = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[: end + 1])


def blocks_of(matrices: list[Matrix]) -> dict[str, list[Matrix]]:
    """Matrices by the path of their decoder block, in order, without the output head."""
    blocks: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        if matrix.layer is not None:
            blocks.setdefault(block_of(matrix.name), []).append(matrix)
    return blocks


def block_paths(model: PreTrainedModel) -> list[str]:
    """Paths of the decoder blocks, in order, found without a forward pass."""
    unfold(model)
    return list(dict.fromkeys(block_of(name) for name in _layers_in_blocks(model)))


def find_matrices(
    model: PreTrainedModel, head: bool = False, embedding: bool = False
) -> list[Matrix]:
    """List the prunable matrices in module order.

    Prunable is every Linear or Conv1D inside a repeated block that reads each token exactly once in
    a forward pass, and every matrix of an expert: stacked experts are unfolded in place
    (`modeling_experts.py`). Routers, the embedding and the output head are not, unless asked for.
    One warning per model names the layers that cannot be factorized (see `unsupported`).

    Args:
        head: list the output head too, as the last matrix, with `layer` None.
        embedding: list the input embedding too, as the first matrix, with `layer` None. Its inputs
            are one-hot vectors of tokens.

    Raises:
        ValueError: the model has no prunable matrix, or an embedding that cannot be factorized.
    """
    unfold(model)
    heads = _head(model) if head else {}
    layers = _layers_in_blocks(model) | heads
    observation = _observe(model, layers)
    reads = observation.reads
    faults = faults_of(model, layers, reads)
    if model not in _warned:
        _warned.add(model)
        _warn(faults)
    dense = faults.keys() | meant_dense(model, layers)
    sources: dict[tuple[int, int], str] = {}
    matrices = []
    for name, layer in layers.items():
        if name in dense:
            continue
        d_out, d_in = dense_weight(layer).shape
        expert = expert_of(model, name)
        kind = "head" if name in heads else kind_of(name)
        matrices.append(
            Matrix(
                name=name,
                d_out=d_out,
                d_in=d_in,
                kind=f"expert_{kind}" if expert else kind,
                layer=layer_of(name),
                has_bias=getattr(layer, "bias", None) is not None,
                source=name if expert else sources.setdefault(reads[name][0].tensor, name),
                tied=name in heads and shares_embedding(model),
                expert=expert,
            )
        )
    if not matrices:
        raise ValueError(
            f"{type(model).__name__} has no prunable matrix: it has no Linear or Conv1D layer in a "
            "repeated block; choose a model with such blocks."
        )
    first = [_embedding(model, head)] if embedding else []
    return first + _in_units(model, matrices, observation)


_warned: WeakSet[nn.Module] = WeakSet()


def unsupported(model: PreTrainedModel) -> dict[str, str]:
    """Layers of the blocks that cannot be factorized: path -> reason."""
    unfold(model)
    layers = _layers_in_blocks(model)
    return faults_of(model, layers, _observe(model, layers).reads)


def check_supported(model: PreTrainedModel, allow_partial: bool) -> None:
    """ValueError if a layer of the blocks cannot be factorized, unless `allow_partial`."""
    faults = {} if allow_partial else unsupported(model)
    if faults:
        name = next(iter(faults))
        others = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise ValueError(
            f"{name}{others} of {type(model).__name__} cannot be factorized: {faults[name]}; set "
            "model.allow_partial=true to leave such layers dense."
        )


def _layers_in_blocks(model: PreTrainedModel) -> dict[str, Layer]:
    """Linear and Conv1D layers with a number in their path, except the embedding and the head."""
    outside = [model.get_output_embeddings()]
    with suppress(NotImplementedError):  # A custom model may not say where its embedding is.
        outside.append(model.get_input_embeddings())
    weights = {id(getattr(module, "weight", None)) for module in outside if module is not None}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Layer)
        and layer_of(name) is not None
        and id(module.weight) not in weights
    }


def shares_embedding(model: PreTrainedModel) -> bool:
    """Whether the weight of the output head is the input embedding."""
    head = getattr(model.get_output_embeddings(), "weight", None)
    with suppress(NotImplementedError):
        return head is not None and head is getattr(model.get_input_embeddings(), "weight", None)
    return False


def _embedding(model: PreTrainedModel, head: bool) -> Matrix:
    """The input embedding; ValueError if it cannot be factorized, or the head needs it whole."""
    [(name, table)] = [
        (name, m) for name, m in model.named_modules() if m is model.get_input_embeddings()
    ]
    tied, advice = shares_embedding(model), "set projection.prune_embedding=false"
    if type(table) is not nn.Embedding:
        raise ValueError(
            f"the embedding of {type(model).__name__} is a {type(table).__name__}, expected an "
            f"Embedding; {advice}."
        )
    if tied and not head:
        raise ValueError(
            f"the output head of {type(model).__name__} shares the embedding's weight, so it has "
            f"to be factorized too; set projection.prune_head=true, or {advice}."
        )
    tokens, width = table.weight.shape
    if tokens < width:
        raise ValueError(
            f"the embedding has {tokens} tokens of {width} numbers, expected more tokens than "
            f"numbers; {advice}."
        )
    return Matrix(name, width, tokens, "embedding", None, False, source=name, tied=tied)


def _head(model: PreTrainedModel) -> dict[str, Layer]:
    """The output head by name; ValueError if there is none that can be factorized."""
    head = model.get_output_embeddings()
    if not isinstance(head, Layer):
        raise ValueError(
            f"{type(model).__name__} has no linear output head to factorize; set "
            "projection.prune_head=false."
        )
    return {name: head for name, module in model.named_modules() if module is head}


def _observe(model: PreTrainedModel, layers: Mapping[str, Layer]) -> Observation:
    paths = dict.fromkeys(block_of(name) for name in layers if layer_of(name) is not None)
    return observe(model, layers, paths)


def _in_units(
    model: PreTrainedModel, matrices: list[Matrix], observation: Observation
) -> list[Matrix]:
    """The matrices with their writers, and the writers with the modules that they end."""
    single = [m for m in matrices if m.layer is not None and not m.expert]
    writers = writers_of(observation, {m.name: block_of(m.name) for m in single})
    owners = {w: owner_of(model, observation, w, writers) for w in set(writers.values())}
    united = []
    for matrix in matrices:
        owner = owners.get(matrix.name)
        feeders = [name for name, writer in writers.items() if writer == matrix.name]
        united.append(
            replace(
                matrix,
                feeds=writers.get(matrix.name),
                owner=owner.path if owner else None,
                owner_results=owner.results if owner else 0,
                reads_neurons=has_neurons(model, observation, matrix.name, owner, feeders),
            )
        )
    return united


def _warn(faults: dict[str, str]) -> None:
    """Name the layers inside the blocks that stay dense, with the reason of the first."""
    if faults:
        first, *others = sorted(faults)
        more = f", and so do {', '.join(others[:3])}{', ...' * (len(others) > 3)}" if others else ""
        log.warning("%s stays dense (%s)%s.", first, faults[first], more)
