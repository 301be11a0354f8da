"""The dashboard's page: a table that reads without JavaScript, plotly.js and one short script.

A content security policy lets these two scripts run and nothing be loaded. Jinja2 escapes all
text from files.
"""

import base64
import hashlib
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

from plotly.offline import get_plotlyjs

from sieve.report.dashboard.columns import VERDICTS, columns, scores, tolerance
from sieve.report.dashboard.gather import Run
from sieve.report.dashboard.records import folder_names, link, page_data
from sieve.report.dashboard.summary import headline, method, needs
from sieve.report.templating import environment
from sieve.report.values import NOT_MEASURED, short_name
from sieve.runtime.artifacts import write_text_atomic

_FILTERS: dict[str, Callable[[Run], str]] = {
    "task": lambda run: run.result.task,
    "model": lambda run: short_name(run.result.model),
    "search": lambda run: run.result.search.method or NOT_MEASURED,
    "projection": lambda run: run.result.projection or NOT_MEASURED,
}


def write_dashboard(runs: Sequence[Run], out: Path) -> None:
    """Write the page, completely or not at all; its links are relative to its folder."""
    write_text_atomic(out, render_dashboard(runs, out))


def render_dashboard(runs: Sequence[Run], out: Path) -> str:
    """The page as text; `out` is the file it will be written to."""
    scripts = [get_plotlyjs(), _asset("sieve.report.dashboard", "dashboard.js")]
    shown = columns(runs)
    template = environment().get_template("dashboard.html")
    return template.render(
        title=headline(runs),
        style=_asset("sieve.report", "templates/page.css") + _asset(__package__, "dashboard.css"),
        scripts=scripts,
        digests=[_digest(script) for script in scripts],
        needs=[(index, run.result, method(run)) for index, run in needs(runs)],
        scores=scores,
        tolerance=tolerance,
        columns=shown,
        filters={key: sorted({value(run) for run in runs}) for key, value in _FILTERS.items()},
        rows=[
            (name, method(run), link(run.report, out), [(c, c.cell(run)) for c in shown])
            for run, name in zip(runs, folder_names(runs), strict=True)
        ],
        verdicts=VERDICTS,
        data=page_data(runs),
    )


def _asset(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
