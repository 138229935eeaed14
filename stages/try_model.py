"""A web page to try models on pictures and the camera: `python -m stages.try_model [--model M ...] [--port 7070]`.

Offers the models given, then every version in the registry. Only this machine reaches the page, unless --host names
another address: it has no sign-in.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys

from stages.project.command import EXIT_ERROR, NO_TELEMETRY, check_system
from stages.project.redaction import log_to_stderr, redacted
from yolov7.errors import ConfigError, YoloError
from yolov7.text import printable

log = logging.getLogger(__name__)

LOOPBACK, PORT = "127.0.0.1", 7070


def main(arguments: list[str] | None = None) -> int:
    """Serve the page until it is interrupted; the exit code, 2 for a mistake that the message explains."""
    parser = argparse.ArgumentParser(prog="python -m stages.try_model", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--model", nargs="+", default=[], metavar="M", help="export folder, model file or models:/NAME@ALIAS to offer"
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"port; 0 takes a free one ({PORT})")
    parser.add_argument("--host", default=LOOPBACK, help=f"address to listen on ({LOOPBACK}: only this machine)")
    args = parser.parse_args(arguments)
    os.environ.update(NO_TELEMETRY)
    log_to_stderr(force=True)
    try:
        check_system()
        _serve(args.model, args.host, args.port)
    except YoloError as error:
        print(f"error: {printable(redacted(error))}", file=sys.stderr)  # noqa: T201 - the one line a user sees
        return EXIT_ERROR
    return 0


def _serve(models: list[str], host: str, port: int) -> None:
    _limit_opencv()
    # After that limit, which OpenCV reads once, when it is loaded; and after --help, because MLflow is slow to load.
    import uvicorn

    from stages.page.app import PageConnection, Server
    from stages.page.choices import Choices, given, registered
    from stages.page.guard import is_loopback
    from stages.serving.model import Limits
    from stages.serving.settings import Settings

    try:
        settings = Settings.from_environment()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    choices = Choices([*given(models), *registered()], Limits.from_environment())
    PageConnection.settings = settings
    with _listening(host, port) as listener:  # a port that is taken is said before a model is fetched
        choices.open(0)  # a model that cannot be opened is said now
        address = f"[{host}]" if ":" in host else host
        offered = f"{len(choices.all)} model{'' if len(choices.all) == 1 else 's'}"
        log.info("%s at http://%s:%d/ (Ctrl-C ends)", offered, address, listener.getsockname()[1])
        if not is_loopback(host):
            log.warning("others can reach this page and use these models: it has no sign-in and no encryption")
        config = uvicorn.Config(
            Server(choices, host, settings),
            interface="asgi3",
            http=PageConnection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=3,
        )
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        uvicorn.Server(config).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error}; choose another with --host or --port"
        ) from None


def _limit_opencv() -> None:
    """Pillow reads the header and OpenCV the image, and a crafted file can show them different sizes."""
    most = os.environ.get("YOLOV7_SERVE_MAX_PIXELS", "")
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", most if most.isdecimal() else "64000000")


if __name__ == "__main__":
    sys.exit(main())
