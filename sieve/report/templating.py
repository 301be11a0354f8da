"""Jinja2 templates of the report and the dashboard, with autoescape.

A template gets plain values. Only Markup, such as a plot's HTML, enters a page unescaped.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_NUMBER_AND_UNIT = re.compile(r"(?<=\S) (%|×|s|kB|MB|GB|bytes|points?)(?=[ ,.;:)]|$)")


@dataclass(frozen=True)
class Table:
    """A table for the macro `table`: the first cell of each row is its header.

    The first `text_columns` columns hold words, the others numbers, which are aligned right.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str | Markup]]
    text_columns: int = 1


@cache
def environment() -> Environment:
    """The templates of `sieve/report/templates`; a missing variable is an error."""
    return Environment(
        loader=PackageLoader("sieve.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=keep_with_unit,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def keep_with_unit(value: object) -> object:
    """Text whose numbers stay on one line with their units; anything else unchanged."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return _NUMBER_AND_UNIT.sub("\N{NO-BREAK SPACE}\\1", value)
