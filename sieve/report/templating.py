"""Jinja2 templates of the report, the dashboard and the model card.

HTML escapes every value except Markup, such as a plot. Markdown takes text as it is.
"""

import re
from functools import cache
from inspect import isfunction

from jinja2 import Environment, PackageLoader, StrictUndefined, pass_eval_context
from jinja2.nodes import EvalContext
from markupsafe import Markup

from sieve.report import captions, changes, flips, rows, sentence, spent, units, values, verdict

_NUMBER_AND_UNIT = re.compile(r"(?<=\S) (%|×|s|kB|MB|GB|bytes|points?)(?=[ ,.;:)]|$)")


@cache
def environment() -> Environment:
    """The templates of `sieve/report/templates`, which may call the functions of these modules.

    A missing variable is an error.
    """
    templates = Environment(
        loader=PackageLoader("sieve.report"),
        autoescape=lambda name: name is None or not name.endswith(".md"),
        undefined=StrictUndefined,
        finalize=keep_with_unit,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for module in (values, units, sentence, spent, changes, verdict, rows, flips, captions):
        templates.globals |= {k: f for k, f in vars(module).items() if isfunction(f)}
    return templates


@pass_eval_context
def keep_with_unit(context: EvalContext, value: object) -> object:
    """HTML text whose numbers stay on one line with their units; anything else unchanged."""
    if not context.autoescape or not isinstance(value, str) or isinstance(value, Markup):
        return value
    return _NUMBER_AND_UNIT.sub("\N{NO-BREAK SPACE}\\1", value)
