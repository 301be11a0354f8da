"""A language model whose weight matrices are factorized: modeling code for transformers.

It travels with every exported model and needs only torch and transformers. `SieveXForCausalLM` is
the native class `XForCausalLM` with the layers in `config.sieve["ranks"]` replaced by
`FactorizedLinear`.
Load with `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`, or without the
flag after `import sieve`. Give AutoTokenizer the flag as well: it reads the model's configuration
first, and without the flag transformers asks for it and warns of a model of type ``.
"""

from typing import Any

import transformers
from torch import nn

from .modeling_experts import unfold
from .modeling_layers import factorize

PREFIX = "Sieve"


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
    """The factorized model and configuration classes for a transformers architecture."""
    if architecture in _classes:
        return _classes[architecture]
    native = getattr(transformers, architecture, None)
    if native is None:
        raise ValueError(f"transformers {transformers.__version__} has no {architecture}.")
    base = native.config_class
    config_class: Any = type(
        PREFIX + base.__name__,
        (base,),
        {"model_type": "sieve", "__module__": __name__, "__doc__": SieveConfig.__doc__},
    )

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        # Some models build their parts with Auto classes, which only accept native configurations.
        config.__class__ = base
        try:
            native.__init__(self, config, *args, **kwargs)
        finally:
            config.__class__ = config_class
        entry = config.sieve
        if entry.get("experts"):
            unfold(self)
        names = ("pivoted", "mixed", "shared", "skipped")
        options = {name: entry[name] for name in names if name in entry}
        factorize(self, entry["ranks"], entry["biases"], **options)
        if (head := self.get_output_embeddings()) is not None:
            head.register_forward_pre_hook(contiguous_input)

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
    globals().update({cls.__name__: cls for cls in _classes[architecture]})
    # When a model is saved again, this file is saved with it.
    model_class.register_for_auto_class(auto := auto_class(architecture))
    config_class.register_for_auto_class("AutoConfig")
    getattr(transformers, auto).register(config_class, model_class, exist_ok=True)
    return _classes[architecture]


def contiguous_input(_head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copy the positions that a head reads: a CPU is many times slower on a slice of a tensor."""
    return (args[0].contiguous(), *args[1:]) if args else args


def auto_class(architecture: str) -> str:
    """The name of the Auto class for a native class."""
    classifies = architecture.endswith("ForSequenceClassification")
    return "AutoModelForSequenceClassification" if classifies else "AutoModelForCausalLM"


def native_class(model: nn.Module) -> type:
    """The class of transformers for a model, factorized or not."""
    cls = type(model)
    if cls.__name__.startswith("FSDP"):  # torch gives a sharded model a class of its own.
        cls = cls.__bases__[-1]
    return cls.__bases__[0] if cls.__name__.startswith(PREFIX) else cls


def __getattr__(name: str) -> Any:
    """Make `SieveXForCausalLM` at its first use.

    transformers also imports `SieveXConfig`, before it has read which model it configures:
    `SieveConfig` finds the model when it reads the file.
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
