"""A causal language model whose weight matrices are factorized: modeling code for transformers.

This one file travels with every exported model and needs torch and transformers alone. The class
of any architecture is made from the native one: `SieveLlamaForCausalLM` is `LlamaForCausalLM` with
the layers named in `config.sieve["ranks"]` replaced by `FactorizedLinear`.
Load with `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`, or without the
flag after `import sieve`. AutoTokenizer looks at the model's configuration first: give it the flag
too, or transformers asks for it and warns of a model of type ``, and then reads the tokenizer.
"""

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import nn

PREFIX = "Sieve"


class FactorizedLinear(nn.Module):
    """A map of rank r from d_in to d_out features as two plain Linears, in one of two forms.

    Plain: y = factor_out(factor_in(x)), weights (r, d_in) and (d_out, r).
    Pivoted: factor_in(x) are r of the outputs themselves, factor_out mixes the d_out − r others
    from them, and `order` (d_out,) puts all in place. Rank 0 is plain: the bias alone.
    Siblings, which read one input, may share one factor_in; of its r outputs pivots are then those
    of all of them, and `mixed` says how many of this one's outputs are not among them.
    """

    order: torch.Tensor | None

    def __init__(
        self,
        d_in: int,
        d_out: int,
        rank: int,
        bias: bool,
        pivoted: bool = False,
        mixed: int | None = None,
    ) -> None:
        super().__init__()
        if mixed is None:
            mixed = d_out - rank * pivoted
        with warnings.catch_warnings():  # Rank 0 has nothing to initialize, and torch says so.
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
            self.factor_in = nn.Linear(d_in, rank, bias=bias and pivoted)
            self.factor_out = nn.Linear(rank, mixed, bias=bias)
        self.register_buffer("order", torch.arange(d_out, dtype=torch.int32) if pivoted else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., d_in) to (..., d_out)."""
        inner = self.factor_in(x)
        if self.order is None:
            return self.factor_out(inner)
        if self._unfolds(inner):
            return nn.functional.linear(inner, *self.unfolded())
        outer = torch.cat([inner, self.factor_out(inner)], dim=-1)
        return outer.gather(-1, self.order.long().expand(*outer.shape[:-1], -1))

    def _unfolds(self, inner: torch.Tensor) -> bool:
        """Whether to put rows of the weight in order, for many tokens, or the outputs of few.

        Only where `factor_out` is what it was made as: not wrapped, hooked or quantized.
        """
        factor = self.factor_out
        plain = type(factor) is nn.Linear and type(factor.weight) is nn.Parameter
        hooked = plain and (factor._forward_hooks or factor._forward_pre_hooks)
        return plain and not hooked and inner.numel() > inner.shape[-1] ** 2

    def unfolded(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight (d_out, r) and bias (d_out,) from the inner outputs to all, in order."""
        weight, order = self.factor_out.weight, self.order
        bias: torch.Tensor | None = self.factor_out.bias
        assert order is not None
        eye = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        if bias is not None:
            bias = torch.cat([bias.new_zeros(len(eye)), bias]).index_select(0, order)
        return torch.cat([eye, weight]).index_select(0, order), bias

    def extra_repr(self) -> str:
        form = "" if self.order is None else ", pivoted"
        return f"rank={self.factor_in.out_features}{form}"


