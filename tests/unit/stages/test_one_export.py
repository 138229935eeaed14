"""What `register` takes from other stages is of the export it registers, and documents of stages hold what is read."""

from __future__ import annotations

import json
import shutil

import pytest

from stages.project.workspace import dataset_document, measured, model_dir, reports, training_run
from stages.register import _check_one_export
from yolov7.errors import DataError
from yolov7.files import sha256_file

FIGURES = {"AP": 0.5, "AP50": 0.7, "per_class": {}, "test_data_sha256": "0" * 64}


@pytest.fixture
def export(exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(exported, model_dir("small") / "export")
    write_verification(folder)
    return folder


def write_verification(folder, **changes):
    names = ("model.onnx", "model-nms.onnx", "model.safetensors")
    files = {name: sha256_file(folder / name) for name in names} | changes
    (folder / "verify.json").write_text(json.dumps({"passed": True, "files": files}))


def test_figures_and_verdict_of_this_export_pass(export):
    _check_one_export(export, {**FIGURES, "artefact_sha256": sha256_file(export / "model.onnx")}, "small")


def test_documents_of_earlier_revisions_pass(export):
    (export / "verify.json").write_text('{"passed": true}')
    _check_one_export(export, FIGURES, "small")


def test_figures_of_another_export_are_refused(export):
    with pytest.raises(DataError, match="evaluate@small"):
        _check_one_export(export, {**FIGURES, "artefact_sha256": "1" * 64}, "small")


@pytest.mark.parametrize("changes", [{"model.onnx": "1" * 64}, {"model.safetensors": None}, {"more.onnx": "1" * 64}])
def test_a_verdict_on_another_export_is_refused(export, changes):
    write_verification(export, **changes)
    with pytest.raises(DataError, match="export@small"):
        _check_one_export(export, FIGURES, "small")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


DAMAGED = [
    "[]",
    "null",
    "5",
    "{}",
    "[" * 100_000,
    '{"AP": 1, "AP": 2}',
    "9" * 5000,
    '{"AP": "0.5"}',
    '{"sha256": 5}',
    "",
]


def run_of_v():
    return training_run("v", needs={"fingerprint": str})


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_documents_name_the_file_and_the_command(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    readers = {
        write(tmp_path / "data/ingested/dataset.json", text): (dataset_document, "ingest"),
        write(tmp_path / model_dir("v") / "train/run.json", text): (run_of_v, "train@v"),
        write(tmp_path / reports("v") / "metrics.json", text): (lambda: measured("v"), "evaluate@v"),
    }
    for path, (read, command) in readers.items():
        with pytest.raises(DataError, match=f"{path.name}.*dvc repro {command}") as refused:
            read()
        assert "\n" not in str(refused.value)


def test_whole_documents_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / reports("v") / "metrics.json", json.dumps({**FIGURES, "AP": 1}))
    assert measured("v")["AP50"] == 0.7
