"""The terminal while a live view holds it: what jobs write goes above the view, line by line.

Jobs in other processes write to what they inherit, past any console of this one. So the view keeps
the terminal for itself, and everybody else gets a pipe whose lines the view's console prints.
"""

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

PATIENCE = 0.3  # seconds for the last lines, as jobs that go on may hold the pipe open


@contextmanager
def held() -> Iterator[Console]:
    """A console on the terminal that standard error is, for whoever shows a live view.

    Standard output goes through the pipe as well where it is the terminal, and stays what it is
    where it is a file.
    """
    _flush()
    kept = {number: os.dup(number) for number in (1, 2) if os.isatty(number)}
    reader, writer = os.pipe()
    with os.fdopen(os.dup(kept[2]), "w", encoding="utf-8") as terminal:
        console = Console(file=terminal)
        pump = threading.Thread(target=_pump, args=(reader, console), daemon=True)
        pump.start()
        for number in kept:
            os.dup2(writer, number)
        os.close(writer)
        try:
            yield console
        finally:
            _flush()
            for number, terminal_number in kept.items():
                os.dup2(terminal_number, number)
                os.close(terminal_number)
            pump.join(PATIENCE)
            console.file = sys.stderr  # For lines of jobs that go on.


def _pump(reader: int, console: Console) -> None:
    """Print what comes out of the pipe, a line at a time; a progress bar's steps are lines."""
    rest = b""
    try:
        while chunk := os.read(reader, 1 << 16):
            *lines, rest = re.split(rb"\r\n|\r|\n", rest + chunk)
            for line in lines:
                text = Text.from_ansi(line.decode("utf-8", "replace"))
                console.print(text, soft_wrap=True, highlight=False)
    finally:
        os.close(reader)  # Else jobs would wait for someone to read.


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
