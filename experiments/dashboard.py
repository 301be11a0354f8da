"""Dashboards of a project on Weights & Biases: a workspace over all runs and a report per table.

    python -m experiments.dashboard --entity ME --project sieve --out specs   # to look at
    python -m experiments.dashboard --entity ME --project sieve --save        # to have them there

Without `--save` nothing is sent, and neither a key nor a network is needed. It takes
`wandb-workspaces` (`pip install 'sieve-llm[dashboard]'`). A second `--save` makes new ones beside
the first.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.dashboard_panels import wr, ws
from experiments.dashboard_reports import reports
from experiments.dashboard_workspace import workspaces

Built = Mapping[str, ws.Workspace | wr.Report]


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, then show, write or save; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--entity", required=True, help="the user or team that the project is of")
    parser.add_argument("--project", default="sieve")
    parser.add_argument("--out", type=Path, help="folder to write the specs to, as JSON")
    parser.add_argument("--save", action="store_true", help="send them, and print their addresses")
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
    """Workspaces and reports by name."""
    views = workspaces(entity, project)
    named = {f"workspace-{place}": view for place, view in enumerate(views.values(), start=1)}
    return named | {f"report-{name}": report for name, report in reports(entity, project).items()}


def spec(one: ws.Workspace | wr.Report) -> dict[str, Any]:
    """What W&B would be sent, as JSON has it."""
    return json.loads(one._to_model().model_dump_json(by_alias=True, exclude_none=True))


def write(built: Built, folder: Path) -> None:
    """A file per spec, and what stands in it on the screen."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, one in built.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(spec(one), indent=1) + "\n", encoding="utf-8")
        title = one.name if isinstance(one, ws.Workspace) else one.title
        sys.stdout.write(f"{path}  {title}\n")


def save(built: Built) -> int:
    """Send all and print their addresses; one sentence and 1 where W&B does not take them."""
    import wandb

    try:
        if not wandb.login(prompt=False):
            raise RuntimeError("there is no key; run `wandb login`, or set WANDB_API_KEY")
        for one in built.values():
            one.save()
            sys.stdout.write(f"{one.url}\n")
    except Exception as error:  # wandb-workspaces raises whatever its transports do.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
        sys.stderr.write(f"Weights & Biases did not take the dashboards: {reason}.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
