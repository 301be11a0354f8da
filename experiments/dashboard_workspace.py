"""The workspace of a project: all runs by size, accuracy, task and cost.

Two saved views of the same sections: one point per run, and one per task, model and search.
"""

from typing import Any

from experiments import dashboard_keys as keys
from experiments.dashboard_panels import (
    FINISHED,
    bars,
    columns,
    lines,
    media,
    parallel,
    scatter,
    table,
    ws,
)

GROUPED = (keys.TASK, keys.MODEL, keys.SEARCH)
VIEWS: dict[str, tuple[str, ...]] = {"Sieve": (), "Sieve, by task, model and search": GROUPED}


def workspaces(entity: str, project: str) -> dict[str, ws.Workspace]:
    """The views by name; nothing is uploaded."""
    return {name: _view(entity, project, name, by) for name, by in VIEWS.items()}


def _view(entity: str, project: str, name: str, by: tuple[str, ...]) -> ws.Workspace:
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=sections(),
        auto_generate_panels=False,
        settings=ws.WorkspaceSettings(max_runs=100, smoothing_type="none"),
        runset_settings=ws.RunsetSettings(
            filters=FINISHED,
            groupby=[ws.Config(key) for key in by],
            order=[ws.Ordering(ws.Summary(keys.KEPT), ascending=True)],
            pinned_columns=columns(),
        ),
    )


def sections() -> list[ws.Section]:
    """All sections, from results to cost."""
    return [
        _section("Pareto: what was kept, what was lost", pareto()),
        _section("Accuracy against kept fraction", curves()),
        _section("By task", by_task()),
        _section("Genetic search, by generation", generations()),
        _section("Recovery", recovery(), columns=2),
        _section("Where parameters stay", heat_maps(), columns=2),
        _section("Cost", cost()),
        _section("Tables", [table(keys.TESTS), table(keys.GENOMES), table(keys.MATRICES)], 1),
    ]


def pareto() -> list[Any]:
    """Kept fraction against accuracy and drop, a point per run."""
    return [
        scatter("Accuracy on test rows against kept fraction", keys.KEPT, keys.ACCURACY),
        scatter("Drop against kept fraction", keys.KEPT, keys.DROP, log_x=True),
        parallel(),
    ]


def curves() -> list[Any]:
    """Genomes of the searches, on the selection rows."""
    accuracy, distance = [keys.CURVE_ACCURACY], [keys.CURVE_DIVERGENCE]
    return [
        lines("Accuracy on selection rows", keys.CURVE_KEPT, accuracy, title_x="kept fraction"),
        lines(
            "Divergence from the dense model's answers",
            keys.CURVE_KEPT,
            distance,
            log_y=True,
            title_x="kept fraction",
        ),
        media("Accuracy curves", keys.ACCURACY_CURVE),
    ]


def by_task() -> list[Any]:
    """Kept fraction and drop by task, projection and search."""
    made = [
        bars("Kept fraction by task", [keys.KEPT], keys.TASK),
        bars("Drop by task", [keys.DROP], keys.TASK),
    ]
    for key, name in ((keys.PROJECTION, "projection"), (keys.SEARCH, "search")):
        made.append(bars(f"Kept fraction by {name}", [keys.KEPT], key))
        made.append(bars(f"Drop by {name}", [keys.DROP], key))
    return made


def generations() -> list[Any]:
    """The progress of a genetic search."""
    at, best = keys.GENERATION, [keys.GENERATION_BEST]
    return [
        lines("Smallest genome within the tolerance", at, best, title_x="generation"),
        lines("Median kept fraction", at, [keys.GENERATION_MEDIAN], title_x="generation"),
        lines("Genomes evaluated", at, [keys.GENERATION_EVALUATED], title_x="generation"),
        lines("Seconds of a generation", at, [keys.GENERATION_SECONDS], title_x="generation"),
        media("Generations", keys.GENERATIONS),
        media("Fronts", keys.ACCURACY_CURVE, keys.DIVERGENCE_FRONT),
    ]


def recovery() -> list[Any]:
    """Training after pruning, evaluated on selection rows."""
    at = keys.RECOVERY_STEP
    return [
        lines("Loss on selection rows", at, [keys.RECOVERY_LOSS], title_x="step"),
        lines("Accuracy on selection rows", at, [keys.RECOVERY_ACCURACY], title_x="step"),
    ]


def heat_maps() -> list[Any]:
    """What each matrix keeps and needs."""
    return [
        media("Kept fraction of every matrix", keys.KEPT_HEATMAP),
        media("Bottlenecks", keys.BOTTLENECKS),
        media("Energy lost at each rank", keys.SPECTRUM),
        table(keys.BOTTLENECK_ROWS),
    ]


def cost() -> list[Any]:
    """The cost of a run and the savings of its result."""
    return [
        bars("Seconds per stage", keys.SECONDS, keys.SEARCH),
        bars("Seconds of all stages", [keys.STAGE_SECONDS], keys.SEARCH),
        bars("Genomes evaluated", [keys.EVALUATIONS], keys.SEARCH),
        bars("Rows scored by the search", [keys.EXAMPLES], keys.SEARCH),
        bars("Peak memory, MiB", [keys.MEMORY], keys.MODEL),
        bars("Speed, times the dense model's", [keys.PREFILL, keys.DECODE], keys.TASK),
    ]


def _section(name: str, panels: list[Any], columns: int = 3) -> ws.Section:
    rows = -(-len(panels) // columns)
    layout = ws.SectionLayoutSettings(columns=columns, rows=rows)
    return ws.Section(name=name, panels=panels, is_open=True, layout_settings=layout)
