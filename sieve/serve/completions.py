"""OpenAI's protocol for an export, by transformers' own server: /v1/completions and the rest.

    python -m sieve.serve.completions EXPORT --trust-remote-code --port 8000

is `transformers serve EXPORT ...`, which looks a model's class up in transformers itself: here it
finds Sieve's there too. A dense export needs no help. Its extra packages come with
pip install 'transformers[serving]'.
"""

import logging
import sys
from collections.abc import Sequence

import transformers
from transformers import AutoModelForCausalLM

from sieve.factorized.modeling_sieve import PREFIX, register

log = logging.getLogger("sieve.serve")


def register_classes() -> None:
    """Let transformers have every factorized class under its name, each read by the Auto class."""
    register()
    for name in dir(transformers):
        if name.endswith(("ForCausalLM", "LMHeadModel")) and not name.startswith("Auto"):
            setattr(transformers, PREFIX + name, AutoModelForCausalLM)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `transformers serve`; status 1 and one sentence where its packages are missing."""
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
