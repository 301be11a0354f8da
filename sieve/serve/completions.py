"""Serve an export with OpenAI's protocol, such as /v1/completions, by `transformers serve`.

    python -m sieve.serve.completions runs/x --trust-remote-code --port 8000

is `transformers serve runs/x/export ...`, which finds the class of a model in transformers itself,
and so needs the classes of Sieve there. A dense export can be served without this command.
Install the packages with pip install 'transformers[serving]'.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from sieve.exports.task_file import find_export
from sieve.factorized.modeling_sieve import PREFIX, register

log = logging.getLogger("sieve.serve")


def register_classes() -> None:
    """Put every factorized class into transformers by name, to be loaded by the Auto class."""
    import transformers  # Imported late: its module may be replaced while it loads a model.
    from transformers import AutoModelForCausalLM

    register()
    for name in dir(transformers):
        if name.endswith(("ForCausalLM", "LMHeadModel")) and not name.startswith("Auto"):
            setattr(transformers, PREFIX + name, AutoModelForCausalLM)


def export_of(word: str) -> str:
    """The export in a run's folder; any other word of a command line stays as it is.

    Raises ValueError if a folder has the exports of several runs.
    """
    return str(find_export(word)) if Path(word).expanduser().is_dir() else word


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `transformers serve`; log an error and exit with status 1 if it cannot start."""
    from transformers.cli.transformers import main as cli

    register_classes()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.argv = ["transformers", "serve", *map(export_of, words)]
        cli()
    except (ImportError, ValueError, OSError) as error:
        log.error("%s", str(error).splitlines()[0])
        sys.exit(1)


if __name__ == "__main__":
    main()
