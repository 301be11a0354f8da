"""Models in GGUF: the file that a path names, and its weights, dequantized by transformers.

A GGUF file holds weights (often quantized), configuration and tokenizer of one model.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import transformers

SUFFIX = ".gguf"
PART = re.compile(r"-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf$", re.IGNORECASE)
ALONE = "model.gguf"  # the name under which transformers sees a file
MAGIC = b"GGUF"  # the first bytes of every GGUF file


def find_gguf(path: Path) -> Path | None:
    """The GGUF file at a path, or in a folder without safetensors; None if there is none.

    Raises ValueError if there are several, or if the file is damaged or a part of a model.
    """
    if path.is_file():
        files = [path] if path.suffix.lower() == SUFFIX else []
    elif any(path.glob("*.safetensors")):
        files = []
    else:
        files = sorted(file for file in path.glob("*") if file.suffix.lower() == SUFFIX)
    for file in files:
        _check_whole(file)
    if len(files) > 1:
        raise ValueError(
            f"{path} holds {len(files)} GGUF files ({', '.join(file.name for file in files)}) and "
            f"no safetensors; set model.path to one of them, such as {files[0]}."
        )
    return files[0] if files else None


def _check_whole(file: Path) -> None:
    """ValueError if a file is a part of a split model, or not a GGUF file."""
    part = PART.search(file.name)
    if part and int(part["parts"]) > 1:
        first = PART.sub(f"-00001-of-{part['parts']}{SUFFIX}", file.name)
        raise ValueError(
            f"{file} is part {int(part['part'])} of {int(part['parts'])} of a split GGUF model, "
            f"and a single file is needed; join the parts with llama.cpp: llama-gguf-split --merge "
            f"{first} model.gguf."
        )
    with file.open("rb") as content:
        if content.read(len(MAGIC)) != MAGIC:
            raise ValueError(
                f"{file} does not begin like a GGUF file: it is damaged, or not a GGUF file; "
                "download it again."
            )


def is_gguf(path: str) -> bool:
    """Whether a path, as `find_model` returns it, is a GGUF file."""
    return path.lower().endswith(SUFFIX) and Path(path).is_file()


@contextmanager
def source(path: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The name and the keyword arguments by which `from_pretrained` finds a model.

    A GGUF file is shown to transformers in a folder of its own, since transformers would take the
    tokenizer from other files beside it.

    Raises RuntimeError if the path is a GGUF file and the package gguf is not installed.
    """
    if not is_gguf(path):
        yield path, {}
        return
    check_installed("gguf")
    with TemporaryDirectory() as folder:
        (Path(folder) / ALONE).symlink_to(Path(path).resolve())
        yield folder, {"gguf_file": ALONE}


def check_installed(*packages: str) -> None:
    """RuntimeError if a package that reads GGUF files is not installed."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise RuntimeError(
            f"a GGUF file needs the package {missing[0]}, which is not installed; run pip install "
            "'sieve-llm[gguf]'."
        )


def dequantized() -> dict[str, Any]:
    """The arguments by which `from_pretrained` dequantizes, even if it could run quantized."""
    settings = getattr(transformers, "GgufConfig", None)  # Older versions always dequantize.
    return {} if settings is None else {"quantization_config": settings(dequantize=True)}


def forget_quantization(model: Any) -> None:
    """Let transformers save a dequantized model, which it still regards as quantized."""
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


@contextmanager
def explained_gguf_errors(name: str) -> Iterator[None]:
    """Turn any error of reading a GGUF file into a ValueError of one sentence.

    transformers does not check what it reads, so a damaged file raises errors of many types.
    """
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            f"transformers could not read the GGUF file {name!r} ({reason}); download the file "
            "again, or set model.path to the same model in safetensors."
        ) from error


def unread_numbers(file: Path, model: transformers.PreTrainedModel) -> int:
    """How many numbers of a GGUF file have no parameter in the model that was read from it."""
    from gguf import GGUFReader

    stored = sum(int(tensor.n_elements) for tensor in GGUFReader(file).tensors)
    return max(0, stored - sum(parameter.numel() for parameter in model.parameters()))
