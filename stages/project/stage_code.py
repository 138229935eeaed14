"""The code that each DVC stage runs: its files with their digests, one list per stage, in `code/STAGE.sha256`.

DVC compares that one file instead of a hundred, for each stage of each variant. The code of a stage is what it imports,
followed through all modules of `stages` and `yolov7`: a name that a package hands on leads to the module that defines
it, and not to the whole package. The lists have the form of `sha256sum`, which checks them:
`sha256sum --quiet --check code/train.sha256` in the project's root names the files that have changed since.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from yolov7.files import sha256_file, write_text

logger = logging.getLogger(__name__)

FOLDER = Path("code")
STAGES = ("ingest", "validate", "train", "quantize", "export", "evaluate", "register")
CODE = ("stages/", "yolov7/")

IGNORED = {
    "stages/project/command.py": "starts and ends the process: messages, exit codes",
    "stages/project/home.py": "the place of records and locks",
    "stages/project/locks.py": "keeps processes apart",
    "stages/project/params.py": "DVC compares the values, group by group",
    "stages/project/params_data.py": "DVC compares the values, group by group",
    "stages/project/provenance.py": "records where the result comes from",
    "stages/project/redaction.py": "wording of messages",
    "stages/project/workspace.py": "paths; whoever opens an index imports it from yolov7.data.index",
    "yolov7/__init__.py": "the names of the public API",
    "yolov7/catalogue.py": "published results of the networks, for tables",
    "yolov7/errors.py": "wording of messages",
    "yolov7/files.py": "writes whole files or none, whatever their content",
    "yolov7/predict/notebook.py": "what a notebook shows of a detector",
    "yolov7/model/published": "reads published checkpoints: their tensors are checked by name, shape and AP",
    "yolov7/weights": "fetches published checkpoints, whose digest params.yaml names",
}
"""Imported by most stages, and no reason to run one again. Their own imports are not followed."""

IGNORED_BY: dict[str, dict[str, str]] = {
    "validate": {"stages/preflight": "warns of what later stages will refuse"},
    "train": {
        "stages/preflight": "refuses, and changes no result",
        "stages/registry": "where a run is recorded, not what it computes",
        "stages/training/processes.py": "starts and ends processes",
        "stages/training/state_remote.py": "copies states elsewhere",
    },
    "quantize": {
        "stages/registry": "where a run is recorded, not what it computes",
        "stages/training/processes.py": "starts and ends processes",
        "stages/training/state_remote.py": "copies states elsewhere",
    },
    "export": {
        "stages/registry": "the id of the run",
        "yolov7/report": "a page on what the export has measured",
    },
    "register": {
        "yolov7/data/decode.py": "the code that serves a version is not part of it",
        "yolov7/predict": "the code that serves a version is not part of it",
    },
}
"""And for one stage each."""

PARAMETERS = "yolov7/config"
"""Defaults and presets of trainings, and the base class of all groups: a reason for the stages that train."""


_NAMED = 5
"""Changed files named in a line."""


def list_of(stage: str) -> Path:
    """`code/STAGE.sha256`, relative to the project's root."""
    return FOLDER / f"{stage}.sha256"


def covered(file: str, paths: set[str]) -> bool:
    """True if one of the paths is the file or a folder above it."""
    return any(file == path or file.startswith(f"{path}/") for path in paths)


def ignored(stage: str) -> set[str]:
    """Files and folders whose changes do not make the stage stale."""
    return {*IGNORED, *IGNORED_BY.get(stage, ()), *(() if stage in ("train", "quantize") else (PARAMETERS,))}


