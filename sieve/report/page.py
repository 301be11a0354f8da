"""The report: one self-contained HTML page that a browser shows without any network.

plotly.js stands in the page once; a content security policy forbids it to load anything.
"""

from collections.abc import Mapping
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from sieve.report import html, sections, sizes_section
from sieve.report.data_section import data
from sieve.report.figures import figures
from sieve.report.html import text
from sieve.report.search_section import search
from sieve.report.sentence import answer_sentence, verdict
from sieve.report.style import untitled
from sieve.report.units import metric_name
from sieve.report.values import look, short_name
from sieve.runtime.artifacts import write_text_atomic

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
)
_PLOT_OPTIONS = {"responsive": True, "displayModeBar": False, "displaylogo": False}
_CAPTIONS = {
    "accuracy_curve": (
        "Every genome the search evaluated. The selection split steers the search; the answer "
        "above was measured once, on the test split."
    ),
    "kept_heatmap": (
        "Percent of its parameters that each matrix kept: the darker, the more the task needs it. "
        "Layer 0 reads the input."
    ),
    "accuracy_front": (
        "Every genome the search evaluated. Those on the line are beaten by none in size and "
        "accuracy at once; the answer above was measured once, on the test split."
    ),
    "divergence_front": (
        "How far the genomes' answers are from the dense model's (mean Kullback-Leibler divergence "
        "per row; of what is written, how much less likely the dense model's own answers are): "
        "measured more finely than accuracy, which moves by whole rows."
    ),
    "generations": (
        "Sizes of the genomes of each generation. A genome is feasible when it is within the "
        "tolerance on the rows that the search sees."
    ),
    "bottlenecks": (
        "Percent of its parameters that a matrix needs when all others are left dense, to stay "
        "within the tolerance on the rows of the search, and what it has in the mean of the "
        "smallest tenth of the feasible genomes: the darker, the more of a bottleneck."
    ),
    "spectrum": (
        "How much of a matrix's output on the calibration rows is lost when only part of its rank "
        "is kept, mean over the layers. The faster a line falls, the fewer directions are in use."
    ),
    "sizes_and_speeds": "The pruned model as a share of the dense one, the dashed line.",
}
# Printing lays figures out anew for the width of the paper, and back afterwards.
_PRINT_SCRIPT = """
const plots = () => document.querySelectorAll(".js-plotly-plot");
const fit = (plot, height, width) => {
  for (const box of [plot.parentElement, plot]) box.style.height = `${height}px`;
  Plotly.relayout(plot, {height, width, autosize: !width});
};
addEventListener("beforeprint", () => plots().forEach((plot) => {
  plot.dataset.height = plot.layout.height;
  const tall = ["figure-kept-heatmap", "figure-bottlenecks"].includes(plot.id);
  const limit = tall ? 800 : 300;
  fit(plot, Math.min(limit, plot.layout.height), 660);
}));
addEventListener("afterprint", () => plots().forEach((plot) => {
  fit(plot, Number(plot.dataset.height), null);
}));
"""


def write_report(result: Mapping[str, Any], path: Path) -> None:
    """Write the page for a result (the dictionary of `result.json`), whole or not at all."""
    write_text_atomic(path, render_page(result))


def render_page(result: Mapping[str, Any]) -> str:
    """The whole page as text."""
    title = f"{look(result, 'task') or 'task'} on {short_name(look(result, 'model'))}"
    plots = figures(result)
    body = "\n".join(filter(None, [_header(result, title), _main(result, plots)]))
    script = f"<script>{get_plotlyjs()}</script>" if plots else ""
    style = files("sieve.report").joinpath("page.css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{text(title)} – Sieve report</title>
<style>
{style}</style>
{script}
</head>
<body>
{body}
<footer><p>Written by Sieve {text(look(result, "sieve_version") or "")}</p></footer>
{f"<script>{_PRINT_SCRIPT}</script>" if plots else ""}
</body>
</html>
"""


def _header(result: Mapping[str, Any], title: str) -> str:
    found = verdict(result)
    eyebrow = " · ".join(filter(None, ["Sieve report", title, _date(look(result, "date"))]))
    return f"""<header>
<p class="eyebrow">{text(eyebrow)}</p>
<h1>{text(answer_sentence(result))}</h1>
<p class="verdict {found.kind}">{text(found.text)}</p>
</header>"""


def _main(result: Mapping[str, Any], plots: Mapping[str, go.Figure]) -> str:
    def plot(name: str) -> str:
        return _plot(name, plots[name]) if name in plots else ""

    parts = [
        sections.key_figures(result),
        html.section(
            "accuracy",
            f"{metric_name(result).capitalize()} against size",
            plot("accuracy_curve"),
            plot("accuracy_front"),
            plot("divergence_front"),
            sizes_section.other_sizes(result),
        ),
        search(result, plot("generations")),
        html.section("kept", "Where the parameters stayed", plot("kept_heatmap")),
        html.section(
            "bottlenecks",
            "The bottleneck map",
            plot("bottlenecks"),
            sizes_section.without_bottlenecks(result),
        ),
        html.section("spectrum", "How many directions are in use", plot("spectrum")),
        html.section(
            "sizes",
            "Sizes and speeds",
            plot("sizes_and_speeds"),
            sections.sizes_and_speeds_table(result),
        ),
        sections.time_spent(result),
        data(result),
        sections.levels(result),
        sections.settings(result),
    ]
    missing = (
        '<noscript><p class="note">The figures need JavaScript; the tables do not.</p></noscript>'
    )
    return "<main>\n" + (missing if plots else "") + "\n".join(filter(None, parts)) + "\n</main>"


def _plot(name: str, figure: go.Figure) -> str:
    """A figure without its title, which the section's heading says already."""
    described = str(figure.layout.title.text)
    identifier = f"figure-{name.replace('_', '-')}"
    plot = untitled(figure).to_html(
        config=_PLOT_OPTIONS, include_plotlyjs=False, full_html=False, div_id=identifier
    )
    caption = f"<figcaption>{text(_CAPTIONS[name])}</figcaption>"
    return f'<figure role="group" aria-label="{text(described)}">\n{plot}\n{caption}\n</figure>'


def _date(stamp: Any) -> str:
    """ "2026-11-23T23:00:00Z" → "23 November 2026, 23:00 UTC"; anything else stays as it is."""
    try:
        moment = datetime.fromisoformat(str(stamp))
    except ValueError:
        return str(stamp) if stamp else ""
    zone = f" {moment.tzname()}" if moment.tzinfo else ""
    return f"{moment.day} {moment:%B %Y, %H:%M}{zone}"
