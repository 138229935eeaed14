"""The commands and examples of the documents: fenced blocks, and commands in running text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "datasets/README.md", *ROOT.glob("infra/*.md")])
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")
_ASSIGNMENT = re.compile(r"[A-Z_][A-Z0-9_]*=\S*")
PROGRAMS = ("dvc", "mlflow", "prefect", "python", "yolov7", "make")
"""Those whose arguments can be checked without running anything."""
SYSTEM = frozenset(
    {"base64", "cat", "cd", "cp", "createdb", "curl", "docker", "export", "git", "kubectl", "openssl", "pg_dump"}
    | {"pg_restore", "pip", "printf", "rclone", "sha256sum", "source", "sqlite3", "terraform", "torchrun", "xargs"}
)
"""Programs of the system; `bash -n` checks their lines."""


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    document: Path
    language: str
    text: str

    @property
    def name(self) -> str:
        """Document and first line, by which lists name it."""
        first = next(line for line in self.text.splitlines() if line.strip())
        return f"{self.document.relative_to(ROOT)}: {first.partition('  #')[0].strip()}"


def blocks(*languages: str) -> list[Block]:
    """The fenced blocks in these languages, in document order; without any, all."""
    found = [
        Block(document, language, text)
        for document in DOCUMENTS
        for language, text in _FENCE.findall(document.read_text(encoding="utf-8"))
    ]
    return [block for block in found if not languages or block.language in languages]


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command in a piece of shell, without comments, assignments and redirections."""
    lines = text.replace("\\\n", " ").splitlines()
    for line in lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;()")
        lexer.whitespace_split = True
        lexer.commenters = "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;()"):
                while words and _ASSIGNMENT.fullmatch(words[0]):
                    words.pop(0)
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def inline_commands() -> Iterator[tuple[str, list[str]]]:
    """Document and words of every command of ours in running text."""
    for document in DOCUMENTS:
        text = _FENCE.sub("", document.read_text(encoding="utf-8"))
        for code in _INLINE.findall(text):
            joined = " ".join(code.split())
            if joined.partition(" ")[0].removeprefix(".venv/bin/") in PROGRAMS and " " in joined:
                yield from ((document.name, words) for words in commands(joined))


RUN_BY_MANUAL = (
    "README.md: prefect server start",
    "docs/data.md: dvc add datasets/mine",
    "docs/export.md: yolov7 tensorrt models/V/export/model.onnx",
    "docs/operations.md: prefect server start",
    "docs/operations.md: prefect work-pool create accelerators --type process",
    "docs/operations.md: prefect work-pool create trainers --type process",
    "docs/operations.md: prefect deployment run train-variants/nightly",
    "docs/operations.md: prefect event emit",
)
"""Blocks that `tests/pipeline/test_manual.py` runs as they are written."""
RUN_ELSEWHERE = {
    "README.md: make demo": "the release: `make demo`, `make test`",
    "README.md: source .venv/bin/activate": "tests/pipeline/test_dvc_stages.py",
    "README.md: yolov7 predict path/to/images": "tests/unit/yolov7/test_cli.py",
    "README.md: python -m stages.try_model": "tests/pipeline/test_try_model.py",
    "README.md: yolov7 train yolov7-tiny": "tests/unit/yolov7/runs/test_without_pipeline.py",
    "docs/library.md: yolov7 train yolov7-tiny": "tests/unit/yolov7/runs/test_training.py",
    "docs/library.md: yolov7 evaluate --model": "tests/unit/yolov7/runs/test_without_pipeline.py",
    "README.md: mlflow ui": "tests/pipeline/test_serving.py",
    "docs/first-hour.md: dvc repro": "tests/pipeline/test_dvc_stages.py",
    "docs/first-hour.md: python -m flows.promote": "tests/pipeline/test_gate_measured.py",
    "docs/first-hour.md: yolov7 predict datasets/raccoon/images": "tests/unit/yolov7/test_cli.py",
    "docs/export.md: yolov7 benchmark --model models/V/export --compare": "tests/unit/yolov7/test_cli.py",
    "docs/data.md: yolov7 predict new-images": "tests/unit/yolov7/test_cli.py",
    "docs/data.md: python -m stages.write_dataset": "tests/unit/stages/test_write_dataset.py",
    "docs/operations.md: # For `prefect server start`:": "tests/pipeline/test_postgresql.py",
    "docs/operations.md: python -m stages.preflight": "tests/unit/stages/preflight/test_local.py",
    "docs/operations.md: python -m flows.promote yolov7-tiny --dry-run": "tests/pipeline/test_gate_measured.py",
    "docs/operations.md: openssl genpkey": "tests/pipeline/test_signing.py",
    "docs/operations.md: python -m flows.promote --sign": "tests/pipeline/test_signing.py",
    "docs/operations.md: export MLFLOW_TRACKING_URI": "tests/pipeline/test_serving_load.py",
    "docs/operations.md: python -m flows.reproduce": "tests/pipeline/test_reproduce.py",
    "docs/operations.md: sha256sum --quiet --check code/train.sha256": "tests/pipeline/test_dvc_code.py",
    "docs/operations.md: createdb mlflow": "tests/pipeline/test_postgresql.py",
    "docs/evaluation.md: python -m yolov7.figures.border": "tests/unit/yolov7/figures/test_border.py",
    "docs/paper-map.md: python -m yolov7.figures.information": "tests/unit/yolov7/figures/test_information.py",
    "docs/paper-map.md: python -m yolov7.figures.attention": "tests/unit/yolov7/figures/test_attention.py",
    "docs/training.md: dvc add weights/yolov7-tiny.pt": "tests/unit/stages/test_start_weights.py",
    "docs/training.md: yolov7 fetch-weights yolov7": "tests/unit/yolov7/weights/test_fetch.py",
    "docs/variants.md: yolov7 predict photo.jpg": "tests/unit/yolov7/weights/test_fetch.py",
    "docs/training.md: dvc exp run": "tests/pipeline/test_dvc_shell.py",
    "docs/training.md: YOLOV7_PROCESSES=4": "tests/pipeline/test_train_processes.py",
    "docs/training.md: python -m flows.choose_model": "tests/pipeline/test_choice_flow.py",
    "docs/training.md: python -m flows.search_parameters": "tests/pipeline/test_search_flow.py",
    "infra/README.md: dvc remote add --local": "tests/unit/infra/test_infra.py",
}
"""Blocks whose commands another test runs, with names and addresses of its own."""
NOT_RUN = {
    "docs/first-hour.md: git clone URL-OF-THIS-PROJECT": "a network; `make setup` begins every `make test`",
    "docs/first-hour.md: git clone --depth 1 https": "a network",
    "docs/training.md: python benchmarks/warmup.py": "a comparison of many trainings, on data of one's own",
    "infra/README.md: cd infra/compose": "needs Docker; the compose file is checked by tests/unit/infra/test_infra.py",
    "infra/README.md: kubectl create namespace": "needs a cluster",
    "infra/README.md: kubectl apply": "needs a cluster; the manifests are checked by tests/unit/infra/test_infra.py",
    "infra/README.md: prefect work-pool create local": "two of the three pools need a cluster or AWS",
    "infra/README.md: cd infra/terraform": "needs an account at AWS",
}
"""Blocks that need what no test machine has; their syntax and arguments are checked."""
