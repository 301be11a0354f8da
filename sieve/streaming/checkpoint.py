"""The weights of a model by name, from its safetensors files, a few at a time."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, get_checkpoint_shard_files


class Checkpoint:
    """The tensors of a folder's safetensors files, by their names in the model's `state_dict`.

    Raises ValueError if a file is damaged.

    Args:
        prefix: the model's `base_model_prefix`, which some files omit from names.
    """

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self.folder, self._prefix = folder, f"{prefix}." if prefix else ""
        self._home: dict[str, Path] = {}
        self._alias: dict[str, str] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    self._home |= dict.fromkeys(file.keys(), path)
            except SafetensorError as error:
                raise ValueError(
                    f"{path} is damaged ({error}). Download the checkpoint again."
                ) from error

    def rename(self, renamed: Callable[[str], str]) -> None:
        """Make each tensor also available under the name that `renamed` gives it."""
        self._alias = {renamed(name): name for name in self._home}

    def share(self, name: str, source: str) -> None:
        """Read the tensor `source` whenever `name` is asked for."""
        self._alias[name] = self._alias.get(source, source)

    def read(self, names: Sequence[str], dtype: torch.dtype) -> dict[str, Tensor]:
        """Copies of tensors; floating-point ones in `dtype`.

        Raises ValueError if a tensor is missing or not finite.
        """
        tensors: dict[str, Tensor] = {}
        for path, stored_names in self._by_file(names).items():
            with safe_open(path, framework="pt") as file:
                for name, stored_name in stored_names.items():
                    tensors[name] = _copied(name, file.get_tensor(stored_name), dtype)
        return tensors

    def read_rows(self, name: str, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows of one tensor in `dtype`; raises ValueError like `read`."""
        [(path, stored_names)] = self._by_file([name]).items()
        with safe_open(path, framework="pt") as file:
            return _copied(name, file.get_tensor(stored_names[name])[rows], dtype)

    def _by_file(self, names: Sequence[str]) -> dict[Path, dict[str, str]]:
        files: dict[Path, dict[str, str]] = {}
        for name in names:
            long = self._alias.get(name, name)
            stored_names = (long, long.removeprefix(self._prefix))
            stored = next((stored for stored in stored_names if stored in self._home), None)
            if stored is None:
                raise ValueError(
                    f"{self.folder} has no weights named {name}: the checkpoint names or stacks "
                    "its weights differently from the model. Set calibration.strategy=whole."
                )
            files.setdefault(self._home[stored], {})[name] = stored
        return files


def _copied(name: str, stored: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of a tensor, which is a view of its file until then."""
    if not stored.is_floating_point():
        return stored.clone()
    tensor = stored.to(dtype, copy=True)
    # Unlike isfinite, aminmax allocates no tensor of the same size.
    if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
        raise ValueError(
            f"The weights {name} are not finite (NaN or infinity), so the checkpoint is damaged. "
            "Download it again."
        )
    return tensor


def fetch(path: str, revision: str | None) -> Path:
    """The folder of a model's files, which are downloaded if the model is on the Hub."""
    if Path(path).is_dir():
        return Path(path)
    index = cached_file(
        path,
        SAFE_WEIGHTS_INDEX_NAME,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
    )
    if index is None:
        return Path(str(cached_file(path, SAFE_WEIGHTS_NAME, revision=revision))).parent
    get_checkpoint_shard_files(path, index, revision=revision)
    return Path(index).parent


def renamed_for(model: PreTrainedModel) -> Callable[[str], str]:
    """The function from tensor names of older checkpoints to transformers' current names."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    renamings = [t for t in get_model_conversion_mapping(model) if isinstance(t, WeightRenaming)]

    def renamed(name: str) -> str:
        for renaming in renamings:
            name = renaming.rename_source_key(name)[0]
        return name

    return renamed
