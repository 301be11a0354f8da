"""A model in numbers: operations of its passes, and memory of its activations.

The model is built from its configuration, of tensors without memory, which takes seconds for any
size and downloads nothing but config.json. A product of (m, k) and (k, n) takes 2 m k n operations.
Tests compare the operations with torch's FlopCounterMode, and the memory with what torch saves for
a backward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from sieve.calibration.sums import summed_entries
from sieve.config import ModelConfig
from sieve.model.adapter import find_adapter
from sieve.model.backbone import count_parameters
from sieve.model.checkpoint_files import auto_class, explained_errors, find_model, load_config
from sieve.model.gguf_files import is_gguf
from sieve.model.matrices import Matrix, blocks_of, find_matrices
from sieve.projections.moments import FLOAT32, Needs, gradient_side, plan_streams

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")  # names in configurations
PADDING = 1.05  # tokens of a batch of similar rows with padding, over tokens without


@dataclass(frozen=True)
class Rows:
    """Rows of tokens."""

    count: float
    length: float  # mean tokens of a row
    logits: float = 1.0  # positions of a row at which logits are computed
    padding: float = PADDING
    shared: float = 0.0  # tokens of a prefix before each row, which these passes do not run

    @property
    def tokens(self) -> float:
        """All tokens, without padding."""
        return self.count * self.length


@dataclass(frozen=True)
class Shape:
    """The numbers of a model that its costs depend on."""

    matrices: tuple[Matrix, ...]  # the prunable ones, with the output head if it is pruned
    parameters: int  # of the whole model, shared ones once
    layers: int  # decoder blocks
    hidden: int
    vocabulary: int
    queries: int  # numbers per token and block of the attention's queries, over all heads
    keys: int  # numbers per token and block of its keys
    unprunable: int = 0  # weights of other linear layers that every token passes
    routed: float = 1.0  # mean share of tokens that an expert sees

    @property
    def blocks(self) -> list[Matrix]:
        """The prunable matrices without the head."""
        return [matrix for matrix in self.matrices if matrix.layer is not None]

    @property
    def prunable(self) -> int:
        """Weights of the prunable matrices."""
        return sum(matrix.size for matrix in self.matrices)

    @property
    def embedding(self) -> int:
        """Weights of the embedding, or of the output head."""
        return self.hidden * self.vocabulary

    @property
    def widest(self) -> int:
        """The widest activation within a block, usually the MLP's."""
        return max(max(matrix.d_out, matrix.d_in) for matrix in self.blocks)

    def kept_parameters(self, kept: float) -> float:
        """The parameters of a model that keeps a fraction of the prunable ones."""
        return self.parameters - (1 - kept) * self.prunable

    def share(self, matrix: Matrix) -> float:
        """The share of all tokens that a matrix of a block sees."""
        return self.routed if matrix.expert else 1.0

    def pass_flops(
        self, rows: Rows, kept: float = 1.0, backward: int = 0, again: bool = False
    ) -> float:
        """Operations of a pass over rows.

        Args:
            kept: fraction of the prunable weights.
            backward: how many products a backward pass makes with each matrix: 1 computes gradients
                of activations, 2 also of the factors, 0 means no backward pass.
            again: the backward pass computes every block again (checkpointing).
        """
        once = min(backward, 1)
        weights = kept * sum(matrix.size * self.share(matrix) for matrix in self.blocks)
        weights *= 1 + backward + again
        weights += self.unprunable * (1 + once + again)
        attended = 2 * (rows.length + rows.shared) * self.queries * self.layers
        attended *= 1 + 2 * once + again
        head = rows.count * rows.logits * self.embedding * (1 + once)
        return 2 * (rows.padding * rows.tokens * (weights + attended) + head)

    def moment_flops(self, rows: Rows, needs: Needs, by_gradient: bool) -> float:
        """Operations of the sums of z zᵀ over all tokens."""
        streams = plan_streams(list(self.matrices), needs, shared=not by_gradient)
        flops = 0.0
        for matrix in self.matrices:
            in_block = matrix.kind != "head"
            seen = rows.tokens * self.share(matrix) if in_block else rows.count * rows.logits
            sizes = [streams[matrix.name][1]] if matrix.name in streams else []
            sizes += [gradient_side(matrix)[1]] if needs.gradient else []
            flops += 2 * seen * sum(summed_entries(size) for size in sizes)
        return flops

    def saved_per_token(self) -> float:
        """Numbers per token and block that a pass saves for its backward pass, norms left out.

        Each input once, each output that is not added to the residual stream, the output of the
        activation function, and keys and values repeated for every query's head.
        """
        inputs = {m.source: m.d_in * self.share(m) for m in self.blocks}
        saved = sum(inputs.values()) + 2 * self.layers * (self.queries - self.keys)
        for matrix in self.blocks:
            kind = matrix.kind.removeprefix("expert_")
            width = matrix.d_in * (kind == "down") + matrix.d_out * (kind not in ("o", "down"))
            saved += width * self.share(matrix)
        return saved / self.layers

    def activation_bytes(
        self, tokens: float, itemsize: int, saved_blocks: int = 0, prefix: float = 0.0
    ) -> float:
        """Bytes of the activations of a batch.

        Args:
            saved_blocks: how many blocks save activations for a backward pass.
            prefix: tokens of a shared prefix per token of the batch; its keys and values are
                saved for every row.
        """
        if not saved_blocks:
            return tokens * (itemsize * 3 * (self.widest + self.hidden) + FLOAT32 * self.hidden)
        numbers = self.saved_per_token() + 2 * prefix * self.queries
        block = itemsize * numbers + 2 * FLOAT32 * self.hidden
        return tokens * (saved_blocks * block + itemsize * 2 * self.widest)


