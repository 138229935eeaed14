"""Training without the pipeline: the same bits as the stages, exact resume, and one-line refusals."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
from small_detector import SIDE, metadata_of, pictures, small_detector

import stages.evaluate
import stages.train
import yolov7
from stages.ingest import ingest
from stages.project.params import Params
from stages.project.params_data import Data
from stages.registry.journal import RunJournal
from yolov7 import cli
from yolov7.data.formats.coco import read_coco
from yolov7.data.index import build_index
from yolov7.errors import ConfigError, DataError, ModelError, TrainingError
from yolov7.files import write_json
from yolov7.predict import Predictor, TorchRuntime
from yolov7.train.loop import Trainer

NETWORK = "small_efficient:small_efficient"
TRAIN = {
    "preset": "yolov6-n",
    "cache": "none",
    "image_size": SIDE,
    "batch_size": 2,
    "epochs": 2,
    "evaluate_every": 1,
    "checkpoint_minutes": 0.0,
    "optimizer": {"nominal_batch": 4, "warmup_iterations": 2, "warmup_epochs": 0},
    "augment": {"mosaic": 0.5, "mixup": 0.0},
}
SPLITS = {"train": 6, "val": 4, "test": 4}


def coco_set(folder: Path) -> Path:
    """Smooth pictures whose truth is what the small detector finds in them, as a COCO data set."""
    detector = small_detector()
    finder = Predictor(TorchRuntime(detector.reparameterize(), metadata_of(detector)), confidence=0.3, max_detections=6)
    for seed, (split, count) in enumerate(SPLITS.items()):
        images, annotations = [], []
        (folder / split).mkdir(parents=True)
        for number, image in enumerate(pictures(count, seed=seed), 1):
            height, width = image.shape[:2]
            name = f"{number}.png"
            images.append({"id": number, "file_name": name, "width": width, "height": height})
            boxes, _, labels = finder.predict(image)[0].to_numpy()
            for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist(), strict=True):
                mark = {"id": len(annotations) + 1, "image_id": number, "category_id": 4 + label, "iscrowd": 0}
                box = [x1, y1, x2 - x1, y2 - y1]
                annotations.append({**mark, "bbox": box, "area": box[2] * box[3]})
            cv2.imwrite(str(folder / split / name), image[:, :, ::-1])
        categories = [{"id": 4 + number, "name": f"kind {number}"} for number in range(3)]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / f"annotations/instances_{split}.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return coco_set(tmp_path_factory.mktemp("set") / "mine")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> yolov7.TrainedDetector:
    """A run through the library, undisturbed."""
    out = tmp_path_factory.mktemp("runs") / "mine"
    return yolov7.train_detector("own", data=data, out=out, device="cpu", network=NETWORK, progress=False, **TRAIN)


def parts(path: Path) -> tuple[dict, bytes]:
    """Header and tensors of a .safetensors file."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = json.loads(header["__metadata__"]["yolov7"])
    return header, content[8 + length :]


