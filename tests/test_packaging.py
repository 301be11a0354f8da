"""What is shipped: the Makefile's targets, the declared dependencies, the wheel."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
# Import name -> distribution, where they differ.
DISTRIBUTIONS = {
    "huggingface_hub": "huggingface-hub",
    "hydra": "hydra-core",
    "lm_eval": "lm-eval",
    "onnx_ir": "onnx-ir",
    "yaml": "pyyaml",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "wandb_workspaces": "wandb-workspaces",
}


def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]


def names(requirements: list[str]) -> set[str]:
    return {
        re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower() for requirement in requirements
    }


def imported() -> set[str]:
    """Distributions that `sieve/` imports, anywhere in its files."""
    found: set[str] = set()
    for path in sorted((ROOT / "sieve").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.split(".")[0])
    third_party = found - set(sys.stdlib_module_names) - {"sieve"}
    return {DISTRIBUTIONS.get(name, name).lower() for name in third_party}


def test_every_import_is_a_declared_dependency() -> None:
    extras = project()["optional-dependencies"]
    usable = [*project()["dependencies"]]
    usable += [line for extra, lines in extras.items() if extra != "dev" for line in lines]
    assert imported() - names(usable) == set()


def test_every_declared_dependency_is_imported() -> None:
    assert names(project()["dependencies"]) - imported() == set()


def test_every_requirement_has_a_lower_and_an_upper_bound() -> None:
    lines = project()["dependencies"] + sum(project()["optional-dependencies"].values(), [])
    assert [line for line in lines if not re.search(r">=[\w.]+,<[\w.]+", line)] == []


def test_one_version_stands_everywhere() -> None:
    version = project()["version"]
    assert f'__version__ = "{version}"' in (ROOT / "sieve/__init__.py").read_text("utf-8")
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text("utf-8").replace("[", "")


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    targets = phony[1].split()
    assert {"help", "demo", "test", "lint", "type", "bench", "docs", "experiments", "clean"} <= set(
        targets
    )
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    plain = re.sub(r"\x1b\[\d*m", "", shown)
    assert sorted(re.findall(r"^ +make ([\w-]+)", plain, re.MULTILINE)) == sorted(targets)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="hatchling is not there; run make install")
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder))
    (path,) = folder.glob("*.whl")
    return path


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_wheel_holds_all_that_git_holds_of_the_package_and_its_conf(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        "sieve/conf/config.yaml",
        "sieve/factorized/modeling_sieve.py",
        *(
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / "sieve/report/templates").iterdir()
        ),
        "sieve/serve/page.html",
        *(path.relative_to(ROOT).as_posix() for path in (ROOT / "sieve").rglob("*.py")),
        *(f"sieve/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")),
        *(
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / "sieve/assets").rglob("*.*")
            if path.suffix != ".pyc"
        ),
    }
    docs = {name for name in wanted if name.startswith("sieve/docs/")}
    assert docs and wanted - packed == docs
    assert not [name for name in packed if name.startswith("sieve/docs/")]
    assert {name.split("/")[0] for name in packed if ".dist-info/" not in name} == {"sieve"}


@pytest.mark.slow
def test_an_installed_wheel_runs_from_anywhere_with_its_own_conf(
    wheel: Path, tmp_path: Path
) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip("install", "--no-deps", "--target", str(site), str(wheel))
    run = [sys.executable, "-W", "error::SyntaxWarning", "-m", "sieve.run"]
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def output(*arguments: str) -> str:
        done = subprocess.run(
            [*run, *arguments], cwd=elsewhere, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "almanac_medicine" in output("--help")
    assert f"{site}/sieve/conf" in output("+task=sst2", "--info", "searchpath")
