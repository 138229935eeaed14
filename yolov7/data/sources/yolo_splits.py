"""Images and label files of a YOLO data set: by folders of params.yaml, or as data.yaml or obj.data declares them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from yolov7.data.formats.label_files import collected
from yolov7.data.formats.yolo_declared import Declared
from yolov7.data.formats.yolo_txt import YoloImage
from yolov7.data.sources.file_names import list_files, match_names
from yolov7.data.sources.image_folder import ImageFiles, by_stem, files_below, image_sizes, images_below, shown, stem_of
from yolov7.data.sources.lists import choose_listed, list_entries
from yolov7.data.sources.parameters import YoloSplit
from yolov7.errors import DataError

_NO_LABELS = ("classes.txt", "notes.txt")
"""Files that labelling tools leave among the labels."""


@dataclass(frozen=True)
class SetFiles:
    """The images of a set with their label files."""

    root: Path
    """Folder of the image names."""
    labels: Path
    """Names the source of the labels in messages."""
    images: list[YoloImage]
    key: str
    """Where the set is given, for messages."""
    notes: tuple[str, ...] = ()


def given_files(one: YoloSplit, base: Path, key: str, problems: list[DataError]) -> SetFiles:
    """The files of a set of params.yaml. Everything that is wrong with them is added to `problems`.

    Raises :class:`DataError` for folders that cannot be listed.
    """
    root, label_root = base / one.images, base / one.labels
    files = images_below(root, key=f"{key}.images")
    names = files.names
    found = files_below(label_root, (".txt",), key=f"{key}.labels")
    found = [label for label in found if label.rpartition("/")[2].lower() not in _NO_LABELS]
    with collected(problems):
        by_stem(found, label_root)
    labels = {stem_of(label): label_root / label for label in found}
    labels = _in_letters_of(labels, names)
    _check_orphans(labels, files, label_root, root, problems)
    known = {stem_of(name): name for name in names}
    with collected(problems):
        by_stem(names, root)
    chosen: list[str] = list(known.values())
    notes: tuple[str, ...] = ()
    if one.listed_in is not None and known:
        with collected(problems):
            listed = choose_listed(base / one.listed_in, known)
            chosen, notes = listed.files, listed.notes
    elif one.listed_in is None:
        notes = tuple(files.notes(labels))
    if not names:
        left_out = "; ".join(files.notes())
        message = f"no images here; see {key}.images{left_out and f' ({left_out})'}"
        problems.append(DataError(message, path=root))
    images = _with_sizes(root, [(name, labels.get(stem_of(name))) for name in chosen], problems)
    return SetFiles(root, label_root, images, key, notes)


def _in_letters_of(labels: Mapping[str, Path], names: Iterable[str]) -> dict[str, Path]:
    """The labels by the stems of their images, also where one has composed and the other decomposed letters."""
    stems = {stem_of(name) for name in names}
    composed = {unicodedata.normalize("NFC", stem): stem for stem in stems if not stem.isascii()}
    found: dict[str, Path] = {}
    for stem, label in labels.items():
        other = stem if stem in stems or stem.isascii() else composed.get(unicodedata.normalize("NFC", stem), stem)
        found[stem if other in labels else other] = label
    return found


def _check_orphans(
    labels: Mapping[str, Path], files: ImageFiles, label_root: Path, root: Path, problems: list[DataError]
) -> None:
    known = {stem_of(name) for name in files.names}
    names = [path.relative_to(label_root).as_posix() for stem, path in labels.items() if stem not in known]
    if names:
        message = f"{len(names)} label files have no image in {root}: {shown(names)}{files.instead(labels)}"
        problems.append(DataError(f"{message}; add the images or remove the labels", path=label_root))


def _with_sizes(root: Path, chosen: Sequence[tuple[str, Path | None]], problems: list[DataError]) -> list[YoloImage]:
    sizes: dict[str, tuple[int, int]] = {}
    with collected(problems):
        sizes = image_sizes(root, [name for name, _ in chosen])
    # Without sizes the rows are still checked: one message names all problems.
    return [YoloImage(name, *sizes.get(name, (1, 1)), label) for name, label in chosen]


def declared_files(declared: Declared, base: Path, problems: list[DataError]) -> tuple[dict[str, SetFiles], list[str]]:
    """The sets that the file declares, by split, or `all` if it declares `train` only; and notes.

    Everything that is wrong with the files is added to `problems`. Raises :class:`DataError` for sets that are missing.
    """
    before = len(problems)
    notes: list[str] = []
    sets: dict[str, SetFiles] = {}
    for split in ("train", "val", "test"):
        places: list[Path] = []
        for value in declared.splits.get(split, ()):
            place = None
            with collected(problems):
                place = _place(value, declared, base, notes)
                if place is None and split != "test":
                    raise DataError(f"`{split}: {value[:200]}` is not in {base}", path=declared.path)
            if place is None and split == "test":
                notes.append(f"{declared.path.name}: `test: {value[:200]}` is not in {base}: there is no test set")
            places += [] if place is None else [place]
        if places:
            with collected(problems):
                sets[split] = _files(split, places, declared, base, problems)
    if len(problems) > before:
        return sets, notes
    if "train" not in sets or sets.keys() == {"train", "test"}:
        found = " and ".join(sets) or "no sets"
        message = f"declares {found}; give data.yolo.train and data.yolo.val, or data.yolo.all, in params.yaml"
        raise DataError(message, path=declared.path)
    if sets.keys() == {"train"}:
        notes.append(f"{declared.path.name} declares one set, `train`: it is divided by data.split")
        return {"all": sets["train"]}, notes
    return sets, notes


def _files(split: str, places: Sequence[Path], declared: Declared, base: Path, problems: list[DataError]) -> SetFiles:
    key = f"{declared.path.name}: {split}"
    root = base.resolve()
    notes: list[str] = []
    names: dict[str, None] = {}
    for place in places:
        if place.is_dir():
            inside = place.relative_to(root).as_posix()
            prefix = "" if inside == "." else f"{inside}/"
            files = images_below(place, key=key)
            names |= dict.fromkeys(prefix + name for name in files.names)
            notes += files.notes()
        else:
            with collected(problems):
                names |= dict.fromkeys(_listed(place, declared, root, notes))
    label_folder = _label_folder(split, declared, base, places, root)
    labels = {name: _label_of(name, label_folder, places, root) for name in names}
    with collected(problems):
        by_stem(names, root)
    beside = {folder: _text_files(folder) for folder in {path.parent for path in labels.values()}}
    used = {_spelled(label) for label in labels.values()}
    for folder in beside:
        unused = {
            stem_of(file.relative_to(root).as_posix()): file
            for wanted, files_of in beside[folder].items()
            for file in files_of
            if wanted not in used and file.name.lower() not in _NO_LABELS
        }
        # A list chooses images, so that labels of others are no surprise; nor are lists among the labels.
        if all(place.is_dir() for place in places) and folder != root:
            _check_orphans(unused, ImageFiles([], {}, []), root, places[0], problems)
    if not names:
        problems.append(DataError(f"no images; see `{split}` in {declared.path}", path=places[0]))
    chosen: list[tuple[str, Path | None]] = []
    for name, label in labels.items():
        with collected(problems):
            chosen.append((name, _plain_file(label, beside[label.parent].get(_spelled(label), []), root)))
    images = _with_sizes(root, chosen, problems)
    return SetFiles(root, root, images, key, tuple(notes))


def _text_files(folder: Path) -> dict[str, list[Path]]:
    """The files that end in `.txt`, in any case, by their path in one spelling."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        if file.suffix.lower() == ".txt":
            found.setdefault(_spelled(file), []).append(file)
    return found


