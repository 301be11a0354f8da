"""The dashboard's page: a table that reads without any script, and one small script beside it.

Everything from a file is escaped, and the content security policy lets this one script run and
nothing be fetched; what the script knows is JSON that cannot end the element it stands in.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from sieve.report.dashboard.columns import Column, columns, how, method, model, projection
from sieve.report.dashboard.gather import Run
from sieve.report.dashboard.records import folder_names, link, records
from sieve.report.dashboard.summary import headline, key_figures, needs
from sieve.report.html import text
from sieve.report.values import NOT_MEASURED, look
from sieve.runtime.artifacts import write_text_atomic

_SCRIPTS = (
    "page.js",
    "table.js",
    "axes.js",
    "plot.js",
    "figure.js",
    "maps.js",
    "compare.js",
    "main.js",
)
_FILTERS: dict[str, tuple[str, Callable[[Run], str]]] = {
    "task": ("Task", lambda run: str(look(run.result, "task"))),
    "model": ("Model", model),
    "search": ("Search", lambda run: method(run) or NOT_MEASURED),
    "projection": ("Projection", lambda run: projection(run) or NOT_MEASURED),
}


def write_dashboard(runs: Sequence[Run], out: Path) -> None:
    """Write the page of some runs, whole or not at all; its links are relative to its folder."""
    write_text_atomic(out, render_dashboard(runs, out))


def render_dashboard(runs: Sequence[Run], out: Path) -> str:
    """The whole page as text; `out` is where it will stand."""
    script = _script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    style = "\n".join(
        [_asset("sieve.report", "templates/page.css"), _asset(__package__, "dashboard.css")]
    )
    title = headline(runs)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{text(title)} – Sieve dashboard</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<header>
<p class="eyebrow">Sieve dashboard</p>
<h1>{text(title)}</h1>
</header>
<main>
<noscript><p class="note">Filters, figures and comparisons need JavaScript; the tables do not.</p>
</noscript>
{key_figures(runs)}
{needs(runs)}
{_runs(runs, out)}
{_FIGURE}
{_COMPARISON}
</main>
<aside id="picked" aria-label="Picked runs" hidden></aside>
<footer><p>Written by Sieve. The page needs no network; its links hold when the folder moves.</p>
</footer>
<script type="application/json" id="data">{embedded(records(runs, out))}</script>
<script>{script}</script>
</body>
</html>
"""


def embedded(value: Any) -> str:
    """JSON that may stand in a script element: no `<` in it, so that nothing can end it."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        line = line.replace(character, f"\\u{ord(character):04x}")
    return line


def _asset(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")


def _script() -> str:
    """All scripts in one function, so that they share their names with nothing else."""
    parts = "\n".join(_asset(__package__, name) for name in _SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}}})();\n'


def _runs(runs: Sequence[Run], out: Path) -> str:
    """The section with the filters and the table of all runs."""
    shown, names = columns(runs), folder_names(runs)
    heads = "".join(_head(column) for column in shown)
    body = "\n".join(
        _row(index, run, name, shown, out)
        for index, (run, name) in enumerate(zip(runs, names, strict=True))
    )
    plural = "" if len(runs) == 1 else "s"
    return f"""<section aria-labelledby="runs-heading">
<h2 id="runs-heading">All runs</h2>
{_filters(runs)}
<p class="note"><span id="shown" role="status">{len(runs)} run{plural}</span>; the name of a task \
opens the run's report.</p>
<div class="scroll tall" role="region" aria-labelledby="runs-heading" tabindex="0">
<table id="runs">
<thead><tr><th scope="col" class="pick"><span class="unseen">Compare</span></th>{heads}</tr></thead>
<tbody>
{body}
</tbody>
</table>
</div>
</section>"""


def _head(column: Column) -> str:
    css = ' class="number"' if column.numeric else ""
    hint = f' title="{text(column.hint)}"' if column.hint else ""
    button = f'<button type="button"{hint}>{text(column.heading)}</button>'
    return f'<th scope="col"{css} data-key="{column.key}" aria-sort="none">{button}</th>'


def _row(index: int, run: Run, name: str, shown: Sequence[Column], out: Path) -> str:
    pick = f'<input type="checkbox" aria-label="Compare {escape(name)}">'
    cells = "".join(_cell(column, run, link(run.report, out)) for column in shown)
    start = f'<tr id="run-{index}" data-folder="{escape(name)}"><td class="pick">{pick}</td>'
    return f"{start}{cells}</tr>"


def _cell(column: Column, run: Run, report: str | None) -> str:
    """A cell with what it is sorted by; that of the task is the row's, and opens its report."""
    value, content = column.value(run), column.cell(run)
    known = "" if value is None else f' data-value="{escape(str(value))}"'
    css = ' class="number"' if column.numeric else f' class="{column.key}-cell"'
    if column.key != "task":
        return f"<td{css}{known}>{content}</td>"
    linked = content if report is None else f'<a href="{escape(report)}">{content}</a>'
    return f'<th scope="row"{css}{known}>{linked}<small class="narrow">{how(run)}</small></th>'


def _filters(runs: Sequence[Run]) -> str:
    def choice(key: str, heading: str, of: Callable[[Run], str]) -> str:
        names = sorted({*map(of, runs)})
        options = "".join(f'<option value="{escape(n)}">{escape(n)}</option>' for n in names)
        return (
            f'<label>{heading} <select name="{key}"><option value="">all</option>{options}'
            "</select></label>"
        )

    choices = "\n".join(choice(key, *named) for key, named in _FILTERS.items())
    return f"""<form id="filters" class="controls">
<label class="search">Find <input type="search" name="words" placeholder="any words"></label>
{choices}
<button type="reset">Clear</button>
</form>"""


_FIGURE = """<section aria-labelledby="front-heading" class="scripted">
<h2 id="front-heading">Size against what is lost</h2>
<form id="front-controls" class="controls">
<label>Task <select name="series"></select></label>
<label>Upwards <select name="y"></select></label>
<label>Across <select name="x"><option value="kept">kept of prunable</option>\
<option value="kept_model">kept of the whole model</option></select></label>
<label>Colour <select name="colour"></select></label>
</form>
<figure id="front"></figure>
</section>"""

_COMPARISON = """<section aria-labelledby="compare-heading" class="scripted" id="compare">
<h2 id="compare-heading" tabindex="-1">Two runs side by side</h2>
<form id="pair" class="controls">
<label><span class="badge a" aria-hidden="true">A</span><span class="unseen">Run A</span> \
<select name="a"></select></label>
<label><span class="badge b" aria-hidden="true">B</span><span class="unseen">Run B</span> \
<select name="b"></select></label>
<button type="button" name="swap">Swap</button>
<button type="button" name="clear">Clear</button>
</form>
<div id="compared"></div>
</section>"""
