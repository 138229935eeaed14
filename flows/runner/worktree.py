"""The project at another git revision: a worktree in `.local/worktrees` that shares DVC's cache and remotes.

Data comes by DVC's hash and not from that revision's dvc.lock: a run does not commit dvc.lock, so the lock of a
revision may be older than the data that was used with it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from flows.runner import remote as dvc_remote
from flows.runner.pipeline import Pipeline, StageError
from flows.runner.processes import Log, end_leftovers
from stages.project.locks import file_lock
from stages.project.names import check_hashes, check_revision
from stages.project.params import PARAMS_FILE
from stages.project.redaction import in_one_line
from yolov7.documents import MAX_YAML, DocumentError, read_text
from yolov7.errors import ConfigError, DataError
from yolov7.files import write_text
from yolov7.folders import remove
from yolov7.weights.releases import RELEASED
from yolov7.yaml_text import read_yaml

WORKTREES = Path(".local/worktrees")
FETCH_LOCK = Path(".state/fetch.lock")
DataHashes = Mapping[str, Mapping[str, str]]
"""Stage -> output's path -> DVC's hash of it."""


def commit_of(root: Path, revision: str, *, fetch: bool = False) -> str:
    """Full hash of a commit; with `fetch`, a missing one is fetched from the clone's remotes.

    Raises :class:`ConfigError` outside git, or if there is no such commit; :class:`StageError`, not lasting, if the
    remotes are unavailable.
    """
    check_revision(revision, where="revision")
    if not _git(root, "rev-parse", "--git-dir", check=False):
        raise ConfigError(f"{root}: not a git clone: a revision cannot be checked out here")
    wanted = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    found = _git(root, *wanted, check=False)
    if not found and fetch:
        # A worker may start all variants of a new revision at once; parallel fetches in one clone break each other.
        with file_lock(root / FETCH_LOCK):
            found = _git(root, *wanted, check=False) or _fetched(root, wanted)
    if not found:
        where = "nor in its remotes; push it" if fetch else "`git fetch --all`, or use a clone that has it"
        raise ConfigError(f"revision {revision} is not in this repository ({root}): {where}")
    return found


def _fetched(root: Path, wanted: tuple[str, ...]) -> str:
    """The commit from the remotes; it is enough that one of them answers and has it."""
    try:
        _git(root, "fetch", "--quiet", "--all")
    except ConfigError as error:
        if found := _git(root, *wanted, check=False):
            return found
        # git's message does not tell a temporary outage from a lasting one.
        raise StageError(f"the remotes of {root} could not be asked: {error}", stage="fetch") from None
    return _git(root, *wanted, check=False)


def variants_at(root: Path, commit: str) -> list[str]:
    """`variants` in params.yaml of a commit, without checking it out. Raises :class:`ConfigError`."""
    text = _git(root, "show", f"{commit}:./{PARAMS_FILE}")
    try:
        values = read_yaml(text).value
    except DocumentError as error:
        raise ConfigError(f"{PARAMS_FILE} of {commit[:12]}: not readable as YAML: {in_one_line(error, 200)}") from None
    variants = values.get("variants", ["yolov7-tiny"]) if isinstance(values, Mapping) else []
    return [name for name in variants if isinstance(name, str)] if isinstance(variants, list) else []


@contextmanager
def worktree(root: Path, revision: str, name: str, log: Log, *, keep: bool = False) -> Iterator[Path]:
    """The project's folder at a commit, in `.local/worktrees/NAME`; removed at the end unless `keep`.

    A second call with the same name waits for the first to end; the remains of a killed one are removed first. Raises
    :class:`ConfigError` if git cannot make the worktree.
    """
    folder = root / WORKTREES / name
    with file_lock(folder.with_name(f"{name}.lock")):
        _clear(root, folder, log)
        _git(root, "worktree", "add", "--quiet", "--detach", str(folder), revision)
        place = folder / _git(root, "rev-parse", "--show-prefix")
        try:
            _share_dvc(root, place)
            yield place
        finally:
            if keep:
                log.info("kept: %s (remove it with `git worktree remove --force %s`)", place, folder.relative_to(root))
            else:
                _clear(root, folder, log)


def _clear(root: Path, folder: Path, log: Log) -> None:
    if folder.exists():
        end_leftovers(folder, log)
        _git(root, "worktree", "remove", "--force", "--force", str(folder), check=False)
        remove(folder)
    _git(root, "worktree", "prune", check=False)


def _share_dvc(root: Path, folder: Path) -> None:
    """Let the worktree use the cache, the remotes and the private settings of its clone."""
    if not (folder / ".dvc").is_dir():
        raise ConfigError(f"{folder}: no DVC project at this revision; .dvc must be in git")
    found = dvc_remote.settings(root)
    sections: dict[str, list[str]] = {}
    for key, value in {**found, "cache.dir": str(_cache(root, found))}.items():
        section, _, name = key.rpartition(".")
        kind, _, which = section.partition(".")
        head = f"['{kind} \"{which}\"']" if which else f"[{kind}]"
        sections.setdefault(head, []).append(f"    {name} = {_quoted(value)}")
    lines = [line for head, values in sections.items() for line in (head, *values)]
    private = folder / ".dvc/config.local"
    write_text(private, "\n".join(lines) + "\n")
    private.chmod(0o600)  # may hold secrets


def _cache(root: Path, settings: Mapping[str, str]) -> Path:
    return (root / ".dvc" / settings.get("cache.dir", "cache")).resolve()


def _quoted(value: str) -> str:
    return f"'{value}'" if '"' in value else f'"{value}"'


def hashes_of(root: Path, stages: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """The outputs of `stages` in dvc.lock. Raises :class:`DataError` if it has none."""
    known = _lock(root).get("stages", {})
    found = {stage: {out["path"]: out["md5"] for out in known.get(stage, {}).get("outs", [])} for stage in stages}
    for stage, outputs in found.items():
        if not outputs:
            raise DataError(f"no outputs of {stage}; run `dvc repro {stage}` first", path=root / "dvc.lock")
    return found


def bring(pipeline: Pipeline, hashes: DataHashes, log: Log) -> None:
    """Bring the outputs with these hashes into the worktree, from the shared cache or a remote.

    Raises :class:`DataError` if neither has all of them; :class:`StageError`, not lasting, if a remote that may have
    them is unavailable.
    """
    check_hashes(hashes, tuple(hashes), where="data")
    stages: dict[str, Any] = {}
    for stage, outputs in hashes.items():
        outs = [{"path": path, "hash": "md5", "md5": value} for path, value in outputs.items()]
        stages[stage] = {"cmd": "brought by hash", "outs": outs}
    _lock(pipeline.root)  # refused here, with its path, if it is not readable
    lock = pipeline.root / "dvc.lock"
    write_text(lock, _relocked(lock.read_text(encoding="utf-8") if lock.is_file() else "", stages))
    _bring(pipeline, list(hashes), {path: value for outputs in hashes.values() for path, value in outputs.items()}, log)


FILES = ("weights", "scales", "distill_from")
"""Parameters of a training that may name a file."""
SELF, ADDRESS = "self", "models:/"
"""What they may name besides: the whole of it, and its beginning (stages.training.teacher)."""


def added_files(root: Path, variant: str) -> list[str]:
    """The .dvc files of the files that the training of `variant` starts from, of those that have one."""
    targets = [f"{name}.dvc" for name in _files(root, variant).values()]
    return [target for target in targets if (root / target).is_file()]


def bring_files(pipeline: Pipeline, variant: str, log: Log) -> None:
    """Bring the files that the training of `variant` starts from into the worktree, if they are not in git.

    Raises :class:`ConfigError` if they are not in DVC either; otherwise as :func:`bring`.
    """
    added = added_files(pipeline.root, variant)
    for key, name in _files(pipeline.root, variant).items():
        if (pipeline.root / name).is_file() or name in RELEASED:  # published weights, which the training fetches
            continue
        if f"{name}.dvc" not in added:
            raise ConfigError(
                f"train.{key}: {name} is not in a checkout of this revision: it is neither in git nor added to DVC; "
                f"`dvc add {name}`, commit {name}.dvc, and `dvc push` where other machines train"
            )
        document = _document(pipeline.root / f"{name}.dvc")
        _bring(pipeline, [f"{name}.dvc"], {name: str(document["outs"][0]["md5"])}, log)


def _files(root: Path, variant: str) -> dict[str, str]:
    """Paths by parameter, read from the plain file: an old revision may have other parameters than today."""
    values = _document(root / PARAMS_FILE)
    own, common = (values.get("per_variant") or {}).get(variant) or {}, values.get("train") or {}
    named = {key: str(own.get(key, common.get(key, ""))) for key in FILES}
    return {key: name for key, name in named.items() if name and name != SELF and not name.startswith(ADDRESS)}


def _bring(pipeline: Pipeline, targets: list[str], hashes: Mapping[str, str], log: Log) -> None:
    """Let DVC bring `targets`, whose outputs are `hashes`, path -> hash. Raises as :func:`bring`."""
    found = dvc_remote.settings(pipeline.root)
    objects = _cache(pipeline.root, found) / "files/md5"
    if all((objects / value[:2] / value[2:]).exists() for value in hashes.values()):
        try:
            pipeline.run("checkout", [sys.executable, "-m", "dvc", "checkout", "--force", "--", *targets], log)
            return
        except StageError:
            log.info("the cache of this clone has only part of the data; asking the remotes")
    tried, passing = [], False
    for name in dvc_remote.remotes(found):
        try:
            dvc_remote.pull(pipeline, log, *targets, remote=name)
            return
        except StageError as error:
            tried.append(f"{name}: {error}")
            passing = passing or not error.lasting
    wanted = ", ".join(f"{path} ({value})" for path, value in hashes.items())
    missing = "; ".join(tried) or "there is no remote"
    if passing:
        raise StageError(
            f"{wanted} is not in DVC's cache, and the remote is not available at present ({missing})", stage="pull"
        )
    raise DataError(
        f"{wanted} is neither in DVC's cache nor in a remote ({missing}); run `dvc push` where it still exists"
    )


def _relocked(lock: str, stages: Mapping[str, Any]) -> str:
    """The text of dvc.lock with these stages.

    All other values stay as written: DVC writes YAML 1.2, where `no` and `on` are texts, and PyYAML reads YAML 1.1.
    """
    root = yaml.compose(lock) or yaml.MappingNode("tag:yaml.org,2002:map", [])
    entries = {key.value: (key, value) for key, value in root.value}
    for key, value in _nodes("schema: '2.0'\nstages: {}\n"):
        entries.setdefault(key.value, (key, value))
    fresh = _nodes(yaml.safe_dump(dict(stages), default_style='"', sort_keys=False))
    key, old = entries["stages"]
    kept = [pair for pair in old.value if pair[0].value not in stages] if isinstance(old, yaml.MappingNode) else []
    entries["stages"] = key, yaml.MappingNode("tag:yaml.org,2002:map", [*kept, *fresh], flow_style=False)
    return yaml.serialize(yaml.MappingNode(root.tag, list(entries.values()), flow_style=False))


def _nodes(mapping: str) -> list[tuple[yaml.Node, yaml.Node]]:
    """The keys and values of a mapping."""
    root = yaml.compose(mapping)
    assert isinstance(root, yaml.MappingNode)
    return root.value


def _lock(root: Path) -> dict[str, Any]:
    return _document(root / "dvc.lock")


def _document(path: Path) -> dict[str, Any]:
    try:
        return read_yaml(read_text(path, MAX_YAML)).value or {}
    except FileNotFoundError:
        return {}
    except DocumentError as error:
        raise DataError(f"not readable ({' '.join(str(error).split())})", path=path) from None


def _git(root: Path, *arguments: str, check: bool = True) -> str:
    """Output of git; with `check`, a failure raises :class:`ConfigError`, otherwise it gives an empty string."""
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"`{' '.join(command)}` failed: {error}") from None
    if done.returncode and check:
        raise ConfigError(f"`{' '.join(command)}` failed: {' '.join(done.stderr.split())}")
    return "" if done.returncode else done.stdout.strip()
