"""Serve an exported model: `python -m sieve.serve runs/medqa/.../export --port 8000`.

POST a row as JSON to /predict, or type one into the page at /. On SIGTERM and Ctrl-C the server
answers all accepted requests and exits. It listens only on this machine unless --host says
otherwise. It has no authentication: put it behind a proxy that has.
"""

import argparse
import logging
import socket
import sys
from collections.abc import Sequence

from sieve.runtime.progress import output
from sieve.serve.options import add_model_options, at_least_one, check_device

log = logging.getLogger("sieve.serve")
BACKLOG = 2048  # connections that may wait to be accepted


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse exits with status 2 if it is invalid."""
    parser = argparse.ArgumentParser(
        prog="python -m sieve.serve",
        description="Answer the task of an exported model over HTTP.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("folder", help="a run's folder or its export, such as runs/medqa/.../export")
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=port, default=8000, help="port to listen on; 0 takes a free one")
    add_model_options(parser)
    for name, default, text in (
        ("max-rows", 256, "the most rows of one request"),
        ("max-body-bytes", 1_000_000, "the most bytes of one request"),
        ("max-queue", 1024, "the most rows that may wait"),
        ("batch-tokens", 8192, "the most tokens of one forward pass, with padding"),
    ):
        add(f"--{name}", type=at_least_one, default=default, help=text)
    return parser.parse_args(arguments)


def port(text: str) -> int:
    """Parse the number of a port."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected 0 to 65535")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until stopped; log an error and exit with status 1 on failure."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        serve(options)
    except (ValueError, RuntimeError, OSError) as error:
        log.debug("failed", exc_info=True)
        log.error("%s", str(error).splitlines()[0])
        sys.exit(1)
    except KeyboardInterrupt:  # Every accepted request has been answered.
        sys.exit(130)


def serve(options: argparse.Namespace) -> None:
    """Load the export and serve it; ValueError or RuntimeError if that is impossible."""
    try:
        import uvicorn

        from sieve.serve.app import make_app
    except ImportError as error:
        raise RuntimeError(
            f"serving needs {error.name}; run pip install 'sieve-llm[serve]'."
        ) from error
    from sieve.exports.task_file import find_export
    from sieve.serve.body import Limits
    from sieve.serve.engine import Engine

    if options.max_rows > options.max_queue:
        raise ValueError(
            f"--max-rows is {options.max_rows}, expected at most --max-queue, which is "
            f"{options.max_queue}; lower the first or raise the second."
        )
    check_device(options.device)
    folder = find_export(options.folder)
    with listen(options.host, options.port) as listening:
        engine = Engine(
            folder,
            device=options.device,
            dtype=options.dtype,
            batch_tokens=options.batch_tokens,
            max_waiting=options.max_queue,
        )
        app = make_app(engine, Limits(options.max_rows, options.max_body_bytes))
        host = f"[{options.host}]" if ":" in options.host else options.host
        address = f"http://{host}:{listening.getsockname()[1]}"
        output.print(f"{engine.task.config.name} on {address}", highlight=False, soft_wrap=True)
        config = uvicorn.Config(app, log_level="warning", backlog=BACKLOG)
        uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, opened before the model is loaded so that a used port fails early."""
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
