"""Run an ONNX export: a graph in onnxruntime, called like the model that it was traced from."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutput, SequenceClassifierOutput
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

from sieve.exports.onnx import NAME, check_packages
from sieve.exports.onnx_trace import INDEXES, KEEP, PAST, PRESENT, first_line
from sieve.model.backbone import agree_on_padding

if TYPE_CHECKING:
    import onnxruntime

ERRORS = 3  # a level of onnxruntime's log
DEFAULT_NEW_TOKENS = 20  # as in transformers
OPTIONS = {  # of a generation
    *("max_new_tokens", "do_sample", "num_beams", "use_cache", "synced_gpus"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
}
States = dict[str, Any]  # OrtValues of keys and values, by the name of the input


def load_onnx(folder: str | Path) -> tuple["OnnxGraph", PreTrainedTokenizerBase]:
    """Load the model and the tokenizer of an ONNX export.

    Raises ValueError if onnxruntime or a file is missing, or a file is damaged.
    """
    check_packages()
    folder = Path(folder).expanduser()
    try:
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the files beside {folder / NAME} could not be read ({first_line(error)}); export "
            "the model again."
        ) from error
    if not (config.architectures or [""])[0].endswith("ForSequenceClassification"):
        return OnnxModel(folder / NAME, config), tokenizer
    model = OnnxForSequenceClassification(folder / NAME, config)
    agree_on_padding(model, tokenizer)
    return model, tokenizer


class OnnxGraph(nn.Module):
    """A graph in onnxruntime, called like the model it was traced from; no gradients."""

    def __init__(self, path: Path, config: PreTrainedConfig) -> None:
        super().__init__()
        self.session = _session(path)
        self.config, self.device, self.dtype = config, torch.device("cpu"), torch.float32
        inputs = [*self.session.get_inputs(), *self.session.get_overridable_initializers()]
        self.names = [value.name for value in inputs]
        self.past = {x.name: x.shape for x in inputs if x.name.startswith(PAST)}
        self.generation_config = _generation_config(path.parent)
        _check_graph(path, self.session, self.width)

    @property
    def width(self) -> int:
        """The number of logits at a position."""
        return int(self.config.get_text_config().vocab_size)

    def _run(
        self,
        outputs: list[str],
        input_ids: Tensor,
        mask: Tensor,
        position_ids: Tensor,
        keep: int,
        states: States | None,
    ) -> list[Any]:
        """Outputs of the graph by name, which stay in its memory, for tokens after `states`."""
        from onnxruntime import OrtValue

        length = input_ids.shape[1]
        inputs = {
            "input_ids": input_ids,
            "attention_mask": mask,
            "position_ids": position_ids,
            KEEP: torch.tensor([keep]),
            INDEXES: torch.arange(length - keep, length),  # An older export has this name.
        }
        tensors = {name: inputs[name] for name in self.names if name in inputs}
        feed = {
            name: OrtValue.ortvalue_from_numpy(np.ascontiguousarray(tensor.cpu().numpy()))
            for name, tensor in tensors.items()
        }
        feed |= self._no_states(len(input_ids)) if states is None else states
        values: list[Any] = self.session.run_with_ort_values(outputs, feed)
        return values

    def _no_states(self, rows: int) -> States:
        """The keys and values of no tokens (B, heads, 0, d)."""
        from onnxruntime import OrtValue

        return {
            name: OrtValue.ortvalue_from_numpy(np.zeros((rows, heads, 0, size), np.float32))
            for name, (_, heads, _, size) in self.past.items()
        }


class OnnxModel(OnnxGraph):
    """The graph of a causal language model, which scores texts and writes them."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        logits_to_keep: int = 0,
        use_cache: bool | None = None,
    ) -> CausalLMOutput:
        """Logits (B, keep, V) float32 of the last `logits_to_keep` positions; 0 means all."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if position_ids is None:
            position_ids = _positions(mask)
        length = input_ids.shape[1]
        keep = min(logits_to_keep or length, length)
        [logits] = self._run(["logits"], input_ids, mask, position_ids, keep, None)
        return CausalLMOutput(logits=torch.from_numpy(logits.numpy())[:, -keep:])

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        stopping_criteria: Sequence[Callable[[Tensor, Any], Tensor]] = (),
        **options: object,
    ) -> Tensor:
        """Left-padded rows (B, T) and the likeliest tokens after each, as transformers writes them.

        Args:
            stopping_criteria: called with all rows, they tell which have ended (B,).
            options: `max_new_tokens`, the tokens that end a row or fill it up, or settings that
                ask for what is done anyway.

        Raises:
            ValueError: the settings ask for more, such as sampling or beams.
        """
        if unknown := sorted(options.keys() - OPTIONS):
            raise ValueError(
                f"an ONNX export does not know the setting {unknown[0]}; expected some of "
                f"{', '.join(sorted(OPTIONS))}."
            )
        config = deepcopy(generation_config or self.generation_config)
        config.update(**options)
        if config.do_sample or (config.num_beams or 1) > 1:
            raise ValueError("an ONNX export writes the likeliest tokens; set do_sample=False.")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows, new, states = input_ids, input_ids, None
        ends = torch.tensor(_end_tokens(config), dtype=torch.long)
        done = torch.zeros(len(rows), dtype=torch.bool)
        for _ in range(config.max_new_tokens or DEFAULT_NEW_TOKENS):
            positions = _positions(mask)[:, -new.shape[1] :]
            logits, *values = self._run(self._outputs, new, mask, positions, 1, states)
            tokens = torch.from_numpy(logits.numpy())[:, -1].argmax(-1)
            tokens = tokens.masked_fill(done, config.pad_token_id or 0)
            rows = torch.cat([rows, tokens[:, None]], 1)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
            done = done | torch.isin(tokens, ends)
            for ended in stopping_criteria:
                done = done | ended(rows, None)
            if done.all():
                break
            states = dict(zip(self.past, values, strict=True))
            new = tokens[:, None] if states else rows  # Without a cache all tokens are read again.
        return rows

    @property
    def _outputs(self) -> list[str]:
        return ["logits", *(PRESENT + name.removeprefix(PAST) for name in self.past)]


class OnnxForSequenceClassification(OnnxGraph):
    """The graph of a classifier."""

    @property
    def width(self) -> int:
        """The number of classes."""
        return int(self.config.num_labels or 0)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Logits (B, classes) float32 of rows (B, T), padded as the model was trained."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        [logits] = self._run(["logits"], input_ids, mask, _positions(mask), 0, None)
        return SequenceClassifierOutput(logits=torch.from_numpy(logits.numpy()))


def _session(path: Path) -> "onnxruntime.InferenceSession":
    """A graph on the CPU; ValueError if the file is damaged."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = ERRORS  # Otherwise it warns of each optional input.
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # The errors of onnxruntime have no common base class.
        raise ValueError(
            f"{path} is damaged or incomplete ({first_line(error)}); export the model again."
        ) from error


def _generation_config(folder: Path) -> GenerationConfig:
    """How an export writes: greedily, with the end tokens of its own file."""
    own = GenerationConfig()
    if (folder / GENERATION_CONFIG_NAME).is_file():
        own = GenerationConfig.from_pretrained(folder)
    return GenerationConfig(
        **{name: getattr(own, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    )


def _end_tokens(config: GenerationConfig) -> list[int]:
    ends = config.eos_token_id
    return list(ends) if isinstance(ends, list) else [ends] * (ends is not None)


def _positions(mask: Tensor) -> Tensor:
    """The positions (B, T) of tokens after padding on the left."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def _check_graph(path: Path, session: "onnxruntime.InferenceSession", width: int) -> None:
    """Raise ValueError unless a graph computes this number of logits at a position."""
    inputs = {value.name for value in session.get_inputs()}
    sizes = [value.shape[-1] for value in session.get_outputs() if value.name == "logits"]
    if "input_ids" not in inputs or sizes != [width]:
        raise ValueError(
            f"{path} does not map input_ids to logits of size {width:,}, which config.json beside "
            "it says, so they belong to different models; export the model again."
        )
