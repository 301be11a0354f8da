"""Build Weights & Biases dashboards: a workspace over all runs and one report per table.

    python -m experiments.dashboard --entity ME --project sieve --out specs   # write JSON files
    python -m experiments.dashboard --entity ME --project sieve --save        # upload

Without `--save` nothing is uploaded, and no key or network is needed. Install `wandb-workspaces`
with `pip install 'sieve-llm[dashboard]'`. Each `--save` creates new dashboards.
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
    """Workspaces and reports by name."""
    views = workspaces(entity, project)
    named = {f"workspace-{place}": view for place, view in enumerate(views.values(), start=1)}
    return named | {f"report-{name}": report for name, report in reports(entity, project).items()}


def spec(one: ws.Workspace | wr.Report) -> dict[str, Any]:
    """The upload of a workspace or report, as JSON."""
    return json.loads(one._to_model().model_dump_json(by_alias=True, exclude_none=True))


def write(built: Built, folder: Path) -> None:
    """Write one file per spec, or print the specs."""
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


if __name__ == "__main__":
    sys.exit(main())
