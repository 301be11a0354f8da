"""Serve an exported model: `python -m sieve.serve runs/medqa/.../export --port 8000`.

POST a row as JSON to /predict, or type one into the page at /. SIGTERM and Ctrl-C let what has
begun be answered. It listens on this machine alone unless --host says otherwise, and knows no
users: put it behind a proxy that does.
"""

import argparse
import logging
import socket
import sys
from collections.abc import Sequence

from sieve.runtime.progress import output

log = logging.getLogger("sieve.serve")
BACKLOG = 2048  # connections that may wait to be taken up


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; argparse itself says what is wrong with it."""
    parser = argparse.ArgumentParser(prog="python -m sieve.serve", description="Serve an export.")
    parser.add_argument("folder", help="an export directory, as runs/medqa/.../export")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=port, default=8000, help="0 takes a free one (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (%(default)s)")
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16")
    )
    for name, default, text in (
        ("max-rows", 256, "rows of one request"),
        ("max-body-bytes", 1_000_000, "bytes of one request"),
        ("max-queue", 1024, "rows that may wait"),
        ("batch-tokens", 8192, "tokens of one forward pass, padding counted"),
    ):
        parser.add_argument(f"--{name}", type=at_least_one, default=default, help=text)
    return parser.parse_args(arguments)


def at_least_one(text: str) -> int:
    """A count; ArgumentTypeError below 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number above 0")
    return int(text)


def port(text: str) -> int:
    """A port; ArgumentTypeError where there is no such number."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected 0 to 65535")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Load, then serve until stopped; status 1 and one sentence where that cannot be."""
    asked = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        serve(asked)
    except (ValueError, RuntimeError, OSError) as error:
        log.debug("failed", exc_info=True)
        log.error("%s", str(error).splitlines()[0])
        sys.exit(1)
    except KeyboardInterrupt:  # Everything has been answered; Ctrl-C is no failure to trace.
        sys.exit(130)


def serve(asked: argparse.Namespace) -> None:
    """Raises ValueError or RuntimeError with one sentence where the export cannot be served."""
    try:
        import uvicorn

        from sieve.serve.app import make_app
    except ImportError as error:
        raise RuntimeError(
            f"serving needs {error.name}; install it with pip install 'sieve-llm[serve]'."
        ) from error
    from sieve.serve.body import Limits
    from sieve.serve.engine import Engine

    if asked.max_rows > asked.max_queue:
        raise ValueError(
            f"--max-rows is {asked.max_rows}, expected at most --max-queue, {asked.max_queue}, or "
            "a request of so many rows would never fit; lower the one or raise the other."
        )
    check_device(asked.device)
    with listen(asked.host, asked.port) as listening:
        engine = Engine(
            asked.folder, asked.device, asked.dtype, asked.batch_tokens, asked.max_queue
        )  # fmt: skip
        app = make_app(engine, Limits(asked.max_rows, asked.max_body_bytes))
        host = f"[{asked.host}]" if ":" in asked.host else asked.host
        address = f"http://{host}:{listening.getsockname()[1]}"
        output.print(f"{engine.task.config.name} on {address}", highlight=False, soft_wrap=True)
        config = uvicorn.Config(app, log_level="warning", backlog=BACKLOG)
        uvicorn.Server(config).run(sockets=[listening])


def check_device(name: str) -> None:
    """ValueError where torch cannot put a tensor on a device."""
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"--device is {name!r}, which torch cannot use here, expected cpu, or cuda on a "
            "machine with a GPU and torch built for it."
        ) from error


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; taken before the model is loaded, so that a taken port shows soon."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]
        raise ValueError(
            f"cannot listen on {host}, port {port} ({reason}); choose another --host or --port."
        ) from error


if __name__ == "__main__":
    main()
