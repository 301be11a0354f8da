"""A language model whose weight matrices are factorized: modeling code for transformers.

It travels with every exported model and needs only torch and transformers. `SieveXForCausalLM` is
the native class `XForCausalLM` with the layers in `config.sieve["ranks"]` replaced by
`FactorizedLinear`.
Load with `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`, or without the
flag after `import sieve`. Give AutoTokenizer the flag as well: it reads the model's configuration
first, and without the flag transformers asks for it and warns of a model of type ``.
"""

import re
from functools import cache
from typing import Any, cast

import transformers
from torch import distributed, nn

from .modeling_experts import unfold
from .modeling_layers import (
    Absent,
    FactorizedEmbedding,
    FactorizedLinear,
    factorize,
    skipped,
)

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
    """The factorized model and configuration classes for a transformers architecture.

    The class of the blocks alone, such as `SieveLlamaModel`, is made as well: vLLM asks for it.
    """
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
    model_class = _factorized_class(native, config_class, "")
    _classes[architecture] = model_class, config_class
    if blocks := blocks_class(native):
        prefix = f"{native.base_model_prefix}."
        _register("AutoModel", _factorized_class(blocks, config_class, prefix))
    _register(auto_class(architecture), model_class)
    # When a model is saved again, this file is saved with it.
    config_class.register_for_auto_class("AutoConfig")
    globals()[config_class.__name__] = config_class
    return _classes[architecture]


def blocks_class(model_class: Any) -> Any:
    """The class of a model's blocks, without a head: factorized where `model_class` is; or None."""
    found = transformers.AutoModel._model_mapping.get(model_class.config_class, None)
    return found if isinstance(found, type) else None


def _register(auto: str, model_class: Any) -> None:
    globals()[model_class.__name__] = model_class
    model_class.register_for_auto_class(auto)
    getattr(transformers, auto).register(model_class.config_class, model_class, exist_ok=True)


def _factorized_class(native: Any, config_class: Any, prefix: str) -> Any:
    """A class with factorized layers.

    prefix: of the blocks in the names of the whole model, "" for the whole model's class.
    """

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        # Some models build their parts with Auto classes, which only accept native configurations.
        config.__class__ = native.config_class
        try:
            native.__init__(self, config, *args, **kwargs)
        finally:
            config.__class__ = config_class
        if config.sieve.get("experts"):
            unfold(self)
        factorize(self, **_layers(config.sieve, prefix))
        if prefix:
            _suit_engines(self, prefix)
        elif (head := self.get_output_embeddings()) is not None:
            head.register_forward_pre_hook(contiguous_input)

    __init__.__annotations__.clear()  # vLLM would compare them with the arguments.
    members = {
        "config_class": config_class,
        "__init__": __init__,
        "__module__": __name__,
        "__doc__": f"{native.__name__} with factorized layers.",
    }
    return type(PREFIX + native.__name__, (native,), members)


def _layers(entry: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The arguments of `factorize` for the modules below a prefix, by their names there."""

    def inside(names: Any) -> Any:
        if isinstance(names, dict):
            return {k.removeprefix(prefix): v for k, v in names.items() if k.startswith(prefix)}
        return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]

    names = ("ranks", "biases", "pivoted", "mixed", "shared", "skipped", "narrow")
    options = {name: inside(entry[name]) for name in names if name in entry}
    shared = options.get("shared", {})
    return options | {"shared": {k: v.removeprefix(prefix) for k, v in shared.items()}}


def _suit_engines(model: Any, prefix: str) -> None:
    """Prepare blocks for vLLM, which gives every `nn.Linear` a class of its own.

    There, factors of rank 0 become modules that are no Linear. The tensor-parallel plan splits
    plain factors as it splits the matrix: its outputs by `factor_out`, its inputs by `factor_in`.

    Raises:
        ValueError: in vLLM, if the embedding or the head is factorized, or if a matrix cannot be
            split over several devices.
    """
    native, plan = dict(model.tp_plan or {}), dict[str, str]()
    whole: dict[str, FactorizedLinear] = {}  # layers that devices cannot split
    layers = {n: m for n, m in model.named_modules() if isinstance(m, FactorizedLinear)}
    unused = tuple(f"{path}." for path in skipped(model))  # Nothing but constants remain there.
    for name, layer in layers.items():
        split = (style for path, style in native.items() if _matches(path, name))
        style, rank = next(split, "replicate"), layer.factor_in.out_features
        if style == "colwise" and (layer.order is not None or not rank):
            if not name.startswith(unused):
                whole[name] = layer
        for factor, way in (("factor_in", "rowwise"), ("factor_out", "colwise")):
            plan[f"{name}.{factor}"] = style if style == way else "replicate"
    model._tp_plan = plan | native
    if model.config._attn_implementation == "vllm":
        _check_for_vllm(model, prefix, whole)
        for layer in layers.values():
            if layer.factor_in.out_features == 0:
                factors = dict(layer.named_children())  # A factor of a sibling is not among them.
                layer._modules |= {n: Absent(cast(nn.Linear, f)) for n, f in factors.items()}
        for module in model.modules():
            parts, cls = module.named_children(), cast(Any, type(module))
            names = tuple(name for name, part in parts if isinstance(part, FactorizedLinear))
            if names:
                module.__class__ = _class_of_its_own(cls, names)


@cache
def _class_of_its_own(cls: Any, _factorized: tuple[str, ...]) -> type:
    """A class for modules whose children of these names are factorized.

    vLLM fuses the projections of all modules of one class, or of none.
    """
    return type(cls.__name__, (cls,), {"__module__": cls.__module__})


def _check_for_vllm(model: Any, prefix: str, whole: dict[str, FactorizedLinear]) -> None:
    head = [name for name in model.config.sieve["ranks"] if not name.startswith(prefix)]
    parts = model.named_modules()
    outside = head + [name for name, part in parts if isinstance(part, FactorizedEmbedding)]
    if outside:
        raise ValueError(
            f"vLLM computes embedding and head itself, and {' and '.join(outside)} here is "
            "factorized; export again with export.merge_head=true."
        )
    if whole and distributed.is_initialized() and distributed.get_world_size() > 1:
        name, layer = next(iter(whole.items()))
        why, instead = "has rank 0", ""
        if layer.order is not None:
            why, instead = "is pivoted", ", or run Sieve with export.storage=plain"
        raise ValueError(
            f"vLLM cannot split {name} over devices: it {why}; use tensor_parallel_size=1{instead}."
        )


def _matches(pattern: str, name: str) -> bool:
    return re.fullmatch(pattern.replace(".", r"\.").replace("*", r"\d+"), name) is not None


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
            classes_for(_with_head(native))
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _with_head(native: Any) -> str:
    """The architecture whose blocks are of this class; the class itself if it has a head."""
    if blocks_class(native) is not native:
        return native.__name__
    causal: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[native.config_class]
    return str(causal.__name__)


def register() -> None:
    """Let transformers' Auto classes load model type "sieve" without remote code."""
    transformers.AutoConfig.register("sieve", SieveConfig, exist_ok=True)
