"""Published weights by name: fetched once, checked, and kept.

A file counts only after the restricted reader has found the named network in it. Its sha256 and size are noted beside
it then, and every later use compares: the public releases state no digests, so the first bytes seen are the ones meant.
A file that someone has put in its place by hand is treated as one that was fetched.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from yolov7.errors import ModelError
from yolov7.files import sha256_file, why_not_written
from yolov7.model.checkpoint import load_checkpoint
from yolov7.model.detector import Detector, create_model
from yolov7.model.published.convert import save_imported
from yolov7.model.published.load import ImportReport, fill_published, read_published, recognise
from yolov7.redaction import redacted
from yolov7.weights import coco
from yolov7.weights.download import Advance, FetchError, bring
from yolov7.weights.origin import ORIGIN, stated_origin
from yolov7.weights.places import CACHE, MIRROR, Note, Place, place_of, source_of
from yolov7.weights.releases import FormName, PublishedFiles, is_published_name, published_files

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublishedFile:
    """A published `.pt` that is here, and is the one that was first used."""

    path: Path
    sha256: str
    size: int
    address: str
    licence: str

    def origin(self) -> dict[str, dict[str, str]]:
        """Where weights come from, for a model's metadata."""
        return {ORIGIN: {"address": self.address, "sha256": self.sha256, "licence": self.licence}}


def start_file(name: str) -> Path:
    """The file that `train.weights` names: a path as it is, or the published file of a variant, in training form.

    Raises :class:`ModelError` as :func:`published_file` does.
    """
    return published_file(name, "training").path if is_published_name(name) else Path(name)


def origin_of(name: str, *, network: str = "") -> dict[str, dict[str, str]]:
    """The published file that a training begins with, for its model's metadata: `name` (`train.weights`) is a variant,
    or a .safetensors file whose own weights began with one. Empty for any other.

    `network` supplies kinds of block as for :func:`load_checkpoint`, which raises :class:`ModelError`, as
    :func:`published_file` does.
    """
    if is_published_name(name):
        return published_file(name, "training").origin()
    if Path(name).suffix != ".safetensors":
        return {}
    return stated_origin(load_checkpoint(name, network=network)[1].extra)


def published_file(variant: str, form: FormName) -> PublishedFile:
    """The published `.pt` of a variant, fetched if it is not here.

    Raises :class:`ModelError` if none was published, if it cannot be fetched or kept, if it is not what its name says,
    and if it is no longer what it was.
    """
    return _Kept(variant, form).file()


def published_detector(variant: str) -> Path:
    """A .safetensors file of the variant in deploy form, made of its published file at the first use. Raises as
    :func:`published_file` does.
    """
    return _Kept(variant, "deploy").detector()


def kept_file(variant: str, form: FormName) -> PublishedFile | None:
    """The published file if it is here; nothing is fetched or written. Raises :class:`ModelError` if none was
    published, or if it is no longer what it was.
    """
    return _Kept(variant, form).known()


