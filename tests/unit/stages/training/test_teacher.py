"""The file of a teacher: known to DVC by a digest in params.yaml, part of the identity, told before any training."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from small_aligned import small_aligned

from stages.preflight.findings import Findings
from stages.preflight.trainings import check_teachers
from stages.project import params as params_module
from stages.training.teacher import teacher_file
from yolov7.config import Distillation, Train, train_parameters
from yolov7.errors import ConfigError
from yolov7.files import sha256_file
from yolov7.model import ModelMetadata, save_checkpoint
from yolov7.train.identity import fingerprint, run_identity
from yolov7.train.teacher import student_parameters, teacher_parameters


def key(train: Train) -> str:
    return fingerprint(run_identity("v", train, {"sha256": "d"}, None))


def test_a_teacher_is_the_file_that_the_digest_names(tmp_path: Path) -> None:
    assert teacher_file(Train()) is None and teacher_file(Train(distill_from="self")) is None
    path = tmp_path / "best.safetensors"
    with pytest.raises(ConfigError, match=r"train\.distill_from: .*best\.safetensors: no such file; put it there"):
        teacher_file(Train(distill_from=str(path)))
    (tmp_path / "best.safetensors.dvc").touch()
    with pytest.raises(ConfigError, match=r"`dvc pull .*best\.safetensors\.dvc` brings it"):
        teacher_file(Train(distill_from=str(path)))
    path.write_bytes(b"first")
    first = sha256_file(path)
    with pytest.raises(ConfigError, match=f"distill_sha256: missing .*; write `distill_sha256: {first}`"):
        teacher_file(Train(distill_from=str(path)))
    train = Train(distill_from=str(path), distill_sha256=first)
    assert teacher_file(train) == path
    path.write_bytes(b"second")
    with pytest.raises(ConfigError, match=f"expects {first}, but .* has {sha256_file(path)}"):
        teacher_file(train)


def test_the_identity_has_the_teachers_digest_and_not_its_place(tmp_path: Path) -> None:
    both = train_parameters({"distill_from": "self"}, recipe="yolov9")
    assert key(teacher_parameters(both)) == key(train_parameters({}, recipe="yolov9"))
    here, there = (student_parameters(both, tmp_path / name, "1" * 64) for name in ("a.safetensors", "b.safetensors"))
    assert key(here) == key(there) != key(student_parameters(both, tmp_path / "a.safetensors", "2" * 64))
    assert key(here) != key(teacher_parameters(both))


def test_without_a_teacher_what_is_taken_from_it_is_not_in_the_identity() -> None:
    plain, both = (train_parameters(given, recipe="yolov6-l") for given in ({}, {"distill_from": "self"}))
    assert plain.distillation.classification == 2.0
    assert key(teacher_parameters(both)) == key(plain), "a training made before is the teacher"
    assert key(plain) == key(train_parameters({"distillation": {"features": 10}}, recipe="yolov6-l"))
    release_3 = train_parameters({}, recipe="yolov6v3-m6")
    assert release_3.distillation.least_score_sum == 0.0
    assert key(release_3) == key(release_3.model_copy(update={"distillation": Distillation()}))
    student = student_parameters(both, "best.safetensors", "1" * 64)
    assert "least_score_sum" not in run_identity("v", student, {"sha256": "0"}, None)["train"]["distillation"]
    other = student.model_copy(update={"distillation": Distillation(features=10)})
    assert key(student) != key(other)


def findings(tmp_path: Path, **settings: object) -> list[str]:
    """The problems of a GELAN with these settings, in the present folder."""
    Path("data/ingested").mkdir(parents=True, exist_ok=True)
    Path("data/ingested/dataset.json").write_text('{"classes": ["dog", "cat"]}')
    Path("params.yaml").write_text(
        yaml.safe_dump({"variants": ["gelan-t"], "per_variant": {"gelan-t": {}}, "train": settings})
    )
    found = Findings()
    check_teachers(params_module.load(), ["gelan-t"], found)
    return found.problems


def test_a_teacher_that_does_not_fit_is_told_before_any_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = small_aligned(2)
    save_checkpoint("best.safetensors", model, ModelMetadata.of(model, class_names=("dog", "cat")))
    digest = sha256_file(Path("best.safetensors"))
    assert findings(tmp_path) == []
    assert "no such file" in findings(tmp_path, distill_from="absent.safetensors")[0]
    assert "distill_sha256: missing" in findings(tmp_path, distill_from="best.safetensors")[0]
    (problem,) = findings(tmp_path, distill_from="best.safetensors", distill_sha256=digest)
    assert "has levels of strides (4, 8), gelan-t of (8, 16, 32)" in problem
    assert findings(tmp_path, distill_from="self") == []
