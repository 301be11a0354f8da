"""A mistake on the command line is told in one sentence, before anything heavy is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import CompactHydraException
from runs import ENVIRONMENT

from sieve.conversion import CONF, register_resolvers, to_config
from sieve.mistakes import message_of, setting_names

# What a process has imported once the command line has ended.
WATCHED = """
import atexit, sys
heavy = ("torch", "transformers", "lightning", "scipy", "datasets")
atexit.register(lambda: print("imported:", [name for name in heavy if name in sys.modules]))
import sieve.run
sieve.run.main()
"""


def command(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", WATCHED, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env=ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tolerence=0.1"], "there is no setting tolerence (did you mean tolerance?); "),
        (["+task=sst2", "tolerance=2%"], "tolerance is '2%', expected a number; set tolerance=0.0"),
        (["+task=sst2", "tolerance=2"], "tolerance is 2.0, expected a fraction of accuracy"),
        (["tune", "my_lora"], "write python -m sieve.tune; it has a --help of its own."),
        (["predit", "runs/x"], "there is no command 'predit' (did you mean predict?); a run sta"),
        (["--multirun", "+task=sts2"], "there is no task 'sts2' (did you mean sst2?); choose one"),
    ],
)
def test_a_mistake_is_one_sentence_before_heavy_imports(
    tmp_path: Path, words: list[str], message: str
) -> None:
    done = command(tmp_path, *words)
    assert done.returncode == 1 and done.stderr.startswith(message), done.stderr
    assert done.stderr.count("\n") == 1 and "HYDRA_FULL_ERROR" not in done.stderr
    assert done.stdout == "imported: []\n"


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    done = command(tmp_path, "--help")
    assert done.returncode == 0 and "tolerance: 0.02" in done.stdout
    assert done.stdout.endswith("imported: []\n")


@pytest.mark.slow
def test_a_folder_of_runs_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = command(tmp_path, "+task=sst2", "paths.runs_dir=file/runs")
    assert done.returncode == 1 and "file/runs/sst2" in done.stderr, done.stderr
    assert "cannot be written (Not a directory); free space" in done.stderr
    assert done.stderr.count("\n") == 1


def told(*words: str) -> str:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        with pytest.raises((CompactHydraException, ValueError)) as caught:
            to_config(compose("config", list(words)))
    return message_of(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=sst2"], "a task is added with a plus: +task=<name>."),
        (["task.data_dir=rows.csv"], "no task was chosen, so there is no task.data_dir yet; add"),
        (["+task=sst2", "projection=foo"], "there is no projection 'foo'; choose one of affine, a"),
        (["+task=sst2", "projecton=svd"], "no setting projecton (did you mean projection?)"),
        (["+task=sst2", "search.row=3"], "no setting search.row (did you mean search.rows?)"),
        (["+task=sst2", "++serch.rows=3"], "no setting serch (did you mean search?)"),
        (["+task=sst2", "tolerance=0,02"], "a decimal point instead of a comma, tolerance=0.02, "),
        (["+task=sst2", "model.name=a,b"], '"model.name=[a,b]", or a text in quotes, "model.name='),
        (["+task=sst2", "+tolerance=0.1"], "tolerance is a setting already; write it without the"),
        (["+task=sst2", "foo"], "the argument 'foo' cannot be read (missing EQUAL"),
        (["+task=sst2", "task.prompt=a: {b}"], "as \"task.prompt='Review: {text}'\"."),
        (
            ["+task=sst2", "speed=none"],
            "speed is 'none', but has settings of its own: speed.enabled,",
        ),
        (["+task=sst2", "device=3"], "such as model, search or device takes a name; `python"),
        (["+task=sst2", "seed=a"], "seed is 'a', expected a whole number."),
        (
            ["+task=sst2", "task.labels=no"],
            'task.labels expects a list; write "task.labels=[first,',
        ),
    ],
)
def test_a_mistake_is_told_with_what_to_write(words: list[str], message: str) -> None:
    assert message in told(*words)


def test_an_interruption_says_what_is_finished_and_how_to_resume() -> None:
    resume = "Run the same command again to resume."
    assert message_of(KeyboardInterrupt()) == f"Interrupted. {resume}"
    error = KeyboardInterrupt("Interrupted. Finished: calibrate, fit")
    assert message_of(error) == f"Interrupted. Finished: calibrate, fit. {resume}"


def test_a_full_disk_is_one_sentence_also_where_no_file_is_named() -> None:
    assert message_of(OSError(28, "No space left on device")).startswith(
        "a file cannot be written (No space left on device); free space on its disk"
    )


def test_another_error_of_the_system_is_told_in_its_own_words() -> None:
    assert message_of(OSError("the connection was reset")) == "the connection was reset"


def test_setting_names_are_dotted() -> None:
    assert {"tolerance", "search.rows", "task.prompt", "projection.learning.level"} <= set(
        setting_names()
    )
