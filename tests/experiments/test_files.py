"""No file of `experiments/` is without a purpose, and none names a module that is gone."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from experiments.reproduce import CLAIMS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "experiments"
SOURCES = sorted([*FOLDER.rglob("*.py"), *(ROOT / "tests").rglob("*.py")])


def test_every_file_has_a_purpose_on_the_results_page() -> None:
    files = re.findall(r"`([\w./]+)`", (FOLDER / "README.md").read_text().split("## Files")[1])
    named = {name.split("/")[0] for name in files}
    held = {path.name for path in FOLDER.iterdir() if path.name != "__pycache__"}
    assert held - named == {"README.md"} and named - held == set()


def test_every_result_and_module_of_a_claim_has_the_other() -> None:
    modules = {path.stem for path in (FOLDER / "claims").glob("*.py")} - {"__init__"}
    results = {path.stem for path in (FOLDER / "results").glob("*.json")}
    assert set(CLAIMS) <= modules and results <= modules


def test_every_module_of_the_experiments_that_is_imported_exists() -> None:
    for path in SOURCES:
        for name in imported(ast.parse(path.read_text("utf-8"))):
            place = ROOT.joinpath(*name.split("."))
            assert place.is_dir() or place.with_suffix(".py").exists(), (path, name)


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules of `experiments` that a file imports, at any place."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("experiments"):
            yield str(node.module)
        elif isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name.startswith("experiments"))
