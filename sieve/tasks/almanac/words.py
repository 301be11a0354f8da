"""The words of Almanac, from `words.yaml`."""

from importlib.resources import files
from typing import Any

import yaml

_TEXT = files("sieve.tasks.almanac").joinpath("words.yaml").read_text(encoding="utf-8")
WORDS: dict[str, Any] = yaml.safe_load(_TEXT)
