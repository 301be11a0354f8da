"""Layers and models that travel with exports; they need only torch and transformers."""

import transformers  # noqa: F401  # Before the modules: `import sieve` registers them after this.
