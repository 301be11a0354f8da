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
    """Tensors by the names that the model's `state_dict` has.

    folder: that holds *.safetensors; prefix: of the base model (`base_model_prefix`), which some
    files leave out. Raises ValueError where a file is damaged.
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
                    f"{path} is damaged ({error}); get the checkpoint again."
                ) from error

    def rename(self, renamed: Callable[[str], str]) -> None:
        """Let tensors go by the names that `renamed` makes of those in the files, too."""
        self._alias = {renamed(name): name for name in self._home}

    def read(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Copies of tensors as they are stored; the files are closed again.

        Raises ValueError where one is not there, or not finite.
        """
        found: dict[str, Tensor] = {}
        for path, inside in self._by_file(names).items():
            with safe_open(path, framework="pt") as file:
                for name, stored in inside.items():
                    tensor = file.get_tensor(stored)
                    found[name] = tensor.clone()
                    if tensor.is_floating_point() and not is_finite(found[name]):
                        raise ValueError(
                            f"the weights {name} are not finite (NaN or infinity); the checkpoint "
                            "is damaged, get it again."
                        )
        return found

    def _by_file(self, names: Sequence[str]) -> dict[Path, dict[str, str]]:
        files: dict[Path, dict[str, str]] = {}
        for name in names:
            stored = self._stored(name)
            if stored is None:
                raise ValueError(
                    f"{self.folder} holds no weights named {name}: it names or stacks them in "
                    "another way than the model does; set calibration.strategy=whole."
                )
            files.setdefault(self._home[stored], {})[name] = stored
        return files

    def _stored(self, name: str) -> str | None:
        """The name under which a file holds it."""
        name = self._alias.get(name, name)
        short = name.removeprefix(self._prefix)
        return next((one for one in (name, short) if one in self._home), None)


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite, without a second tensor of its size."""
    return not tensor.numel() or bool(torch.isfinite(torch.stack(tensor.aminmax())).all())


def fetch(path: str, revision: str | None) -> Path:
    """The folder of a model's files: a local one, or a Hub model's, downloaded where it must be."""
    if Path(path).is_dir():
        return Path(path)
    index = cached_file(
        path, SAFE_WEIGHTS_INDEX_NAME, revision=revision,
        _raise_exceptions_for_missing_entries=False,
    )  # fmt: skip
    if index is None:
        return Path(str(cached_file(path, SAFE_WEIGHTS_NAME, revision=revision))).parent
    get_checkpoint_shard_files(path, index, revision=revision)
    return Path(index).parent


def renamed_for(model: PreTrainedModel) -> Callable[[str], str]:
    """What transformers calls a tensor of a checkpoint that names it in an older way."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    known = [t for t in get_model_conversion_mapping(model) if isinstance(t, WeightRenaming)]

    def renamed(name: str) -> str:
        for one in known:
            name = one.rename_source_key(name)[0]
        return name

    return renamed
