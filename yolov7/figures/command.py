"""What the commands of this package share: a user's mistake is one line on stderr and exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from typing import NoReturn

from yolov7.errors import YoloError
from yolov7.text import printable

EXIT_ERROR = 2


class _Parser(argparse.ArgumentParser):
    """Errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_ERROR, f"error: {message} (see `{self.prog} --help`)\n")


def parser(spec: ModuleSpec | None, doc: str | None) -> argparse.ArgumentParser:
    """A parser for a module's command, with the first line of its docstring."""
    name = "" if spec is None else spec.name
    return _Parser(prog=f"python -m {name}", description=(doc or "").splitlines()[0])


def outcome(main: Callable[[], None]) -> int:
    """Run a command and return its exit code."""
    try:
        main()
    except (YoloError, OSError) as error:
        sys.stderr.write(f"error: {printable(str(error))}\n")
        return EXIT_ERROR
    return 0
