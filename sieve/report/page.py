"""The report: one self-contained HTML page that a browser shows without a network.

The page contains plotly.js once; its content security policy forbids the page to load anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from sieve.report.figures import figures
from sieve.report.flips import read_flips
from sieve.report.next_steps import next_steps
from sieve.report.result import read
from sieve.report.rivals import standards
from sieve.report.sentence import answer_sentence
from sieve.report.style import untitled
from sieve.report.templating import environment
from sieve.report.values import date, short_name
from sieve.report.verdict import verdict
from sieve.runtime.artifacts import write_text_atomic

_PLOT_OPTIONS = {"responsive": True, "displayModeBar": False, "displaylogo": False}


@dataclass(frozen=True)
class Plot:
    """A figure as HTML without its title, and the title as its label for screen readers."""

    label: str
    html: Markup


def write_report(record: Mapping[str, object], path: Path) -> None:
    """Write the page of a `result.json`. On failure an existing page stays unchanged.

    The page shows rows of `flips.jsonl` and the path of `export`, which are beside it.
    """
    write_text_atomic(path, render_page(record, path.parent))


def render_page(record: Mapping[str, object], folder: Path | None = None) -> str:
    """The whole page as text; `folder` is the run's, without which the page names no path."""
    result = read(record)
    plots = {name: _plot(name, figure) for name, figure in figures(record).items()}
    title = f"{result.task or 'task'} on {short_name(result.model)}"
    return (
        environment()
        .get_template("report.html")
        .render(
            result=result,
            title=title,
            eyebrow=" · ".join(
                filter(None, ["Sieve report", title, result.date and f"{date(result.date)} UTC"])
            ),
            answer=answer_sentence(result),
            verdict=verdict(result),
            standards=standards(result),
            flipped=read_flips(folder / "flips.jsonl") if folder else [],
            steps=next_steps(result, folder),
            plots=plots,
            plotly_js=Markup(get_plotlyjs()) if plots else "",
        )
    )


def _plot(name: str, figure: go.Figure) -> Plot:
    label = str(figure.layout.title.text)
    html = untitled(figure).to_html(
        config=_PLOT_OPTIONS,
        include_plotlyjs=False,
        full_html=False,
        div_id=f"figure-{name.replace('_', '-')}",
    )
    return Plot(label, Markup(html))
