"""Copies of the newest training state in a remote, so that another machine can resume when this one is lost.

Copying does not stop the training: a thread sends the state, the best weights, the pictures and the MLflow journal, and
then the list of them, `newest.json`, so that a partial copy is never seen. A failed copy is logged in one line; the
training continues, and the next save tries again.

    PREFIX/VARIANT/FINGERPRINT/newest.json               iteration, and for each file its object, sha256 and size
    PREFIX/VARIANT/FINGERPRINT/SHA256-NAME               the files; unchanged ones are not sent again
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from stages.project.home import home
from stages.project.params import Flow
from stages.training.folder_store import Folder
from stages.training.state_store import Store, StoreError
from yolov7.documents import parse_json
from yolov7.files import atomic_path, sha256_file, write_json
from yolov7.folders import remove
from yolov7.train.state import iteration_of, newest_iteration

log = logging.getLogger(__name__)

SWITCH = "YOLOV7_STATE_REMOTE"
"""Environment variable that overrides `flow.state_remote`; empty: no copies."""
NEWEST = "newest.json"
_SNAPSHOTS = Path(".state/upload")
_BESIDE = ("best.safetensors", "last.safetensors", "epoch-*-batch-*.jpg")
_JOURNAL = "journal"
_ATTEMPTS = 5
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
LAST_COPY_SECONDS = {True: 60.0, False: 10.0}
"""Longest wait for the last copy: by whether the training has finished or was asked to stop."""


def state_remote(settings: Flow, folder: Path, journal: Path) -> StateRemote | None:
    """The remote of the run in `folder`, VARIANT/KEY, with its MLflow `journal`; None where none is configured."""
    address = remote_address(settings)
    if not address:
        return None
    store = open_store(f"{address.rstrip('/')}/{folder.parent.name}/{folder.name}")
    return StateRemote(store, folder, journal, every=settings.state_every_minutes * 60)


def remote_address(settings: Flow) -> str:
    """Where the copies go, empty for nowhere; a relative folder is one of the project's home."""
    address = os.environ.get(SWITCH, settings.state_remote)
    return address if not address or ":" in address else str(home() / address)


def open_store(address: str) -> Store:
    """The store at `s3://BUCKET/PREFIX`, or in a folder."""
    if not address.startswith("s3://"):
        return Folder(address)
    from stages.training.s3_store import Bucket  # a training without copies need not load boto3

    return Bucket(address)