def _spelled(label: Path) -> str:
    """A path that ends in `.txt`, in composed letters."""
    return unicodedata.normalize("NFC", str(label.with_suffix(".txt")))


def _plain_file(label: Path, found: Sequence[Path], root: Path) -> Path | None:
    """The label file; None if there is none. `found`: the files that may be it, in other letters or with `.TXT`.

    Raises :class:`DataError` for two of them, links out of `root`, pipes and folders.
    """
    cases = [file.name for file in found if len({stem_of(one.name) for one in found}) == 1]
    if len(cases) > 1:
        message = f"{' and '.join(map(repr, cases))} are labels of one image; remove one of them"
        raise DataError(message, path=label.parent)
    if found and label not in found:
        label = found[0]
    if not label.is_file():
        if label.exists() or label.is_symlink():
            raise DataError("is not a file; remove it", path=label)
        return None
    if _inside(label, root) is None:
        raise DataError("is a link that leaves its folder; replace it by the file itself", path=label)
    return label


def _label_folder(split: str, declared: Declared, base: Path, places: Sequence[Path], root: Path) -> Path | None:
    """The folder that Supervisely's `train_labels` names; None: the rule of the images' folders applies."""
    value = declared.label_folders.get(split)
    return None if value is None else _place(value, declared, base, [])


