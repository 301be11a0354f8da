"""One W&B report per study: the claim, its commands, panels and table."""

from experiments.dashboard_panels import arranged, runset, wr
from experiments.dashboard_studies import STUDIES, Study

PAPER = "LLM-Sieve (arXiv:2505.18350)"


def reports(entity: str, project: str) -> dict[str, wr.Report]:
    """The reports by name; nothing is uploaded."""
    return {name: _report(entity, project, study) for name, study in STUDIES.items()}


def _report(entity: str, project: str, study: Study) -> wr.Report:
    return wr.Report(
        entity=entity,
        project=project,
        title=f"Sieve: {study.title}",
        description=f"{study.claim} After {PAPER}.",
        width="fluid",
        blocks=_blocks(study),
    )


def _blocks(study: Study) -> list[wr.interface.Block]:
    runs = f"Shown are the runs of {' and '.join(study.groups)}, by their group."
    return [
        wr.H2("The claim"),
        wr.P(study.claim),
        wr.H2("How to run it"),
        wr.CodeBlock(code="\n".join(study.commands), language=None),
        wr.P("Without a key the runs are logged offline, and `wandb sync` sends them."),
        wr.H2("What came of it"),
        wr.P(f"{study.reading} {runs}"),
        _grid(study),
        wr.P("The table under the panels has a row per run; its columns can be sorted."),
    ]


def _grid(study: Study) -> wr.PanelGrid:
    """The panels over one run set per group, with the run table below."""
    sets = [runset(group, [group], study.by) for group in study.groups]
    return wr.PanelGrid(runsets=sets, panels=arranged(study.panels()))