@pytest.fixture
def project(data, tmp_path, monkeypatch) -> Params:
    """A workspace of the pipeline with the same data; its MLflow is away, and its data are taken as valid."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOLOV7_DEVICE", "cpu")
    monkeypatch.setattr(RunJournal, "deliver", lambda self, force=False: False)
    monkeypatch.setattr(stages.train, "require", lambda *_: None)
    sets = {one: {"images": one, "annotations": f"annotations/instances_{one}.json"} for one in SPLITS}
    source = {"source": "coco", "folder": str(data), "coco": sets}
    ingest(Data.model_validate(source), Path("data/ingested"), Path("downloads"))
    for split in SPLITS:
        folder = Path("data/ingested") / split
        build_index(read_coco(folder / "annotations.json"), folder / "images", Path("data/index") / split)
    digest = json.loads(Path("data/ingested/dataset.json").read_text())["sha256"]
    write_json("data/index/dataset.json", {"sha256": digest})
    values = {"variants": ("own",), "train": {**TRAIN, "network": NETWORK}, "per_variant": {"own": {}}}
    return Params.model_validate(values)


def test_the_library_leaves_the_bytes_that_the_stage_leaves(project, trained):
    stages.train.main(project, argparse.Namespace(variant="own", fresh=False))
    for name in ("best.safetensors", "last.safetensors"):
        (ours, tensors), (theirs, expected) = parts(trained.folder / name), parts(Path("models/own/train") / name)
        # The pipeline hashes its own copy of the data.
        assert ours["__metadata__"]["extra"].pop("data_sha256") != theirs["__metadata__"]["extra"].pop("data_sha256")
        assert tensors == expected and len(tensors) > 100_000
        assert ours == theirs
    rows = Path("models/own/train/history.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows[1:]] == [
        row.split(",")[1] for row in (trained.folder / "history.csv").read_text().splitlines()[1:]
    ]


def test_the_library_measures_what_the_stage_measures(project, data, tmp_path):
    weights = tmp_path / "good.safetensors"
    yolov7.save_checkpoint(weights, small_detector(), metadata_of(small_detector()))
    arguments = argparse.Namespace(variant="yolov7-tiny", model=str(weights), output=str(tmp_path / "stage.json"))
    stages.evaluate.main(Params.model_validate({"per_variant": {"yolov7-tiny": {}}}), arguments)
    expected = json.loads((tmp_path / "stage.json").read_text())
    found = yolov7.evaluate_model(weights, data=data, split="test", out=tmp_path / "out")
    figures = json.loads((tmp_path / "out/metrics.json").read_text())
    assert figures == {key: expected[key] for key in figures} and len(figures) > 15
    assert found.metrics == {key: expected[key] for key in found.metrics}
    assert 0.2 < expected["AP"] < 1  # figures that could differ
    assert "<svg" in (tmp_path / "out/report.html").read_text()


def test_the_folder_of_a_run_holds_what_it_says(trained, data):
    names = {path.relative_to(trained.folder).as_posix() for path in trained.folder.rglob("*") if path.is_file()}
    assert {"best.safetensors", "last.safetensors", "run.json", "history.csv", "ap.svg", "losses.svg"} <= names
    assert {"summary.md", "metrics.json", "pictures/epoch-1-batch-1-labels.jpg"} <= names
    assert "pictures/epoch-1-batch-1-assignment.jpg" in names
    assert trained.evaluate(split="val", pictures=1).metrics["AP"] >= 0
    assert (trained.folder / "evaluation/val/report.html").is_file()
    again = yolov7.TrainedDetector(trained.folder)
    assert again.variant == "own" and again.record["train"]["epochs"] == 2
    assert again.record["data"]["classes"] == ["kind 0", "kind 1", "kind 2"]
    assert [row["epoch"] for row in again.history] == [0.0, 1.0] and "val/AP" in again.history[0]
    image = pictures(1)[0]
    (found,) = again.predict([image], confidence=0.01)
    assert found.boxes.shape[1] == 4 and again.detector().metadata.class_names == ("kind 0", "kind 1", "kind 2")


def test_export_verifies_on_the_data_of_the_training(trained):
    done = trained.export(["onnx-raw"], verify_images=2)
    assert done.report is not None and done.report.passed and len(done.report.images) == 2
    assert {"model.onnx", "model-nms.onnx", "model.safetensors", "optional/model-raw.onnx"} <= set(done.files)
    image = pictures(1)[0]
    how = {"confidence": 0.01, "iou": 0.5, "max_detections": 100}
    ours, theirs = (yolov7.load_detector(one, **how).predict([image])[0] for one in (trained.weights, done.folder))
    assert len(ours.boxes) == len(theirs.boxes) > 0


def command(out: Path, data: Path, *more: str) -> list[str]:
    """`yolov7 train` with the parameters of `TRAIN`."""
    settings = ["cache=none", "evaluate_every=1", "checkpoint_minutes=0.0", "network=" + NETWORK]
    settings += [f"optimizer.{key}={value}" for key, value in TRAIN["optimizer"].items()]
    settings += [f"augment.{key}={value}" for key, value in TRAIN["augment"].items()]
    options = [text for setting in settings for text in ("--set", setting)]
    sizes = ["--preset", "yolov6-n", "--epochs", "2", "--image-size", str(SIDE), "--batch-size", "2", "--device", "cpu"]
    return ["train", "own", "--data", str(data), "-o", str(out), *sizes, *options, *more]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_stopped_command_resumes_to_the_same_bytes(number, code, data, trained, tmp_path):
    support = Path(__file__).parents[3] / "support"
    path = os.pathsep.join([str(Path(__file__).parents[4]), str(support)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-m", "yolov7.cli", *command(tmp_path / "run", data)]
    process = subprocess.Popen(start, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not list((tmp_path / "run").glob("state/state-*.safetensors")) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=200)
    assert process.returncode == code, err
    assert number == signal.SIGKILL or (err.rstrip().endswith("stopped") and "resumes it" in err)
    assert not (tmp_path / "run/best.safetensors").exists()
    with pytest.raises(TrainingError, match="not finished"):
        yolov7.TrainedDetector(tmp_path / "run")
    assert cli.main(command(tmp_path / "run", data)) == 0
    for name in ("best.safetensors", "last.safetensors"):
        assert parts(tmp_path / "run" / name) == parts(trained.folder / name)


def test_other_parameters_are_refused_until_fresh(data, trained, capsys, tmp_path):
    assert trained.record["train"]["seed"] == 0
    assert cli.main(command(trained.folder, data, "--set", "seed=7")) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "train.seed: was 0, is now 7" in err and "--fresh" in err
    assert yolov7.TrainedDetector(trained.folder).record == trained.record  # of what lies there


def again(trained: yolov7.TrainedDetector, data, **changed) -> yolov7.TrainedDetector:
    """The training of `trained` once more, into its folder, with changes."""
    options = {"data": data, "out": trained.folder, "device": "cpu", "network": NETWORK, "progress": False}
    return yolov7.train_detector("own", **{**options, **TRAIN, **changed})


@pytest.fixture
def copied(trained, tmp_path) -> yolov7.TrainedDetector:
    """A copy of the run, to do harm to."""
    return yolov7.TrainedDetector(shutil.copytree(trained.folder, tmp_path / "copied"))


def test_to_start_over_costs_nothing_before_the_new_training_begins(data, copied):
    files = {path: path.stat().st_mtime_ns for path in copied.folder.rglob("*") if path.is_file()}
    for mistake in ({"data": "nowhere"}, {"data": data, "distill_from": "none.safetensors"}):
        with pytest.raises((ConfigError, DataError)):
            again(copied, resume=False, **mistake)
    kept = ("state", "pictures", "best.safetensors", "run.json")
    now = {path: path.stat().st_mtime_ns for path in copied.folder.rglob("*") if path.is_file()}
    for name in kept:
        place = copied.folder / name
        theirs = {path: at for path, at in files.items() if path == place or place in path.parents}
        assert theirs and theirs.items() <= now.items(), name


def test_results_of_before_do_not_pass_for_those_of_a_training_that_started_over(data, copied, monkeypatch):
    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "fit", broken)
    with pytest.raises(KeyboardInterrupt):
        again(copied, data, seed=7, resume=False)
    with pytest.raises(TrainingError, match="has not finished"):
        yolov7.TrainedDetector(copied.folder)
    assert json.loads((copied.folder / "run.json").read_text())["train"]["seed"] == 7


def test_results_without_states_are_not_written_over(data, copied):
    shutil.rmtree(copied.folder / "state")
    with pytest.raises(TrainingError, match=r"without the states to resume it.*--fresh"):
        again(copied, data)
    assert copied.weights.is_file()


def test_a_pair_of_trainings_is_refused_before_the_first_if_the_second_would_be(data, copied):
    with pytest.raises(TrainingError, match=r"other parameters.*distill"):
        again(copied, data, distill_from="self")
    assert not (copied.folder / "state-first").exists()


def test_a_training_does_not_start_from_a_file_that_it_deletes(data, copied):
    with pytest.raises(ConfigError, match=r"train\.weights: .*best\.safetensors is written over by this training"):
        again(copied, data, weights=copied.weights, resume=False)
    assert copied.weights.is_file()


def test_a_checkpoint_as_variant_gives_network_and_weights(data, trained, tmp_path):
    again = yolov7.train_detector(
        trained.weights, data=data, out=tmp_path / "run", device="cpu", network=NETWORK, progress=False,
        **{**TRAIN, "epochs": 1},
    )  # fmt: skip
    assert again.variant == "own" and again.record["train"]["weights"] == str(trained.weights)


def test_two_trainings_in_a_row_teacher_first(data, tmp_path):
    own = yolov7.train_detector(
        "own", data=data, out=tmp_path / "run", device="cpu", network=NETWORK, progress=False,
        **{**TRAIN, "epochs": 1, "distill_from": "self"},
    )  # fmt: skip
    assert (tmp_path / "run/state-first/best.safetensors").is_file()
    assert len(own.history) == 1 and any("distill" in name for name in own.history[0])


@pytest.mark.parametrize(
    ("variant", "options", "kind", "words"),
    [
        ("yolov7-tyni", {}, ModelError, "did you mean 'yolov7-tiny'"),
        ("yolov7-tiny", {"epoch": 3}, ConfigError, "train.epoch: unknown key (did you mean 'epochs'?)"),
        ("yolov7-tiny", {"augment": {"mixupp": 0.1}}, ConfigError, "did you mean 'mixup'"),
        ("yolov7-tiny", {"weights": "yolov7-tyni"}, ConfigError, "did you mean 'yolov7-tiny'"),
        ("yolov7-tiny", {"weights": "none.safetensors"}, ConfigError, "none.safetensors: no such file"),
        ("yolov7-tiny.pt", {}, ConfigError, "does not say which network"),
        ("yolov7-tiny", {"image_size": 100}, ConfigError, "multiple"),
        ("no_such_module:network", {}, ModelError, "no_such_module"),
        ("yolov7-tiny", {"workers": -1}, ConfigError, "workers"),
        ("yolov7-tiny", {"device": "cuda:77"}, ConfigError, "cuda:77"),
        ("yolov7-tiny", {"data": "nowhere"}, DataError, "nowhere"),
        ("yolov7-tiny", {"data": None}, ConfigError, "data: a path is expected"),
        (
            "yolov7-tiny",
            {"data": {"train": {"annotations": "a.json", "images": None}}},
            ConfigError,
            "data.train.images: a path is expected",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(variant, options, kind, words, data, tmp_path):
    with pytest.raises(kind) as caught:
        yolov7.train_detector(
            variant, **{"data": data, "out": tmp_path / "run", "device": "cpu", "progress": False, **options}
        )
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_is_no_run_is_told(tmp_path):
    with pytest.raises(TrainingError, match="not the folder of a run"):
        yolov7.TrainedDetector(tmp_path)
