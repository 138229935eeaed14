"""The project's folder, and the folder that outlives it and keeps everything beside DVC's outputs.

DVC runs experiments of `--temp` and `--queue` in a copy below `.dvc/tmp/exps` and deletes it afterwards; a git worktree
is removed with all that git ignores. Records in a folder of that kind would be lost, so the tracking database lies in
the folder they were made from.
"""

from __future__ import annotations

import os
from pathlib import Path

_MARKS = ("params.yaml", "dvc.yaml")
_EXPERIMENTS = (".dvc", "tmp", "exps")
STATE = Path(".state")
_OUTLIVES_EXPERIMENT = ("mlflow", "downloads", "cache")
"""Folders of `.state` that an experiment shares: undelivered MLflow records, archives, decoded images. States of
trainings are not among them: experiments run side by side with other parameters, which looks like an abandoned one."""


def project_root(start: Path | None = None) -> Path:
    """The project around a folder (default: the current one); that folder itself if there is none around it."""
    folder = (start or Path.cwd()).resolve()
    return next((each for each in (folder, *folder.parents) if _is_project(each)), folder)


def home(start: Path | None = None) -> Path:
    """The folder whose `mlflow.db` the project around `start` uses: itself, or the one that it is a copy of.

    That is the workspace of a DVC experiment in a temporary folder, and the main folder of a git worktree.
    """
    root = project_root(start)
    if (origin := experiment_origin(root)) is not None:
        return home(origin)
    return _main_folder(root) or root


def experiment_origin(root: Path) -> Path | None:
    """The workspace whose DVC experiment runs in `root`, a temporary folder; None elsewhere."""
    for folder in root.parents:
        if folder.parts[-3:] == _EXPERIMENTS:
            return folder.parents[2]
    return None


def share_state(origin: Path, folder: Path, names: tuple[str, ...] = _OUTLIVES_EXPERIMENT) -> None:
    """Let a copy of the project use the state of the folder it comes from; its own state stays."""
    (folder / STATE).mkdir(exist_ok=True)
    for name in names:
        shared, link = origin.resolve() / STATE / name, folder / STATE / name
        shared.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(link):
            link.symlink_to(shared, target_is_directory=True)


def _is_project(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _MARKS)


def _main_folder(root: Path) -> Path | None:
    """The same folder in the main working tree, if `root` lies in another worktree of one; read from git's own files.

    None in a main working tree, a submodule, a worktree of a bare repository, and outside git.
    """
    top = next((folder for folder in (root, *root.parents) if (folder / ".git").exists()), None)
    if top is None or not (top / ".git").is_file():
        return None
    try:
        name = (top / ".git").read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        private = (top / name).resolve()
        common = (private / (private / "commondir").read_text(encoding="utf-8").strip()).resolve()
    except (OSError, UnicodeDecodeError):
        return None
    main = common.parent / root.relative_to(top)
    return main if common.name == ".git" and _is_project(main) else None
