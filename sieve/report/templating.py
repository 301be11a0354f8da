"""Jinja2 templates of the report, the dashboard and the model card.

HTML escapes every value except Markup, such as a plot. Markdown takes text as it is.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, pass_eval_context
from jinja2.nodes import EvalContext
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
        autoescape=lambda name: name is None or not name.endswith(".md"),
        undefined=StrictUndefined,
        finalize=keep_with_unit,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


@pass_eval_context
def keep_with_unit(context: EvalContext, value: object) -> object:
    """HTML text whose numbers stay on one line with their units; anything else unchanged."""
    if not context.autoescape or not isinstance(value, str) or isinstance(value, Markup):
        return value
    return _NUMBER_AND_UNIT.sub("\N{NO-BREAK SPACE}\\1", value)
