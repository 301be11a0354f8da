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
    """

    order: torch.Tensor | None

    def __init__(self, d_in: int, d_out: int, rank: int, bias: bool, pivoted: bool = False) -> None:
        super().__init__()
        with warnings.catch_warnings():  # Rank 0 has nothing to initialize, and torch says so.
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
            self.factor_in = nn.Linear(d_in, rank, bias=bias and pivoted)
            self.factor_out = nn.Linear(rank, d_out - rank * pivoted, bias=bias)
        self.register_buffer("order", torch.arange(d_out, dtype=torch.int32) if pivoted else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., d_in) to (..., d_out)."""
        inner = self.factor_in(x)
        if self.order is None:
            return self.factor_out(inner)
        if self._unfolds(inner):
            return nn.functional.linear(inner, *self._unfolded())
        outer = torch.cat([inner, self.factor_out(inner)], dim=-1)
        return outer.gather(-1, self.order.long().expand(outer.shape))

    def _unfolds(self, inner: torch.Tensor) -> bool:
        """Whether to put rows of the weight in order, for many tokens, or the outputs of few.

        Only where `factor_out` is what it was made as: not wrapped, hooked or quantized.
        """
        factor = self.factor_out
        plain = type(factor) is nn.Linear and type(factor.weight) is nn.Parameter
        hooked = plain and (factor._forward_hooks or factor._forward_pre_hooks)
        return plain and not hooked and inner.numel() > inner.shape[-1] ** 2

    def _unfolded(self) -> tuple[torch.Tensor, torch.Tensor | None]:
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


def factorize(
    model: nn.Module, ranks: dict[str, int], biases: list[str], pivoted: Sequence[str] = ()
) -> None:
    """Replace the named dense layers by FactorizedLinear of the given ranks, uninitialized."""
    for name, rank in ranks.items():
        dense: Any = model.get_submodule(name)
        if isinstance(dense, nn.Linear):
            d_out, d_in = dense.weight.shape
        else:  # Conv1D holds W transposed.
            d_in, d_out = dense.weight.shape
        layer = FactorizedLinear(d_in, d_out, rank, name in biases, name in pivoted)
        model.set_submodule(name, layer)


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
        factorize(self, entry["ranks"], entry["biases"], entry.get("pivoted", ()))

    model_class: Any = type(
        PREFIX + architecture,
        (native,),
        {
            "config_class": config_class,
            "__init__": __init__,
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
