"""Progress bars: one style, a rate in the unit that is counted, bars within bars."""

import io
from collections.abc import Iterator

import lightning as L
import pytest
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sieve.distributed.trainer import StageProgress, make_trainer
from sieve.runtime import progress


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """A terminal of 80 columns; what is shown there."""
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(progress, "console", console)
    monkeypatch.setattr("sieve.distributed.trainer.console", console)
    yield shown


def test_a_bar_counts_the_sizes_of_its_items(terminal: io.StringIO) -> None:
    seen, rates = [], []
    for item in progress.track([30, 1200, 270], "Scoring", unit="rows", size=lambda rows: rows):
        seen.append(item)
        [bar] = progress._shown[0].tasks
        rates.append((bar.completed, bar.total))
    assert seen == [30, 1200, 270] and rates == [(0, 1500), (30, 1500), (1230, 1500)]
    assert "Scoring" in terminal.getvalue() and "/1,500" in terminal.getvalue()
    assert not progress._shown


@pytest.mark.parametrize(
    ("speed", "text"),
    [(None, ""), (1234.5, "1,234 rows/s"), (12.34, "12.3 rows/s"), (0.123, "0.12 rows/s")],
)
def test_a_rate_has_its_unit_and_few_digits(speed: float | None, text: str) -> None:
    with progress.progress_bar() as bars:
        bars.add_task("x", unit="rows")
        [task] = bars.tasks
        task.finished_speed = speed
        assert progress._Rate().render(task).plain == text


def test_a_bar_within_a_bar_is_below_it_and_goes_before_it(terminal: io.StringIO) -> None:
    for _ in progress.track([1], "Outer"):
        for _ in progress.track([1], "Inner"):
            assert [task.description for task in progress._shown[0].tasks] == ["Outer", "Inner"]
        assert [task.description for task in progress._shown[0].tasks] == ["Outer"]


def test_an_error_within_a_bar_removes_it(terminal: io.StringIO) -> None:
    with pytest.raises(ZeroDivisionError), progress.progress_bar() as bars:
        bars.add_task("x")
        raise ZeroDivisionError
    assert not progress._shown


class Batch:
    def __init__(self, rows: int) -> None:
        self.examples, self.tokens = range(rows), 10 * rows


class Module(L.LightningModule):
    """Notes the bars that are shown in each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bars = nn.Parameter(Tensor([1.0])), []

    def note(self, *_: object) -> None:
        [bar] = progress._shown[0].tasks
        self.bars.append((bar.description, bar.fields["unit"], bar.completed, bar.total))

    test_step = note

    def predict_step(self, batch: Batch, index: int) -> int:
        self.note()
        return 0

    def training_step(self, batch: Batch, index: int) -> Tensor:
        self.note()
        return self.weight.sum()

    def configure_optimizers(self) -> None:
        return None


@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`")
def test_loops_of_a_trainer_show_rows_tokens_and_steps(terminal: io.StringIO) -> None:
    trainer, module = make_trainer({"max_steps": 2, "max_epochs": -1}), Module()
    assert any(isinstance(callback, StageProgress) for callback in trainer.callbacks)
    loader = DataLoader([Batch(3), Batch(5)], batch_size=None)
    trainer.test(module, loader, verbose=False)
    trainer.predict(module, loader)
    assert module.bars == [
        ("Testing", "rows", 0, 8),
        ("Testing", "rows", 3, 8),
        ("Calibrating", "tokens", 0, 80),
        ("Calibrating", "tokens", 30, 80),
    ]
    module.bars.clear()
    trainer = make_trainer({"max_epochs": 2})
    trainer.fit(module, loader)
    assert module.bars == [("Training", "steps", float(n), 4) for n in range(4)]
    assert not progress._shown
