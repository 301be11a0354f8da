"""Serve an export with OpenAI's protocol, such as /v1/completions, by `transformers serve`.

    python -m sieve.serve.completions EXPORT --trust-remote-code --port 8000

is `transformers serve EXPORT ...`, which finds the class of a model in transformers itself, and so
needs the classes of Sieve there. A dense export can be served without this command. Install the
packages with pip install 'transformers[serving]'.
"""

import logging
import sys
from collections.abc import Sequence

import transformers
from transformers import AutoModelForCausalLM

from sieve.factorized.modeling_sieve import PREFIX, register

log = logging.getLogger("sieve.serve")


def register_classes() -> None:
    """Put every factorized class into transformers by name, to be loaded by the Auto class."""
    register()
    for name in dir(transformers):
        if name.endswith(("ForCausalLM", "LMHeadModel")) and not name.startswith("Auto"):
            setattr(transformers, PREFIX + name, AutoModelForCausalLM)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `transformers serve`; log an error and exit with status 1 if a package is missing."""
    from transformers.cli.transformers import main as cli

    register_classes()
    sys.argv = ["transformers", "serve", *(sys.argv[1:] if arguments is None else arguments)]
    try:
        cli()
    except ImportError as error:
        log.error("%s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
