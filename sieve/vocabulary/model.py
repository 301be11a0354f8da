"""A model with the embeddings and the logits of some tokens, or of all tokens again."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sieve.model.backbone import count_parameters, forward
from sieve.model.matrices import shares_embedding

# Settings that name tokens end like this; each has one id or a list of ids.
ID_ENDINGS = ("_token_id", "_token_ids", "_token_index")
BANS = (
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
)  # A token that left needs none.
OTHER_IDS = ("force_words_ids", "forced_decoder_ids", "sequence_bias")
SIZES = ("vocab_size", "num_embeddings", "out_features")
PROBE = 8  # tokens that show whether the logits stay the same
ROUNDING = 0.05  # of the largest logit


@dataclass(frozen=True)
class _State:
    """What depends on the vocabulary."""

    embedding: Tensor  # (V, d)
    head: Tensor | None  # (V, d); None: the embedding
    bias: Tensor | None  # (V,)
    attributes: list[tuple[object, str, Any]]  # sizes and ids: object, name and value

    @property
    def parameters(self) -> int:
        tensors = (self.embedding, self.head, self.bias)
        return sum(tensor.numel() for tensor in tensors if tensor is not None)


class Vocabulary:
    """Gives a model the rows of some tokens, in place, whose logits stay the same.

    The embeddings of all tokens wait on the CPU, until `whole` or `restore` puts them back.

    Args:
        stays: the old id of each new id, rising.

    Raises:
        ValueError: other weights depend on the tokens, or settings hold ids in a form that Sieve
            does not know.
    """

    def __init__(self, model: PreTrainedModel, stays: Sequence[int]) -> None:
        _check(model)
        self.model = model
        whole = _read(model)
        rows = [index for index in stays if index < len(whole.embedding)]
        expected = _logits(model, rows[-PROBE:])[..., rows]
        self._cut = _rows_of(whole, rows)
        self._whole = _moved(whole, torch.device("cpu"))
        _write(model, self._cut)
        try:
            _check_logits(model, expected)
        except ValueError:
            self.restore()
            raise
        self.removed = whole.parameters - self._cut.parameters  # parameters

    @contextmanager
    def whole(self) -> Iterator[None]:
        """The model with all tokens for the duration of the block."""
        self.restore()
        try:
            yield
        finally:
            _write(self.model, self._cut)

    def restore(self) -> None:
        """Put all tokens back."""
        _write(self.model, self._whole)


def named_ids(model: PreTrainedModel) -> set[int]:
    """The tokens that the settings of a model name, such as those that end a text."""
    size, ids = len(_layers(model)[0].weight), set[int]()
    for _, name, value in _attributes(model):
        if name.endswith(ID_ENDINGS):
            ids |= set(value if isinstance(value, list) else [value])
    return {index for index in ids if 0 <= index < size}


def least_tokens(model: PreTrainedModel, fill: float) -> int:
    """The number of tokens whose embeddings have a share of a model's parameters."""
    return int(fill * count_parameters(model) / parameters_per_token(model))


def parameters_per_token(model: PreTrainedModel) -> int:
    """Parameters of a token in the embedding and the output head.

    Raises ValueError if the vocabulary of the model cannot be cut.
    """
    _check(model)
    return _read(model).parameters // len(_layers(model)[0].weight)


def _attributes(model: PreTrainedModel) -> list[tuple[object, str, Any]]:
    """Sizes and ids in the model's settings and modules: object, name and value."""
    settings: list[object] = [model.config]
    if (text := model.config.get_text_config()) is not model.config:
        settings.append(text)
    if model.can_generate():
        settings.append(model.generation_config)
    names = (*ID_ENDINGS, *BANS, "vocab_size")
    modules: list[object] = [
        module for module in model.modules() if not isinstance(module, nn.Embedding)
    ]
    attributes = [
        (owner, name, value)
        for owners, endings in ((settings, names), (modules, ("vocab_size", "padding_idx")))
        for owner in owners
        for name, value in vars(owner).items()
        if name.endswith(endings) and value is not None
    ]
    embedding, head = _layers(model)
    size = len(embedding.weight)
    sizes = [(embedding, "num_embeddings", size), (head, "out_features", size)]
    return attributes + sizes


def _layers(model: PreTrainedModel) -> tuple[nn.Embedding, nn.Linear]:
    """The embedding and the output head."""
    layers = model.get_input_embeddings(), model.get_output_embeddings()
    return cast("tuple[nn.Embedding, nn.Linear]", layers)


