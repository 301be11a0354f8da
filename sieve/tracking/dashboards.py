"""Build Weights & Biases dashboards from `dashboards.yaml`: a workspace, and a report per study.

    python -m sieve.tracking.dashboards --entity ME --project sieve --out specs   # write JSON files
    python -m sieve.tracking.dashboards --entity ME --project sieve --save        # upload

Without `--save` nothing is uploaded, and no key or network is needed. Install `wandb-workspaces`
with `pip install 'sieve-llm[dashboard]'`. Each `--save` creates new dashboards.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

try:
    with warnings.catch_warnings():
        # It still uses a deprecated pydantic interface.
        warnings.simplefilter("ignore", DeprecationWarning)
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
except ImportError as error:
    needs = "dashboards need wandb-workspaces; run pip install 'sieve-llm[dashboard]'."
    if __name__ == "__main__":
        sys.exit(needs)
    raise ImportError(needs) from error

Built = Mapping[str, ws.Workspace | wr.Report]
CONTENT = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
PAPER = "LLM-Sieve (arXiv:2505.18350)"
FINISHED = "Metric('State') == 'finished'"
KEPT = "report/kept_fraction"
WIDTH, HEIGHT = 24, 9  # of a report's grid, of a panel


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the dashboards, then print, write or upload them; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--entity", required=True, help="user or team that owns the project")
    parser.add_argument("--project", default="sieve")
    parser.add_argument("--out", type=Path, help="write the specs to this folder as JSON")
    parser.add_argument(
        "--save", action="store_true", help="upload the dashboards and print their addresses"
    )
    given = parser.parse_args(arguments)
    built = build(given.entity, given.project)
    if given.out:
        write(built, given.out)
    if given.save:
        return save(built)
    if not given.out:
        sys.stdout.write(json.dumps({n: spec(one) for n, one in built.items()}, indent=1) + "\n")
    return 0


def build(entity: str, project: str) -> Built:
    """Workspaces and reports by name; nothing is uploaded."""
    built: dict[str, ws.Workspace | wr.Report] = {}
    for place, (name, by) in enumerate(CONTENT["views"].items(), start=1):
        built[f"workspace-{place}"] = _view(entity, project, name, by)
    for name, study in CONTENT["reports"].items():
        built[f"report-{name}"] = _report(entity, project, study)
    return built


def spec(one: ws.Workspace | wr.Report) -> dict[str, Any]:
    """The upload of a workspace or report, as JSON."""
    return json.loads(one._to_model().model_dump_json(by_alias=True, exclude_none=True))


def write(built: Built, folder: Path) -> None:
    """Write one file per spec."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, one in built.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(spec(one), indent=1) + "\n", encoding="utf-8")
        title = one.name if isinstance(one, ws.Workspace) else one.title
        sys.stdout.write(f"{path}  {title}\n")


def save(built: Built) -> int:
    """Upload all and print their addresses. If that fails, print one sentence and return 1."""
    import wandb

    try:
        if not wandb.login(prompt=False):
            raise RuntimeError("no key; run `wandb login`, or set WANDB_API_KEY")
        for one in built.values():
            one.save()
            sys.stdout.write(f"{one.url}\n")
    except Exception as error:  # wandb-workspaces passes on all errors of its network code.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
        sys.stderr.write(f"The dashboards could not be uploaded: {reason}.\n")
        return 1
    return 0


def _view(entity: str, project: str, name: str, by: Sequence[str]) -> ws.Workspace:
    """All runs, grouped by some settings."""
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[_section(**section) for section in CONTENT["sections"]],
        auto_generate_panels=False,
        settings=ws.WorkspaceSettings(max_runs=100, smoothing_type="none"),
        runset_settings=ws.RunsetSettings(
            filters=FINISHED,
            groupby=[ws.Config(key) for key in by],
            order=[ws.Ordering(ws.Summary(KEPT), ascending=True)],
            pinned_columns=columns(),
        ),
    )


