"""Every module of the factorized classes can be the first of Sieve that a process imports."""

import subprocess
import sys

import pytest

MODULES = ("factorized.modeling_sieve", "factorized.modeling_layers", "serve.completions")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_is_imported_first_registers_the_classes(name: str) -> None:
    code = f"import sieve.{name}\nfrom transformers import AutoConfig, CONFIG_MAPPING\n"
    code += "print('sieve' in CONFIG_MAPPING)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