def shape_of(
    model: PreTrainedModel, prune_head: bool = False, matrices: Sequence[Matrix] | None = None
) -> Shape:
    """A model in numbers. Its tensors may have no memory.

    matrices: the prunable ones; give them if the tensors are on the meta device.
    """
    matrices = find_matrices(model, prune_head) if matrices is None else list(matrices)
    text = model.config.get_text_config()
    heads = getattr(text, "num_attention_heads", 1)
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    head = model.get_output_embeddings()
    pruned = {head, *(model.get_submodule(matrix.name) for matrix in matrices)}
    linear = (module for module in model.modules() if isinstance(module, nn.Linear))
    active = getattr(text, "num_experts_per_tok", None)
    experts = next((count for name in EXPERTS if (count := getattr(text, name, None))), None)
    return Shape(
        matrices=tuple(matrices),
        parameters=count_parameters(model),
        layers=len(blocks_of(matrices)),
        hidden=text.hidden_size,
        vocabulary=int(text.num_labels or 0) if head is None else head.weight.shape[0],
        queries=heads * width,
        keys=getattr(text, "num_key_value_heads", heads) * width,
        unprunable=sum(layer.weight.numel() for layer in linear if layer not in pruned),
        routed=active / experts if active and experts else 1.0,
    )


def build_without_weights(config: ModelConfig) -> tuple[PreTrainedModel, str]:
    """A model built in the active FakeTensorMode, and in words where its configuration comes from.

    Raises ValueError if there is no configuration, or it describes no model.
    """
    model_config, source = known_config(config)
    with explained_errors(config.path, "model"):
        model: PreTrainedModel = auto_class(model_config).from_config(
            model_config, trust_remote_code=config.trust_remote_code
        )
        model.tie_weights()
    return model.eval(), source


def known_config(model: ModelConfig) -> tuple[PreTrainedConfig, str]:
    """A model's configuration from `model.architecture` if it is stated there, else config.json."""
    if model.adapter:
        find_adapter(model.adapter)
    stated = dict(model.architecture)
    if stated.pop("of", model.path) == model.path and stated:
        model_type = stated.pop("model_type", None)
        try:
            return AutoConfig.for_model(model_type, **stated), "stated in model.architecture"
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"model.architecture of {model.label} is not valid (model_type {model_type!r}); "
                "copy it from the model's config.json."
            ) from error
    try:
        return _read_config(model)
    except ValueError as error:
        raise ValueError(
            f"{str(error).removesuffix('.')}, or state its shapes in model.architecture, as "
            "conf/model/llama3_1_8b.yaml does."
        ) from error


def _read_config(model: ModelConfig) -> tuple[PreTrainedConfig, str]:
    path = find_model(model.path, weights=False)
    origin = "from the GGUF file" if is_gguf(path) else "from its config.json"
    return load_config(model, path), origin