def _check(model: PreTrainedModel) -> None:
    """ValueError if a model has no embedding and head of one size, or ids of an unknown form."""
    name = type(model).__name__
    embedding = head = None
    with suppress(NotImplementedError):
        embedding, head = _layers(model)
    if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
        raise ValueError(
            f"vocabulary=task needs an embedding and a linear output head, and {name} does not "
            "have both; set vocabulary=none."
        )
    sizes = len(embedding.weight), len(head.weight)
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"vocabulary=task needs as many logits as embeddings, and {name} has {sizes[1]} and "
            f"{sizes[0]}; set vocabulary=none."
        )
    unknown = [key for key in OTHER_IDS if getattr(model.generation_config, key, None)]
    if unknown:
        raise ValueError(
            f"vocabulary=task does not renumber {unknown[0]} in generation_config.json; remove "
            "it there, or set vocabulary=none."
        )


@torch.inference_mode()
def _logits(model: PreTrainedModel, tokens: Sequence[int]) -> Tensor:
    """Logits (1, T, V) of a few tokens."""
    row = torch.tensor([list(tokens)], device=model.device)
    inputs = {"input_ids": row, "attention_mask": torch.ones_like(row)}
    return forward(model, inputs, keep=len(tokens))


def _check_logits(model: PreTrainedModel, expected: Tensor) -> None:
    """ValueError if the last tokens have other logits than with all tokens."""
    size, count = expected.shape[-1], expected.shape[1]
    reason = "other weights depend on the tokens"
    try:
        logits = _logits(model, range(size - count, size))
        difference = float((logits - expected).abs().max() / expected.abs().max())
    except (RuntimeError, IndexError) as error:
        reason, difference = str(error).splitlines()[0], torch.inf
    if not difference <= ROUNDING:
        raise ValueError(
            f"vocabulary=task changes the logits of {type(model).__name__} ({reason}); set "
            "vocabulary=none."
        )


def _read(model: PreTrainedModel) -> _State:
    embedding, head = _layers(model)
    tied = shares_embedding(model)
    bias = None if head.bias is None else head.bias.data
    weight = None if tied else head.weight.data
    return _State(embedding.weight.data, weight, bias, _attributes(model))


def _rows_of(whole: _State, rows: Sequence[int]) -> _State:
    """The state with some rows of the weights."""
    index = torch.tensor(rows, device=whole.embedding.device)
    new_ids = {old: new for new, old in enumerate(rows)}
    cut = [None if t is None else t[index] for t in (whole.embedding, whole.head, whole.bias)]
    assert cut[0] is not None
    attributes = [
        (one, name, len(rows) if name in SIZES else _renumbered(name, value, new_ids))
        for one, name, value in whole.attributes
    ]
    return _State(cut[0], cut[1], cut[2], attributes)


def _renumbered(name: str, value: Any, new_ids: Mapping[int, int]) -> Any:
    """A setting with new ids; numbers that name no token, such as −1, stay."""
    if name == "bad_words_ids":
        return [[new_ids[i] for i in ids] for ids in value if new_ids.keys() >= set(ids)]
    if name in BANS:
        return [new_ids[index] for index in value if index in new_ids]
    if isinstance(value, list):
        return [new_ids.get(index, index) for index in value]
    return new_ids.get(value) if name == "padding_idx" else new_ids.get(value, value)


def _moved(state: _State, device: torch.device) -> _State:
    tensors = (state.embedding, state.head, state.bias)
    moved = [None if tensor is None else tensor.to(device) for tensor in tensors]
    assert moved[0] is not None
    return _State(moved[0], moved[1], moved[2], state.attributes)


@torch.inference_mode(False)  # Otherwise training could not change what shares these weights.
def _write(model: PreTrainedModel, state: _State) -> None:
    """Give a model the weights and settings of a state; tied weights stay tied."""
    embedding, head = _layers(model)
    moved = _moved(state, model.device)
    embedding.weight = nn.Parameter(moved.embedding, requires_grad=False)
    head.weight = embedding.weight
    if moved.head is not None:
        head.weight = nn.Parameter(moved.head, requires_grad=False)
    if moved.bias is not None:
        head.bias = nn.Parameter(moved.bias, requires_grad=False)
    for one, name, value in state.attributes:
        setattr(one, name, value)
