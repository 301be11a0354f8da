"""Options that commands with an exported model share."""

import argparse


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add --device and --dtype."""
    dtypes = ("auto", "float32", "bfloat16", "float16")
    add = parser.add_argument
    add("--device", default="cpu", help="cpu, cuda or cuda:1")
    add("--dtype", default="auto", choices=dtypes, help="auto: as stored if fast, else float32")


def at_least_one(text: str) -> int:
    """Parse a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number above 0")
    return int(text)


def check_device(name: str) -> None:
    """Raise ValueError if torch cannot use a device."""
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"--device is {name!r}, which torch cannot use here, expected cpu, or cuda with a GPU "
            "and a build of torch for it."
        ) from error
