"""The evaluator with fake launchers."""

import json
import pickle
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_genetic_sweeper._jobs import Evaluator
from hydra_plugins.hydra_genetic_sweeper._objectives import Evaluation, Objectives
from hydra_plugins.hydra_genetic_sweeper._records import Recorder, is_lost, reason
from hydra_plugins.hydra_genetic_sweeper._space import Continuous, Discrete, Genome, Space
from hydra_plugins.hydra_genetic_sweeper.config import GeneticSweeperConf
from omegaconf import OmegaConf

SIZE = Objectives({"size": "minimize"}, {})
SPACE = Space((Discrete("a", tuple(range(9))), Continuous("b", 1e-5, 1e-1, log=True)))
GENOMES = [(float(i), SPACE.variables[1].encode(1e-4 * 1.7**i)) for i in range(6)]
Job = Callable[[dict[str, Any]], Any]


class FakeLauncher:
    """Calls a function with the chunk of each job. If the function raises, the job fails."""

    def __init__(self, job: Job) -> None:
        self.job, self.chunks = job, list[dict[str, Any]]()

    def launch(self, jobs: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        returns = []
        for overrides in jobs:
            [path] = [o.split("=", 1)[1].strip("'") for o in overrides if o.startswith("chunk=")]
            chunk = json.loads(Path(path).read_text())
            self.chunks.append(chunk)
            job = JobReturn(status=JobStatus.COMPLETED)
            try:
                job.return_value = self.job(chunk)
            except RuntimeError as error:
                job.status, job.return_value = JobStatus.FAILED, error
            returns.append(job)
        return returns


def evaluator(folder: Path, job: Job, **changes: Any) -> tuple[Evaluator, FakeLauncher]:
    launcher = FakeLauncher(job)
    settings = GeneticSweeperConf(**{"shard_key": "chunk", "shard_size": None} | changes)
    return Evaluator(settings, SPACE, SIZE, launcher, folder, []), launcher


def listed(chunk: dict[str, Any]) -> list[float]:
    return [float(values[0]) for values in chunk["genomes"]]


def sizes(evaluations: dict[Genome, Evaluation]) -> list[float]:
    return [evaluations[genome].values["size"] for genome in GENOMES]


def test_a_returned_list_has_the_order_of_the_genomes(tmp_path: Path) -> None:
    jobs_evaluator, launcher = evaluator(tmp_path, listed, n_workers=2)
    assert jobs_evaluator.progress() == 0
    assert jobs_evaluator.evaluate(1, GENOMES, 5) == 2
    assert sizes(jobs_evaluator.evaluations) == [0, 1, 2, 3, 4, 5]
    assert [(s["job"], s["worker"], s["generation"]) for s in launcher.chunks] == [
        (5, 0, 1),
        (6, 1, 1),
    ]


def test_a_chunk_has_the_limit_and_the_return_value_of_the_prepare_job(tmp_path: Path) -> None:
    jobs_evaluator, launcher = evaluator(tmp_path, listed)
    jobs_evaluator.limit, jobs_evaluator.prepared = {"size": 3.5}, {"bank": "here"}
    jobs_evaluator.evaluate(1, GENOMES, 0)
    assert launcher.chunks[0]["limit"] == {"size": 3.5}
    assert launcher.chunks[0]["prepared"] == {"bank": "here"}


def test_results_of_a_killed_search_count_for_any_split_into_chunks(tmp_path: Path) -> None:
    def cut_short(chunk: dict[str, Any]) -> None:
        with open(chunk["results"], "a") as file:
            file.write('{"index": 1, "size": 1}\n{"index": 4, "size": 4}\n{"index": 2, "si')
        raise KeyboardInterrupt

    jobs_evaluator, _ = evaluator(tmp_path, cut_short)
    with pytest.raises(KeyboardInterrupt):
        jobs_evaluator.evaluate(1, GENOMES, 0)
    assert jobs_evaluator.progress() == 2
    again, launcher = evaluator(tmp_path, lambda chunk: [-1.0] * len(chunk["genomes"]), n_workers=2)
    again.evaluate(1, GENOMES, 0)
    assert sizes(again.evaluations) == [-1, 1, -1, -1, 4, -1]
    known = [Path(chunk["results"]).read_text() for chunk in launcher.chunks]
    assert sum(text.count("\n") for text in known) == 2


@pytest.mark.parametrize("same", [True, False])
def test_a_saved_return_value_counts_for_the_same_overrides_only(
    tmp_path: Path, same: bool
) -> None:
    jobs_evaluator, launcher = evaluator(tmp_path, listed)
    jobs_evaluator.evaluate(1, GENOMES, 4)
    [path] = (tmp_path / "chunks/0001").glob("*.json")
    body = {"overrides": [f"chunk='{path}'" if same else "chunk=another"], "returned": [9.0] * 6}
    (tmp_path / "returned").mkdir()
    (tmp_path / "returned/4.json").write_text(json.dumps(body))
    again, launcher = evaluator(tmp_path, listed)
    again.evaluate(1, GENOMES, 4)
    assert sizes(again.evaluations) == ([9.0] * 6 if same else [0, 1, 2, 3, 4, 5])
    assert len(launcher.chunks) == (0 if same else 1)


def test_only_jobs_without_all_results_are_launched_again(tmp_path: Path) -> None:
    calls: list[int] = []

    class Dying(FakeLauncher):
        def launch(self, jobs: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
            calls.append(len(jobs))
            returns = super().launch(jobs, initial_job_idx)
            if len(calls) == 1:
                raise OSError("a worker died")
            return returns

    def one_lives(chunk: dict[str, Any]) -> None:
        if chunk["chunk"] == 0 or len(calls) > 1:
            lines = [{"index": i, "size": v[0]} for i, v in enumerate(chunk["genomes"])]
            Path(chunk["results"]).write_text("".join(json.dumps(x) + "\n" for x in lines))

    jobs_evaluator, _ = evaluator(tmp_path, one_lives, n_workers=2)
    jobs_evaluator.launcher = Dying(one_lives)
    jobs_evaluator.evaluate(1, GENOMES, 0)
    assert calls == [2, 1] and sizes(jobs_evaluator.evaluations) == [0, 1, 2, 3, 4, 5]


class Killed(FakeLauncher):
    """Loses every job. In its n-th launch, a job first evaluates `genomes[n]` genomes."""

    def __init__(self, *genomes: int) -> None:
        super().__init__(listed)
        self.genomes, self.calls = list(genomes), 0

    def launch(self, jobs: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        self.calls += 1
        super().launch(jobs, initial_job_idx)
        results = Path(self.chunks[-1]["results"])
        done = results.read_text().count("\n")
        new = range(done, done + self.genomes.pop(0))
        with results.open("a") as file:
            file.writelines(f'{{"index": {i}, "size": {i}}}\n' for i in new)
        raise OSError("killed")


def test_a_lost_job_is_launched_again_while_it_brings_results(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jobs_evaluator, _ = evaluator(tmp_path, listed)
    jobs_evaluator.launcher = launcher = Killed(2, 0, 1, 1, 2)
    jobs_evaluator.evaluate(1, GENOMES, 0)
    assert sizes(jobs_evaluator.evaluations) == [0, 1, 2, 3, 4, 5] and launcher.calls == 5
    assert [record.getMessage() for record in caplog.records][0] == (
        "generation 1: 1 of 1 jobs lost; of 6 genomes 4 have no result and are launched again "
        "(OSError: killed)"
    )
    assert len(caplog.records) == 4


@pytest.mark.parametrize(
    ("genomes", "retries", "words"),
    [
        (
            (2, 0, 0),
            1,
            "4 of 6 .*First error: its job was lost, 2 times in a row: OSError: killed$",
        ),
        ((0, 0, 0), 2, "no job returned a result; the launcher failed: OSError: killed$"),
        ((2,), 0, "4 of 6 .*First error: its job was lost: OSError: killed$"),
    ],
)
def test_a_job_lost_without_new_results_ends_the_search(
    tmp_path: Path, genomes: tuple[int, ...], retries: int, words: str
) -> None:
    jobs_evaluator, _ = evaluator(tmp_path, listed, retries=retries)
    jobs_evaluator.launcher = Killed(*genomes)
    with pytest.raises(ValueError, match=words):
        jobs_evaluator.evaluate(1, GENOMES, 0)
    assert jobs_evaluator.launcher.genomes == []


def test_each_submitit_job_gets_its_own_call_and_survives_a_lost_one(
    tmp_path: Path,
) -> None:
    lost, running = threading.Event(), list[int]()

    class Apart(FakeLauncher):
        __module__ = "hydra_plugins.hydra_submitit_launcher.made"

        def launch(self, jobs: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
            worker = initial_job_idx % 3
            assert len(jobs) == 1 and worker not in running  # A worker has one job at a time.
            running.append(worker)
            try:
                if initial_job_idx == 0 and not lost.is_set():
                    lost.set()
                    raise OSError("killed")
                assert lost.wait(60)
                return super().launch(jobs, initial_job_idx)
            finally:
                running.remove(worker)

    jobs_evaluator, _ = evaluator(tmp_path, listed, n_workers=3, shard_size=1)
    jobs_evaluator.launcher = launcher = Apart(listed)
    jobs_evaluator.evaluate(1, GENOMES, 0)
    assert sizes(jobs_evaluator.evaluations) == [0, 1, 2, 3, 4, 5]
    assert sorted(chunk["job"] for chunk in launcher.chunks) == [0, 1, 2, 3, 4, 5]


def test_a_submitit_timeout_is_a_lost_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    utils = pytest.importorskip("submitit.core.utils")

    def out_of_time(config: Any) -> None:
        try:
            raise utils.UncompletedJobError("timed-out too many times")
        except RuntimeError:
            raise ValueError("as an application tells its user") from None

    job = OmegaConf.create({"job": {"num": 3}, "overrides": {"task": []}})
    monkeypatch.setattr(HydraConfig, "get", lambda: job)
    with pytest.raises(utils.UncompletedJobError, match="too many times") as raised:
        Recorder(out_of_time, tmp_path)(OmegaConf.create())
    back = JobReturn(status=JobStatus.FAILED)
    back.return_value = pickle.loads(pickle.dumps(raised.value))
    assert is_lost(back) and not (tmp_path / "failed").exists()
    back.return_value = ValueError("of the application")
    assert not is_lost(back)


def test_a_worker_changes_to_the_working_directory_of_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = pickle.dumps(Recorder(listed, Path("sweep")))
    monkeypatch.chdir("/")
    pickle.loads(text)
    assert Path.cwd() == tmp_path


def test_a_long_error_message_keeps_its_beginning_and_end() -> None:
    text = reason(OSError("a" + "b" * 5000 + "c"))
    assert text.startswith("OSError: ab") and text.endswith("bc") and len(text) < 700


@pytest.mark.parametrize(("extra", "widths"), [([], [6]), (["device={worker}"], [2, 2, 2])])
def test_with_worker_overrides_a_worker_runs_one_job_at_a_time(
    tmp_path: Path, extra: list[str], widths: list[int]
) -> None:
    calls: list[list[str]] = []

    class Listing(FakeLauncher):
        def launch(self, jobs: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
            calls.append([overrides[-1] for overrides in jobs])
            return super().launch(jobs, initial_job_idx)

    jobs_evaluator, _ = evaluator(
        tmp_path, listed, n_workers=2, shard_size=1, worker_overrides=extra
    )
    jobs_evaluator.launcher = Listing(listed)
    jobs_evaluator.evaluate(1, GENOMES, 0)
    assert [len(jobs) for jobs in calls] == widths
    assert sizes(jobs_evaluator.evaluations) == [0, 1, 2, 3, 4, 5]
    if extra:
        assert calls == [["device=0", "device=1"]] * 3


def test_a_job_that_raises_fails_its_genomes_and_is_not_launched_again(tmp_path: Path) -> None:
    def raises(chunk: dict[str, Any]) -> list[float]:
        if chunk["chunk"] == 1:
            raise RuntimeError("no luck")
        return listed(chunk)

    jobs_evaluator, launcher = evaluator(tmp_path, raises, n_workers=3, max_failure_rate=0.4)
    jobs_evaluator.evaluate(1, GENOMES, 0)
    assert len(launcher.chunks) == 3
    assert [
        jobs_evaluator.evaluations[g].error for g in GENOMES if jobs_evaluator.evaluations[g].failed
    ] == ["RuntimeError: no luck"] * 2
    strict, _ = evaluator(tmp_path / "strict", raises, n_workers=3)
    with pytest.raises(
        ValueError, match="2 of 6 genomes failed.*First error: RuntimeError: no luck"
    ):
        strict.evaluate(1, GENOMES, 0)


def test_failed_genomes_are_evaluated_again_on_resume(tmp_path: Path) -> None:
    def broken(chunk: dict[str, Any]) -> None:
        lines = [{"index": 0, "size": 7}] + [{"index": i, "error": "broken"} for i in range(1, 6)]
        Path(chunk["results"]).write_text("".join(json.dumps(x) + "\n" for x in lines))

    with pytest.raises(ValueError, match="5 of 6 genomes failed.*First error: broken"):
        evaluator(tmp_path, broken)[0].evaluate(1, GENOMES, 0)
    again, launcher = evaluator(tmp_path, listed)
    again.evaluate(1, GENOMES, 0)
    assert sizes(again.evaluations) == [7, 1, 2, 3, 4, 5] and len(launcher.chunks) == 1


@pytest.mark.parametrize(
    ("returned", "words"), [([1.0], "expected a list"), (None, "returned NoneType")]
)
def test_a_chunk_without_results_is_refused(tmp_path: Path, returned: Any, words: str) -> None:
    jobs_evaluator, _ = evaluator(tmp_path, lambda chunk: returned)
    with pytest.raises(ValueError, match=words):
        jobs_evaluator.evaluate(1, GENOMES, 0)


def test_a_result_with_an_index_out_of_range_is_refused(tmp_path: Path) -> None:
    def beyond(chunk: dict[str, Any]) -> None:
        Path(chunk["results"]).write_text('{"index": 6, "size": 1}\n')

    with pytest.raises(ValueError, match="has the index 6; expected 0 to 5"):
        evaluator(tmp_path, beyond)[0].evaluate(1, GENOMES, 0)


@pytest.mark.parametrize("context", [KeyboardInterrupt(), None])
def test_an_exit_fails_the_job_unless_ctrl_c_caused_it(
    tmp_path: Path, context: BaseException | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaves(config: Any) -> None:
        error = SystemExit(1)
        error.__context__ = context
        raise error

    job = OmegaConf.create({"job": {"num": 3}, "overrides": {"task": []}})
    monkeypatch.setattr(HydraConfig, "get", lambda: job)
    with pytest.raises(KeyboardInterrupt if context else RuntimeError):
        Recorder(leaves, tmp_path)(OmegaConf.create())
