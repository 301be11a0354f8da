"""Print the output of jobs above the live view, line by line.

Jobs in other processes write to the file descriptors that they inherit, so rich cannot redirect
their output. The view therefore replaces these descriptors by a pipe, and prints its lines itself.
"""

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

PUMP_TIMEOUT = 0.3  # seconds to wait for the last lines; running jobs may keep the pipe open


@contextmanager
def captured_terminal() -> Iterator[Console]:
    """A console for the live view on the terminal of standard error.

    Standard output goes through the pipe only if it is a terminal as well.
    """
    _flush()
    originals = {number: os.dup(number) for number in (1, 2) if os.isatty(number)}
    reader, writer = os.pipe()
    with os.fdopen(os.dup(originals[2]), "w", encoding="utf-8") as terminal:
        console = Console(file=terminal)
        pump = threading.Thread(target=_pump, args=(reader, console), daemon=True)
        pump.start()
        for number in originals:
            os.dup2(writer, number)
        os.close(writer)
        try:
            yield console
        finally:
            _flush()
            for number, terminal_number in originals.items():
                os.dup2(terminal_number, number)
                os.close(terminal_number)
            pump.join(PUMP_TIMEOUT)
            console.file = sys.stderr  # For jobs that are still running.


def _pump(reader: int, console: Console) -> None:
    """Print the lines of the pipe. A carriage return, as in progress bars, also ends a line."""
    rest = b""
    try:
        while chunk := os.read(reader, 1 << 16):
            *lines, rest = re.split(rb"\r\n|\r|\n", rest + chunk)
            for line in lines:
                text = Text.from_ansi(line.decode("utf-8", "replace"))
                console.print(text, soft_wrap=True, highlight=False)
    finally:
        os.close(reader)  # Otherwise jobs that write would block.


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