class SharedLinear(nn.Linear):
    """A factor_in that several siblings read with the same input: computed once for all of them."""

    def __init__(self, d_in: int, d_out: int, bias: bool, readers: int) -> None:
        super().__init__(d_in, d_out, bias)
        self.readers = readers
        self._last: tuple[torch.Tensor, int, torch.Tensor, int] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., d_in) to (..., d_out); the output is let go once all have read it."""
        last = self._last
        if last is not None and last[0] is x and last[1] == _version(x):
            reads = last[3] + 1
            self._last = (*last[:3], reads) if reads < self.readers else None
            return last[2]
        out = super().forward(x)
        self._last = (x, _version(x), out, 1)
        return out


def _version(x: torch.Tensor) -> int:
    return 0 if x.is_inference() else x._version


def factorize(
    model: nn.Module,
    ranks: dict[str, int],
    biases: list[str],
    pivoted: Sequence[str] = (),
    mixed: dict[str, int] | None = None,
    shared: dict[str, str] | None = None,
) -> None:
    """Replace the named dense layers by FactorizedLinear of the given ranks, uninitialized.

    mixed: how many outputs of a layer are mixtures, where that is not told by its rank; shared: the
    sibling whose factor_in a layer reads.
    """
    shared = shared or {}
    for name, rank in ranks.items():
        dense: Any = model.get_submodule(name)
        if isinstance(dense, nn.Linear):
            d_out, d_in = dense.weight.shape
        else:  # Conv1D holds W transposed.
            d_in, d_out = dense.weight.shape
        rows = (mixed or {}).get(name)
        layer = FactorizedLinear(d_in, d_out, rank, name in biases, name in pivoted, rows)
        readers = 1 + list(shared.values()).count(name)
        if readers > 1:
            bias = layer.factor_in.bias is not None
            layer.factor_in = SharedLinear(d_in, rank, bias, readers)
        model.set_submodule(name, layer)
    for name, source in shared.items():
        factor_in: Any = model.get_submodule(f"{source}.factor_in")
        model.get_submodule(name).factor_in = factor_in


def shared_keys(model: nn.Module) -> dict[str, str]:
    """Parameters of shared factors by every name but the first, and that first name."""
    first: dict[nn.Module, str] = {}
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, FactorizedLinear):
            source = first.setdefault(module.factor_in, name)
            if source != name:
                for part, _ in module.factor_in.named_parameters():
                    found[f"{name}.factor_in.{part}"] = f"{source}.factor_in.{part}"
    return found


class SieveConfig(transformers.PreTrainedConfig):
    """Reads a configuration of model type "sieve" into the class of its base architecture."""

    model_type = "sieve"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration of the base architecture, with model type "sieve"."""
        if not config_dict.get("sieve"):
            raise ValueError("the configuration has no 'sieve' entry; export the model again.")
        _, config_class = classes_for(config_dict["sieve"]["architecture"])
        return config_class.from_dict(config_dict, **kwargs)


_classes: dict[str, tuple[Any, Any]] = {}


def classes_for(architecture: str) -> tuple[Any, Any]:
    """The factorized model and configuration classes of a native one, by its class name."""
    if architecture in _classes:
        return _classes[architecture]
    native = getattr(transformers, architecture, None)
    if native is None:
        raise ValueError(f"transformers {transformers.__version__} has no {architecture}.")
    base_config = native.config_class
    config_class: Any = type(
        PREFIX + base_config.__name__,
        (base_config,),
        {"model_type": "sieve", "__module__": __name__, "__doc__": SieveConfig.__doc__},
    )

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        native.__init__(self, config, *args, **kwargs)
        entry = config.sieve
        parts = {key: entry[key] for key in ("pivoted", "mixed", "shared") if key in entry}
        factorize(self, entry["ranks"], entry["biases"], **parts)
        if found := shared_keys(self):  # Saving looks at the one, loading at the other.
            self._tied_weights_keys = {**(native._tied_weights_keys or {}), **found}
            self.all_tied_weights_keys = self.get_expanded_tied_weights_keys()

    def get_expanded_tied_weights_keys(self: Any, all_submodels: bool = False) -> dict[str, str]:
        found = native.get_expanded_tied_weights_keys(self, all_submodels)
        return {**found, **shared_keys(self)}

    model_class: Any = type(
        PREFIX + architecture,
        (native,),
        {
            "config_class": config_class,
            "__init__": __init__,
            "get_expanded_tied_weights_keys": get_expanded_tied_weights_keys,
            "__module__": __name__,
            "__doc__": f"{architecture} with factorized layers.",
        },
    )
    _classes[architecture] = model_class, config_class
    module = sys.modules[__name__]
    setattr(module, model_class.__name__, model_class)
    setattr(module, config_class.__name__, config_class)
    # A model saved again carries this file and points at it.
    model_class.register_for_auto_class("AutoModelForCausalLM")
    config_class.register_for_auto_class("AutoConfig")
    transformers.AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)
    return _classes[architecture]


def native_class(model: nn.Module) -> type:
    """The class that transformers has for a model, factorized or not."""
    cls = type(model)
    return cls.__bases__[0] if cls.__name__.startswith(PREFIX) else cls


def __getattr__(name: str) -> Any:
    """Make `SieveLlamaForCausalLM` when it is first asked for.

    Transformers asks for `SieveLlamaConfig` too, before it is known which model it configures:
    `SieveConfig` finds that out when it reads the file.
    """
    native = getattr(transformers, name.removeprefix(PREFIX), None)
    if name.startswith(PREFIX) and isinstance(native, type):
        if issubclass(native, transformers.PreTrainedConfig):
            return SieveConfig
        if issubclass(native, transformers.PreTrainedModel):
            return classes_for(native.__name__)[0]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register() -> None:
    """Let transformers' Auto classes load model type "sieve" without remote code."""
    transformers.AutoConfig.register("sieve", SieveConfig, exist_ok=True)
