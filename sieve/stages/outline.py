"""Which stages a run has, which one is next, and about how long the rest takes.

The time is a dry run's forecast of the stages that are left. It is made when the first stage starts
that is not in the cache, and is corrected by the time that finished stages took. Where it is not
known, or turns out to be far off, nothing is said of time.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from sieve.config import Config
from sieve.report.values import counted

log = logging.getLogger(__name__)
PRIOR_S = 5.0  # seconds by which the forecast is believed, against finished stages
FAR_OFF = 5.0  # factor beyond which it is not believed
Forecast = Mapping[str, float]  # seconds by stage


def stage_names(config: Config) -> tuple[str, ...]:
    """The stages of a run that are numbered, in order."""
    if config.sweep.genomes:
        return ()
    if config.until == "fit" or config.sweep.job == "prepare":
        return ("calibrate", "fit")
    certifies = config.confidence is not None and not config.search.fits_all_rows
    optional = {
        "curve": bool(config.curve or config.search.bottlenecks),
        "refit": bool(config.projection.refit or config.projection.tune_steps),
        "recover": config.recovery.method != "none",
        "certify": certifies,
        "rivals": config.task.kind == "classification" and config.task.metric in (None, "accuracy"),
        "export": config.export.format != "none",
    }
    names = "calibrate fit search curve refit recover evaluate certify rivals export report".split()
    return tuple(name for name in names if optional.get(name, True))


@dataclass
class Outline:
    """The stages of a run, and what is known of their time.

    Args:
        names: in order.
        forecast: returns the seconds of each stage; None if they are not known.
    """

    names: tuple[str, ...]
    forecast: Callable[[], Forecast | None] = lambda: None
    finished: dict[str, float] = field(default_factory=dict)  # seconds by stage, not from the cache

    @cached_property
    def seconds(self) -> Forecast:
        """The forecast; empty if there is none."""
        try:
            return self.forecast() or {}
        except Exception:  # A forecast must not end a run.
            log.debug("no forecast of the time left", exc_info=True)
            return {}

    def line(self, name: str, cached: bool) -> str:
        """The line at the start of a stage."""
        remarks = ["from the cache"] if cached else []
        if name not in self.names:
            return ": ".join([name, *remarks])
        if not cached and (left := self._left(name)) is not None:
            remarks.append(about(left))
        number = f"stage {self.names.index(name) + 1} of {len(self.names)}"
        return ", ".join([f"{number}: {name}", *remarks])

    def finish(self, name: str, seconds: float) -> None:
        """Note what a stage took that was not in the cache."""
        self.finished[name] = seconds

    def _left(self, name: str) -> float | None:
        """Seconds from the start of a stage to the end of the run; None if that is not known."""
        rest = self.names[self.names.index(name) :]
        known = sum(self.seconds.get(stage, 0.0) for stage in rest)
        pairs = [(took, self.seconds[n]) for n, took in self.finished.items() if n in self.seconds]
        took, expected = (PRIOR_S + sum(column) for column in zip(*pairs, (0.0, 0.0), strict=False))
        if not known or not 1 / FAR_OFF < took / expected < FAR_OFF:
            return None
        return known * took / expected


def about(seconds: float) -> str:
    """ "about 12 minutes left": a time in whole minutes or hours, since it is a forecast."""
    if seconds < 50:
        return "less than a minute left"
    minutes = max(1, round(seconds / 60))
    if minutes < 100:
        return f"about {counted(minutes, 'minute')} left"
    return f"about {counted(round(minutes / 60), 'hour')} left"