def _section(name: str, columns: int, panels: Sequence[Mapping[str, Any]]) -> ws.Section:
    layout = ws.SectionLayoutSettings(columns=columns, rows=-(-len(panels) // columns))
    built = [panel(one) for one in panels]
    return ws.Section(name=name, panels=built, is_open=True, layout_settings=layout)


def _report(entity: str, project: str, study: Mapping[str, Any]) -> wr.Report:
    """A report: claim, commands and panels over one run set per group, with a table of runs."""
    runs = f"Shown are the runs of {' and '.join(study['groups'])}, by their group."
    sets = [runset(group, study["by"]) for group in study["groups"]]
    return wr.Report(
        entity=entity,
        project=project,
        title=f"Sieve: {study['title']}",
        description=f"{study['claim']} After {PAPER}.",
        width="fluid",
        blocks=[
            wr.H2("The claim"),
            wr.P(study["claim"]),
            wr.H2("How to run it"),
            wr.CodeBlock(code="\n".join(study["commands"]), language=None),
            wr.P("Without a key the runs are logged offline, and `wandb sync` sends them."),
            wr.H2("What came of it"),
            wr.P(f"{study['reading']} {runs}"),
            wr.PanelGrid(runsets=sets, panels=arranged([panel(one) for one in study["panels"]])),
            wr.P("The table under the panels has a row per run; its columns can be sorted."),
        ],
    )


def panel(given: Mapping[str, Any]) -> Any:
    """A panel of an entry; its first key is its kind, with the title as value."""
    (kind, title), *options = given.items()
    return _PANELS[kind](title, **dict(options))


def _scatter(title: str, x: str, y: str, **options: Any) -> wr.ScatterPlot:
    """A point per run."""
    return wr.ScatterPlot(title=title, x=wr.SummaryMetric(x), y=wr.SummaryMetric(y), **options)


def _lines(title: str, x: str, y: str, **options: Any) -> wr.LinePlot:
    """One line per run, over the step of the series."""
    return wr.LinePlot(
        title=title,
        x=x,
        y=[y],
        title_x=x.rpartition("/")[2].replace("_", " "),
        smoothing_factor=0,
        smoothing_type="none",
        max_runs_to_show=100,
        **options,
    )


def _bars(title: str, y: str | list[str], by: str = "") -> wr.BarPlot:
    """One bar per run; with the setting `by`, one bar per value: the mean, with the range."""
    grouped: dict[str, Any] = {}
    if by:
        grouped = {"groupby": wr.Config(by), "groupby_aggfunc": "mean"}
        grouped["groupby_rangefunc"] = "minmax"
    return wr.BarPlot(title=title, metrics=_listed(y), max_bars_to_show=100, **grouped)


def _media(title: str, y: str | list[str]) -> wr.MediaBrowser:
    """The figures that runs log."""
    return wr.MediaBrowser(title=title, media_keys=_listed(y), num_columns=1)


def _table(name: str) -> wr.WeavePanelSummaryTable:
    """The table that runs log."""
    return wr.WeavePanelSummaryTable(table_name=name)


def _parallel(title: str, settings: list[str], figures: list[str]) -> wr.ParallelCoordinatesPlot:
    """Settings and figures of every run as lines across parallel axes."""
    axes: list[tuple[Any, str]] = [(wr.Config(key), key.split(".")[0]) for key in settings]
    axes += [(wr.SummaryMetric(key), key.rpartition("/")[2].split("_")[0]) for key in figures]
    made = [wr.ParallelCoordinatesPlotColumn(metric=m, display_name=name) for m, name in axes]
    return wr.ParallelCoordinatesPlot(title=title, columns=made)


_PANELS: dict[str, Any] = {
    "scatter": _scatter,
    "lines": _lines,
    "bars": _bars,
    "media": _media,
    "table": _table,
    "parallel": _parallel,
}


def _listed(value: str | list[str]) -> list[Any]:
    return [value] if isinstance(value, str) else value


def runset(group: str, by: Sequence[str] = ()) -> wr.Runset:
    """The finished runs of a `logger.group`, sorted by kept fraction, grouped by settings."""
    shown = columns()
    return wr.Runset(
        name=group,
        filters=f"(Metric('Group') == '{group}') and {FINISHED}",
        groupby=[f"config.{key}" for key in by],
        order=[wr.OrderBy(wr.SummaryMetric(KEPT), ascending=True)],
        pinned_columns=["run:displayName"],
        visible_columns=shown,
        column_order=["run:displayName", *shown],
        lock_columns=True,
    )


def columns() -> list[str]:
    """The columns of the run table. W&B stores each top-level setting under a key `value`."""
    settings = []
    for key in CONTENT["columns"]["settings"]:
        first, *rest = key.split(".")
        settings.append(".".join([f"config:{first}", "value", *rest]))
    return [*settings, *(f"summary:{key}" for key in CONTENT["columns"]["figures"])]


def arranged(panels: Sequence[Any], a_row: int = 2) -> list[Any]:
    """Arrange panels in rows on a report's grid."""
    width = WIDTH // a_row
    for place, one in enumerate(panels):
        row, column = divmod(place, a_row)
        one.layout = wr.Layout(x=width * column, y=HEIGHT * row, w=width, h=HEIGHT)
    return list(panels)


if __name__ == "__main__":
    sys.exit(main())