class Code:
    """The imports and digests of the project's code below `root`, read once each."""

    def __init__(self, root: Path = Path()):
        self.root = root
        self.imported_by = cache(self._imported_by)
        self._tree = cache(self._parse)
        self._digest = cache(lambda file: sha256_file(root / file))

    def files(self, stage: str) -> list[str]:
        """The files that a stage imports, directly or not, and the templates beside them, sorted.

        Package files that only hand names on are left out. Empty if there is no module of that stage.
        """
        seen: set[str] = set()
        todo = [file for file in [f"stages/{stage}.py"] if (self.root / file).is_file()]
        while todo:
            file = todo.pop()
            if file not in seen and not covered(file, ignored(stage)):
                seen.add(file)
                todo += self.imported_by(file)
        folders = {Path(file).parent / "templates" for file in seen}
        templates = {path for folder in folders for path in (self.root / folder).glob("*") if path.is_file()}
        named = {path.relative_to(self.root).as_posix() for path in templates}
        return sorted({file for file in seen if self._has_code(file)} | named)

    def listing(self, stage: str) -> str:
        """One line per file of the stage, its sha256 and its path, as `sha256sum` writes them."""
        return "".join(f"{self._digest(file)}  {file}\n" for file in self.files(stage))

    def _parse(self, file: str) -> ast.Module:
        """The syntax tree; an empty one if there is a mistake in the file, which whoever imports it will report."""
        try:
            return ast.parse((self.root / file).read_bytes())
        except (SyntaxError, ValueError) as error:
            logger.warning("%s: not readable as Python (%s): its imports are not followed", file, error)
            return ast.Module(body=[], type_ignores=[])

    def _imported_by(self, file: str) -> frozenset[str]:
        """The files of ours that a file imports."""
        found: set[str | None] = set()
        for node in _imports(self._tree(file)):
            if isinstance(node, ast.Import):
                found |= {self._module_file(alias.name) for alias in node.names}
            else:
                found |= {self._home(_module(node, file), alias.name) for alias in node.names}
        return frozenset(path for path in found if path is not None and path.startswith(CODE))

    def _module_file(self, name: str) -> str | None:
        """The file of a module of ours, relative to the root."""
        path = self.root.joinpath(*name.split("."))
        found = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        return found.relative_to(self.root).as_posix() if found.is_file() else None

    def _home(self, module: str, name: str) -> str | None:
        """The file behind `from module import name`."""
        submodule, file = self._module_file(f"{module}.{name}"), self._module_file(module)
        if submodule is not None or file is None or not file.endswith("/__init__.py"):
            return submodule or file
        for node in _imports(self._tree(file), types=True):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name and (target := _module(node, file)) != module:
                        return self._home(target, alias.name)
        return file

    def _has_code(self, file: str) -> bool:
        """True if a file is a module, or a package file that defines something."""
        if not file.endswith("/__init__.py"):
            return True
        return any(_names(node) - {"__all__", "__getattr__"} for node in self._tree(file).body)


_STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)
"""What may hold an import; expressions, most of a tree, cannot."""


def _imports(node: ast.AST, *, types: bool = False) -> Iterator[ast.Import | ast.ImportFrom]:
    """All import statements, also those in functions; with `types` those for type checking too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, _STATEMENTS) and (types or not _is_type_checking(child)):
            yield from _imports(child, types=types)


def _module(node: ast.ImportFrom, file: str) -> str:
    """The module that names are imported from, a relative one as seen from `file`."""
    above = Path(file).parts[: -node.level] if node.level else ()
    return ".".join([*above, *([node.module] if node.module else [])])


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _names(node: ast.stmt) -> set[str]:
    """The names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def write_lists(root: Path = Path()) -> dict[str, list[str]]:
    """Write the list of every stage; returns the files that differ from the lists that were there, by stage."""
    code = Code(root)
    return {stage: _write(code, stage) for stage in STAGES}


def renew(stage: str, root: Path = Path()) -> list[str]:
    """Bring the list of a stage up to date if a file in it has changed since; returns the files that differ.

    DVC compares the list with the last one before it starts a stage, and records it when the stage has ended: what
    starts now must not be recorded under the digests of older code.
    """
    listed = _read(root / list_of(stage))
    if not listed or all((root / file).is_file() and sha256_file(root / file) == one for file, one in listed.items()):
        return []
    return _write(Code(root), stage)


def named(files: Sequence[str]) -> str:
    """The first of some changed files, and how many more there are."""
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    return f"{', '.join(files[:_NAMED])}{more}"


def _write(code: Code, stage: str) -> list[str]:
    path, text = code.root / list_of(stage), code.listing(stage)
    before, after = _read(path), _parse_list(text)
    if not path.is_file() or path.read_bytes() != text.encode("utf-8"):
        write_text(path, text)
    return sorted(file for file in before.keys() | after.keys() if before.get(file) != after.get(file))


def _read(path: Path) -> Mapping[str, str]:
    """Digest by file; empty if there is no list."""
    return _parse_list(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else {}


def _parse_list(text: str) -> Mapping[str, str]:
    pairs = (line.partition("  ") for line in text.splitlines())
    return {file: digest for digest, _, file in pairs if file}