class StateRemote:
    """Copies of one run's newest state in `store`."""

    def __init__(
        self,
        store: Store,
        folder: Path,
        journal: Path,
        *,
        every: float,
        clock: Callable[[], float] = time.monotonic,
        first_pause: float = _FIRST_PAUSE,
    ):
        self.store, self.folder, self.journal, self.every = store, folder, journal, every
        self._snapshots = (_SNAPSHOTS / f"{folder.parent.name}-{folder.name}").resolve()
        self._taken = itertools.count()
        self._clock, self._first_pause = clock, first_pause
        self._next = clock()
        self._known: dict[str, Any] | None = None
        """The list in the remote; None until it has been read."""
        self._waiting: Path | None = None
        self._busy = self._failing = False
        self._changed = threading.Condition()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    # Before the training ---------------------------------------------------------------------------------------------

    def bring(self) -> bool:
        """Fetch the remote's state if it is newer than the local one; returns whether it was.

        A failure is logged, and the training resumes from the local state.
        """
        remove(self._snapshots)  # left by a killed training
        try:
            self._known = self._attempt(self._read)
            newest = int(self._known.get("iteration", -1))
            if newest <= newest_iteration(self.folder):
                return False
            log.info("%s holds a newer state (iteration %d); fetching it", self.store.address, newest)
            files = self._known["files"]
            for name in sorted(files, key=lambda name: name.startswith("state-")):  # the state last
                self._attempt(partial(self._fetch, name, files[name]))
        except (StoreError, OSError, KeyError, TypeError, ValueError) as error:
            log.warning("no state from %s: %s; resuming from the local state", self.store.address, _words(error))
            return False
        return True

    def forget(self) -> None:
        """Remove the list: another machine must not resume a run that was started over."""
        try:
            self._attempt(partial(self.store.remove, NEWEST))
        except StoreError as error:
            log.warning("%s: the old state could not be removed: %s", self.store.address, error)
        self._known = {}

    def _read(self) -> dict[str, Any]:
        content = self.store.read(NEWEST)
        return {} if content is None else parse_json(content)

    def _fetch(self, name: str, entry: dict[str, Any]) -> None:
        target = self._place(name)
        if target is None:
            return
        with atomic_path(target) as temporary:
            self.store.get(entry["object"], temporary)
            if sha256_file(temporary) != entry["sha256"]:
                raise StoreError(f"{entry['object']} is damaged", lasting=False)

    def _place(self, name: str) -> Path | None:
        """The place of a file; None for a journal if there is one already."""
        if Path(name).name != name:
            raise ValueError(f"{NEWEST} names a file {name!r}")
        if not name.startswith(f"{_JOURNAL}."):
            return self.folder / name
        target = self.journal.with_suffix(Path(name).suffix)
        return None if target.exists() else target

    # During the training ---------------------------------------------------------------------------------------------

    def offer(self, state: Path) -> None:
        """Copy the state just saved, if a copy is due; returns at once."""
        if self._clock() >= self._next:
            self._send(state)

    def close(self, *, finished: bool) -> None:
        """Copy the newest state unless the remote has it, and wait a while for the copy."""
        newest = max(self.folder.glob("state-*.safetensors"), default=None)
        known = int((self._known or {}).get("iteration", -1))
        if newest is not None and known < iteration_of(newest):
            self._send(newest)
        with self._changed:
            idle = self._changed.wait_for(lambda: self._waiting is None and not self._busy, LAST_COPY_SECONDS[finished])
        self._ending.set()
        with self._changed:
            self._changed.notify_all()
        if not idle:
            log.warning("%s: the last state had not arrived when the training ended", self.store.address)

    def _send(self, state: Path) -> None:
        try:
            snapshot = self._snapshot(state)
        except OSError as error:
            log.warning("%s: no copy of %s could be taken: %s", self.store.address, state, error)
            return
        self._next = self._clock() + self.every
        with self._changed:
            if self._waiting is not None:
                remove(self._waiting)
            self._waiting = snapshot
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="state-remote", daemon=True)
            self._thread.start()

    def _snapshot(self, state: Path) -> Path:
        """A folder with the files as they are now: links, which are free and survive a replacement of the files."""
        # Numbered: the same state is sent again at the end, perhaps while its first copy is on its way.
        folder = self._snapshots / f"{next(self._taken)}-{state.stem}"
        folder.mkdir(parents=True)
        for path in [state, *(found for pattern in _BESIDE for found in sorted(self.folder.glob(pattern)))]:
            _link(path, folder / path.name)
        for suffix in (".json", ".jsonl"):
            if self.journal.with_suffix(suffix).is_file():  # grows in place: a copy
                shutil.copyfile(self.journal.with_suffix(suffix), folder / f"{_JOURNAL}{suffix}")
        return folder

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._ending.is_set())
                if self._waiting is None:
                    return
                snapshot, self._waiting, self._busy = self._waiting, None, True
            try:
                self._upload(snapshot)
            except (StoreError, OSError, KeyError, TypeError, ValueError) as error:
                self._report(error)
            else:
                if self._failing:
                    log.info("%s: copies of the training state arrive again", self.store.address)
                self._failing = False
            finally:
                remove(snapshot)
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _upload(self, snapshot: Path) -> None:
        iteration = max(iteration_of(state) for state in snapshot.glob("state-*.safetensors"))
        if self._known is None:
            self._known = self._attempt(self._read)
        if int(self._known.get("iteration", 0)) > iteration:
            return  # the remote could not be read at the start, and is ahead of us
        before = {entry["object"] for entry in self._known.get("files", {}).values()}
        files: dict[str, Any] = {}
        for path in sorted(snapshot.iterdir()):
            sha256 = sha256_file(path)
            name = f"{sha256[:20]}-{path.name}"
            files[path.name] = {"object": name, "sha256": sha256, "size": path.stat().st_size}
            if name not in before:
                self._attempt(partial(self.store.put, path, name))
        document = {"iteration": iteration, "files": files}
        listing = snapshot / NEWEST
        write_json(listing, document)
        self._attempt(partial(self.store.put, listing, NEWEST))
        self._known = document
        for name in before - {entry["object"] for entry in files.values()}:
            self._attempt(partial(self.store.remove, name))

    def _attempt(self, action: Callable[[], Any]) -> Any:
        """Retry transient errors after growing pauses."""
        pause = self._first_pause
        for left in reversed(range(_ATTEMPTS)):
            try:
                return action()
            except StoreError as error:
                if error.lasting or not left or self._ending.wait(pause):
                    raise
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _report(self, error: Exception) -> None:
        if not self._failing:
            log.warning(
                "the training state could not be copied to %s: %s; the training continues, the next save tries again",
                self.store.address,
                _words(error),
            )
        self._failing = True


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
