"""What a flow needs that is started as a command: Prefect in this process, and a DVC project.

Prefect reads its settings from the environment when it is imported: commands import their flow after
:func:`prepare_environment`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from stages.project import params as params_module
from stages.project.command import NO_TELEMETRY, check_system
from stages.project.redaction import redacted
from yolov7.errors import ConfigError, YoloError

PREFECT_HOME = Path(".local/prefect")
_REMOTE = ("local", "../.local/dvc-remote")
_LINE = "%(asctime)s | %(levelname)-7s | "


def run_flow(start: Callable[[], Callable[[], object]], *, check: Callable[[params_module.Params], object]) -> int:
    """Run a flow as a command; returns the exit code: 0, 2 for a mistake that the message explains, 130 after Ctrl-C.

    `check` is called with params.yaml before anything is started; `start` imports the flow and returns the call.
    """
    root = Path.cwd()
    try:
        check_system()
        check(params_module.load())
        prepare_environment(root)
        prepare_dvc(root)
        # A plain SIGTERM would leave Prefect's in-process server running; a regular exit ends it.
        signal.signal(signal.SIGTERM, _exit)
        start()()
    except YoloError as error:
        print(f"error: {redacted(error)}", file=sys.stderr)  # noqa: T201 - the one line a user sees
        return 2
    except KeyboardInterrupt:
        print("stopped: the same command resumes", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def _exit(signum: int, frame: object) -> None:
    raise SystemExit(128 + signum)


def prepare_environment(root: Path) -> None:
    """Set the environment variables of Prefect and its children; values that are already set win."""
    home = root.resolve() / PREFECT_HOME
    defaults = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        # The first start builds a database; on a busy machine that takes longer than Prefect's default of 20 s.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        # The task's name is the stage; the default line would add the random name of the run.
        "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": _LINE + "%(task_run_name)s | %(message)s",
        "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": _LINE + "%(flow_name)s | %(message)s",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    os.environ.update(NO_TELEMETRY)
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    # The in-process API listens on this machine, where a proxy would never reach it.
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host]
        missing = [host for host in ("127.0.0.1", "localhost") if host not in hosts]
        os.environ[name] = ",".join(hosts + missing)


def prepare_dvc(root: Path) -> None:
    """Make the folder a DVC project with a local remote if it is none (a download without its git history)."""
    if (root / ".dvc").is_dir():
        return
    if not (root / "dvc.yaml").is_file():
        raise ConfigError(f"{root}: no dvc.yaml here; run from the project's root")
    _dvc("init", "--quiet", *([] if shutil.which("git") and (root / ".git").exists() else ["--no-scm"]))
    _dvc("config", "core.analytics", "false")
    _dvc("remote", "add", "--default", *_REMOTE)


def _dvc(*arguments: str) -> None:
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise ConfigError(f"`dvc {' '.join(arguments)}` failed: {done.stderr.strip().splitlines()[-1:]}")