class _Kept:
    """A published file in the cache folder."""

    def __init__(self, variant: str, form: FormName):
        self.variant, self.form = variant, form
        self.files: PublishedFiles = published_files(variant)
        self.place: Place = place_of(self.files, form)

    def known(self) -> PublishedFile | None:
        """The file if it is here and has its note. Raises :class:`ModelError` if the two disagree."""
        note = self.place.read_note()
        if note is None or not self.place.path.is_file():
            return None
        self._compare(self.place.path, note, f"put the first file back, or remove {self.place.path} to fetch it again")
        return self._found(note)

    def file(self) -> PublishedFile:
        found = self.known()  # without a lock: a cache that was filled for others may be read-only
        if found is None:
            with self._lock():
                found = self.known() or self._found(self._first_use())
        return found

    def detector(self) -> Path:
        found = self.file()
        if not self._is_converted():
            with self._lock():
                if not self._is_converted():
                    note = Note(found.sha256, found.size)
                    self.place.write_note(self._convert(*self._read(self.place.path), note))
        return self.place.converted

    def _is_converted(self) -> bool:
        note, path = self.place.read_note(), self.place.converted
        return note is not None and path.is_file() and note.converted == sha256_file(path)

    def _found(self, note: Note) -> PublishedFile:
        address = self.files.address(self.form)
        return PublishedFile(self.place.path, note.sha256, note.size, address, self.files.release.licence)

    def _first_use(self) -> Note:
        """Fetch the file unless it is here, look into it, and note its bytes."""
        place = self.place
        if place.path.is_file():
            log.warning("%s: %s", place.path, self._terms())
            note = self._examined(place.path, f"put the published {place.path.name} there, or remove it")
            place.write_note(note)
            return note
        source = source_of(self.files, self.form)
        log.warning("%s: fetching it from %s; %s", place.path.name, redacted(source), self._terms())
        try:
            self._fetch(source)
            before = place.read_note()
            if before is not None:
                self._compare(place.part, before, f"remove {place.note} if other bytes are right")
            note = before or self._examined(place.part, "a proxy, a sign-in page or another file may have answered")
            place.write_note(note)  # first: a file without a note counts as put there by hand
            place.part.replace(place.path)
        finally:
            place.part.unlink(missing_ok=True)
        log.info("%s: %s bytes, sha256 %s", place.path, f"{note.size:,}", note.sha256)
        return note

    def _terms(self) -> str:
        release = self.files.release
        return f"the published weights of {release.title} are under {release.licence}, not under this project's licence"

    def _fetch(self, source: str | Path) -> None:
        by_hand = f"put {self.place.path.name} at {self.place.path}, or name a mirror in {MIRROR}"
        try:
            if isinstance(source, Path):
                if not source.is_file():
                    raise FetchError("there is no such file")
                shutil.copyfile(source, self.place.part)
            else:
                with _progress(self.place.path.name) as advance:
                    bring(source, self.place.part, advance=advance)
        except FetchError as error:
            raise ModelError(f"{self.variant}: {redacted(source)}: {error}; {by_hand}") from None
        except OSError as error:
            raise self._unwritten(error) from None

    def _unwritten(self, error: OSError) -> ModelError:
        have = self.place.part.stat().st_size if self.place.part.exists() else 0
        reason = why_not_written(error, max(2 * have, 2**28))
        return ModelError(f"{self.place.path}: cannot be written: {reason} ({CACHE} moves the folder)")

    def _compare(self, path: Path, note: Note, remedy: str) -> None:
        size = path.stat().st_size
        found = sha256_file(path) if size == note.size else f"other bytes ({size:,} instead of {note.size:,})"
        if found != note.sha256:
            what = self.place.path if path == self.place.path else f"{self.variant}: {self.files.address(self.form)}"
            raise ModelError(f"{what}: had sha256 {note.sha256} at its first use, and has {found} now; {remedy}")

    def _examined(self, path: Path, remedy: str) -> Note:
        """The note of a file that is what its name says. Raises :class:`ModelError` for any other."""
        note = Note(sha256_file(path), path.stat().st_size)
        try:
            model, report = self._read(path)
        except ModelError as error:
            if path == self.place.path:
                raise ModelError(f"{error}; {remedy}") from None
            source, reason = redacted(source_of(self.files, self.form)), str(error).removeprefix(f"{path}: ")
            what = f"{note.size:,} bytes came that are not its published file"
            raise ModelError(f"{self.variant}: {source}: {what}: {reason}; {remedy}") from None
        return self._convert(model, report, note) if self.form == "deploy" else note

    def _read(self, path: Path) -> tuple[Detector, ImportReport]:
        """The network with the weights of the file. Raises :class:`ModelError` for a file of anything else."""
        with path.open("rb") as opened:
            if opened.read(256).lstrip()[:1] == b"<":
                raise ModelError(f"{path}: it is a page (HTML), not a file of weights")
        file = recognise(read_published(path))
        classes = len(coco.CLASSES)
        if file.num_classes != classes:
            raise ModelError(
                f"{path}: has {file.num_classes} classes, and the published file {classes}; name a file of your own by "
                "its path"
            )
        model = create_model(self.variant, classes)
        return model, fill_published(model, file)

    def _convert(self, model: Detector, report: ImportReport, note: Note) -> Note:
        """Keep the network in deploy form; returns the note with that file."""
        path, origin = self.place.converted, self._found(note).origin()
        save_imported(model, report, path, default_names=coco.CLASSES, form="deploy", origin=origin)
        return replace(note, converted=sha256_file(path))

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Of several processes one fetches. The system frees the lock if its holder is killed."""
        # Imported here: it warns at once where a system has no file locks, and only this function needs one.
        from filelock import FileLock, Timeout

        lock = FileLock(self.place.lock, fallback_to_soft=False)
        try:
            self.place.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                log.info("%s: another process is fetching it; waiting", self.place.path.name)
                lock.acquire()
        except OSError as error:
            raise self._unwritten(error) from None
        try:
            yield
        except OSError as error:
            raise self._unwritten(error) from None
        finally:
            lock.release()


@contextmanager
def _progress(name: str) -> Iterator[Advance]:
    """A progress bar on stderr if that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        yield lambda have, total: bar.update(task, completed=have, total=total)