def _label_of(name: str, folder: Path | None, places: Sequence[Path], root: Path) -> Path:
    """The label file of an image: the last folder `images` of its path becomes `labels`, and the suffix `.txt`."""
    if folder is not None:
        inside = next((place for place in places if (root / name).is_relative_to(place)), root)
        return folder / f"{stem_of((root / name).relative_to(inside).as_posix())}.txt"
    parts = list(PurePosixPath(f"{stem_of(name)}.txt").parts)
    at = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if at:
        parts[at[-1]] = "labels"
    return root.joinpath(*parts)


def _place(value: str, declared: Declared, base: Path, notes: list[str]) -> Path | None:
    """The folder or list that `value` means, inside `base`; None if there is none.

    Tried are, in this order: on `path`, beside the file, in data.folder; each also without a leading `../` (Roboflow)
    or `data/` (CVAT), which are not folders of the export. Raises :class:`DataError` if two of them exist.
    """
    here, root = declared.path.parent, base.resolve()
    written = value.replace("\\", "/").rstrip("/")
    stripped = re.sub(r"^(\.\./)+", "", written)
    spellings = dict.fromkeys((written, stripped, stripped.removeprefix("data/")))
    bases = dict.fromkeys((*((here / declared.base, base / declared.base) if declared.base else ()), here, base))
    absolute = written.startswith("/") or re.match(r"[A-Za-z]:/", written)
    if absolute:
        # Of the machine that exported: the longest end of the path that is here counts.
        parts = [part for part in written.split("/") if part]
        spellings = dict.fromkeys("/".join(parts[start:]) for start in range(len(parts)))
    found = {path: None for one in spellings for folder in bases if (path := _inside(folder / one, root)) is not None}
    if absolute and _inside(Path(written), root) is not None:
        found = {Path(written).resolve(): None}
    if len(found) > 1 and not absolute:
        both = " or ".join(str(path) for path in found)
        raise DataError(
            f"`{value[:200]}` could be {both}; give the sets by data.yolo.train and data.yolo.val, or keep one of them",
            path=declared.path,
        )
    chosen = next(iter(found), None)
    if chosen is not None and chosen != _inside(here / declared.base / value, root):
        on = f" on `path: {declared.base[:200]}`" if declared.base else ""
        notes.append(f"{declared.path.name}: `{value[:200]}`{on} is read as {chosen.relative_to(root).as_posix()}")
    return chosen


def _inside(path: Path, root: Path) -> Path | None:
    """The path, resolved, if it exists below `root`: DVC watches nothing else."""
    try:
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        return None
    return resolved if resolved.is_relative_to(root) else None


def _listed(path: Path, declared: Declared, root: Path, notes: list[str]) -> list[str]:
    """The images of a list, relative to `root`.

    A name is tried below the list's folder, `path`, the folder of data.yaml and data.folder; then by the rules of
    `yolov7.data.sources.file_names`.
    """
    folders = dict.fromkeys((path.parent, declared.path.parent / declared.base, declared.path.parent, root))
    names: dict[str, None] = {}
    other: dict[str, int] = {}
    problems: list[str] = []
    for line, entry in list_entries(path):
        tried = [path.parent] if entry.startswith("./") else folders
        found = {file for folder in tried if (file := _inside(folder / entry, root)) is not None and file.is_file()}
        if len(found) > 1:
            problems.append(f"{entry[:200]!r} (line {line}) could be {' or '.join(map(str, sorted(found)))}")
        elif found:
            names[found.pop().relative_to(root).as_posix()] = None
        else:
            other.setdefault(entry, line)
    matched = match_names(other, lambda: list_files(root))
    notes += [f"{path.name}: {note}" for note in matched.notes]
    names |= dict.fromkeys(matched.names.values())
    problems += [f"{entry!r} (line {other[entry]}) {reason}" for entry, reason in matched.problems.items()]
    missing = [f"{entry} (line {other[entry]})" for entry in other if entry not in matched.names | matched.problems]
    if missing:
        problems.append(f"{len(missing)} names of this list have no file: {shown(missing)}")
    if problems:
        raise DataError("; ".join(problems[:10]), path=path)
    return list(names)


def contradictions(declared: Declared, given: Mapping[str, YoloSplit], base: Path) -> list[str]:
    """Notes on sets of params.yaml that lie elsewhere than the file declares."""
    notes: list[str] = []
    for split, values in declared.splits.items():
        one = given.get(split)
        folders = []
        for value in values:
            with collected([]):
                place = _place(value, declared, base, [])
                folders += [place] if place is not None and place.is_dir() else []
        if one is None or not folders:
            continue
        own = (base / one.images).resolve()
        if not any(own.is_relative_to(folder) or folder.is_relative_to(own) for folder in folders):
            there = folders[0].relative_to(base.resolve()).as_posix()
            notes.append(f"{declared.path.name} has `{split}` in {there}, params.yaml in {one.images}: that one counts")
    return notes
