"""The `yolov7` command as a user runs it: outputs, one-line errors, exit codes, finished results kept."""

from __future__ import annotations

import copy
import csv
import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import cv2
import pytest
from small_detector import pictures

from yolov7 import cli
from yolov7.predict import job, load_detector


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(pictures(3)):
        cv2.imwrite(str(folder / f"{number}.png"), image[:, :, ::-1])
    return folder


def run(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def one_line(err):
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
    return err


def test_info_as_table_and_json(capsys):
    code, out, _ = run(capsys, "info", "--variant", "yolov7-tiny")
    assert code == 0 and "6,228,762" in out and "yolov7-x" not in out
    code, out, _ = run(capsys, "info", "--variant", "yolov7-tiny", "--json")
    (row,) = json.loads(out)
    assert code == 0 and row["parameters_training"] == 6_228_762 and row["strides"] == [8, 16, 32]


@pytest.mark.parametrize("border", [0, 6])
def test_predict_writes_pictures_and_a_coco_json(capsys, exported, images, tmp_path, border):
    out = tmp_path / "out"
    how = ("--confidence", "0.3", "--border", str(border))
    code, printed, err = run(capsys, "predict", images, "--model", exported, "-o", out, *how)
    assert code == 0 and err == ""
    document = json.loads((out / "detections.json").read_text())
    assert printed == f"3 images, {len(document['annotations'])} detections: {out / 'detections.json'}\n"
    assert [image["file_name"] for image in document["images"]] == ["0.png", "1.png", "2.png"]
    assert document["categories"] == [{"id": 10 + i, "name": f"kind {i}"} for i in range(3)]
    found = load_detector(exported, confidence=0.3, border=border).predict(pictures(3))
    assert len(document["annotations"]) == sum(map(len, found)) > 10
    first = document["annotations"][0]
    left, top, right, bottom = found[0].boxes[0].tolist()
    assert first["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=1e-3)
    assert first["category_id"] == 10 + int(found[0].labels[0])
    assert first["score"] == pytest.approx(float(found[0].scores[0]), abs=1e-5)
    for number in range(3):
        drawn = cv2.imread(str(out / f"{number}.png"))
        assert max(drawn.shape[:2]) >= 640


def test_predict_writes_a_table_and_yolo_files_of_what_the_json_says(capsys, exported, images, tmp_path):
    out = tmp_path / "out"
    more = ("--confidence", "0.3", "--also", "csv", "yolo", "--tiles", "0.2")
    code, _, err = run(capsys, "predict", images, "--model", exported, "-o", out, *more)
    assert code == 0 and err == ""
    document = json.loads((out / "detections.json").read_text())
    sizes = {image["id"]: (image["file_name"], image["width"], image["height"]) for image in document["images"]}
    rows = list(csv.DictReader((out / "detections.csv").open()))
    assert len(rows) == len(document["annotations"]) > 10
    lines = {name: (out / f"labels/{Path(name).stem}.txt").read_text().split("\n") for name, _, _ in sizes.values()}
    for row, record in zip(rows, document["annotations"], strict=True):
        name, width, height = sizes[record["image_id"]]
        left, top, wide, high = record["bbox"]
        assert (row["file"], float(row["score"]), int(row["category_id"])) == (
            name,
            record["score"],
            record["category_id"],
        )
        assert [float(row[key]) for key in ("x1", "y1", "x2", "y2")] == pytest.approx(
            [left, top, left + wide, top + high], abs=2e-3
        )
        label, x, y, w, h, score = map(float, lines[name].pop(0).split())
        assert label == record["category_id"] - 10 and score == pytest.approx(record["score"], abs=1e-5)
        found = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
        assert found == pytest.approx(record["bbox"], abs=1e-2)
    assert all(rest == [""] for rest in lines.values())


def test_predict_writes_pre_annotations_of_what_the_json_says(capsys, exported, images, tmp_path):
    out = tmp_path / "out"
    more = ("--confidence", "0.3", "--also", "cvat", "label-studio")
    code, _, err = run(capsys, "predict", images, "--model", exported, "-o", out, *more)
    assert code == 0 and err == ""
    left = {path.name for path in out.iterdir() if path.suffix != ".png"}
    assert left == {"detections.json", "cvat.xml", "label-studio.json", "label-studio.xml"}
    document = json.loads((out / "detections.json").read_text())
    per_image = [sum(one["image_id"] == image["id"] for one in document["annotations"]) for image in document["images"]]
    pictures_of_cvat = ElementTree.parse(out / "cvat.xml").getroot().findall("image")
    assert [len(image) for image in pictures_of_cvat] == per_image and sum(per_image) > 10
    assert [image.get("name") for image in pictures_of_cvat] == ["0.png", "1.png", "2.png"]
    tasks = json.loads((out / "label-studio.json").read_text())
    assert [len(task["predictions"][0]["result"]) for task in tasks] == per_image


def test_predict_prints_json_and_leaves_its_own_output_out(capsys, exported, images):
    arguments = ("predict", images, "--model", exported / "model.safetensors", "-o", images / "drawn", "--json")
    for _ in range(2):  # the second round must not see the drawn images of the first
        code, printed, _ = run(capsys, *arguments)
        assert code == 0 and len(json.loads(printed)["images"]) == 3


def test_a_bad_image_costs_only_itself(capsys, exported, images, tmp_path):
    content = (images / "1.png").read_bytes()
    (images / "1.png").write_bytes(content[:-200])
    code, _, err = run(capsys, "predict", images, "--model", exported, "-o", tmp_path / "out")
    assert code == 2
    assert "1.png" in one_line(err) and "the others are done" in err
    document = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [image["file_name"] for image in document["images"]] == ["0.png", "2.png"]
    assert (tmp_path / "out" / "2.png").is_file() and not (tmp_path / "out" / "1.png").exists()


def test_predict_on_a_video(capsys, exported, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (96, 96))
    for _ in range(3):
        writer.write(pictures(1)[0][:, :, ::-1].copy())
    writer.release()
    arguments = ("predict", tmp_path / "clip.avi", "--model", exported, "-o", tmp_path / "out", "--batch-size", "2")
    code, printed, _ = run(capsys, *arguments)
    assert code == 0 and printed.startswith("3 images, ")
    assert sorted(p.name for p in (tmp_path / "out" / "clip.avi").iterdir()) == [f"{i:06d}.jpg" for i in range(3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "nowhere", "--model", "{export}"], "nowhere: no such image, folder or video"),
        (["predict", "{images}", "--model", "missing.onnx"], "missing.onnx: no such model"),
        (["predict", "{images}", "--model", "models:/a@b"], "models:/a@b"),
        (["predict", "{images}", "--model", "{export}", "--confidence", "7"], "must lie between"),
        (["predict", "{images}", "--model", "{export}", "--confidence", "much"], "invalid float value"),
        (["predict", "{images}", "--model", "{export}", "--device", "warp"], "device 'warp'"),
        (["predict", "{images}", "--model", "{export}", "--threads", "-1"], "--threads"),
        (["benchmark", "--model", "{export}", "--threads", "-1"], "--threads"),
        (["predict", "{images}"], "the following arguments are required: --model"),
        (["info", "--variant", "yolov8"], "yolov8"),
        (["info", "--network", "mine:network"], "--network belongs to --model"),
        (["info", "--model", "nothing.safetensors"], "nothing.safetensors: no such file"),
        (["benchmark", "--model", "{export}", "--rounds", "0"], "--rounds"),
        (["import-weights", "nothing.pt", "--variant", "yolov7", "-o", "x.safetensors"], "nothing.pt"),
        (["fly"], "invalid choice: 'fly'"),
        ([], "required: COMMAND"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(capsys, exported, images, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("yolov7.predict.load.entry_points", lambda **_: [])
    filled = [argument.format(export=exported, images=images) for argument in arguments]
    try:
        code = cli.main(filled)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    assert message in one_line(captured.err)
    assert not (tmp_path / "detections").exists() and not (tmp_path / "x.safetensors").exists()


def test_an_interrupt_keeps_what_is_done(capsys, exported, images, tmp_path, monkeypatch):
    from yolov7.predict.predictor import Predictor

    predict, calls = Predictor.predict, []

    def interrupted(self, batch):
        calls.append(len(batch))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return predict(self, batch)

    monkeypatch.setattr(Predictor, "predict", interrupted)
    code, _, err = run(capsys, "predict", images, "--model", exported, "-o", tmp_path / "out", "--batch-size", "1")
    assert (code, err) == (130, "stopped\n")
    document = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [image["file_name"] for image in document["images"]] == ["0.png"]
    assert (tmp_path / "out" / "0.png").is_file()


def test_a_termination_keeps_what_is_done(capsys, exported, images, tmp_path, monkeypatch):
    from yolov7.predict.predictor import Predictor

    predict, calls = Predictor.predict, []

    def terminated(self, batch):
        calls.append(len(batch))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return predict(self, batch)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Predictor, "predict", terminated)
    out = ("-o", tmp_path / "out", "--also", "csv")
    code, _, err = run(capsys, "predict", images, "--model", exported, *out, "--batch-size", "1")
    assert (code, err) == (143, "stopped\n")
    document = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [image["file_name"] for image in document["images"]] == ["0.png"]
    assert (tmp_path / "out" / "detections.csv").is_file()
    assert not (tmp_path / "out" / "detections.partial.jsonl").exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_killed_job_leaves_its_records_and_keeps_none_in_memory(capsys, exported, images, tmp_path, monkeypatch):
    partial, lines = tmp_path / "out" / "detections.partial.jsonl", []
    partial.parent.mkdir()
    partial.write_text("what an earlier one left, killed too")
    draw = job._draw

    def watched(path, frame, detections, names):
        lines.append(partial.read_text().splitlines())
        draw(path, frame, detections, names)

    monkeypatch.setattr(job, "_draw", watched)
    code, printed, _ = run(capsys, "predict", images, "--model", exported, "-o", tmp_path / "out", "--json")
    assert code == 0 and [len(one) for one in lines] == [1, 2, 3]
    document = json.loads(printed)
    records = [json.loads(line) for line in lines[-1]]
    assert [record["image"] for record in records] == document["images"]
    assert [found for record in records for found in record["annotations"]] == document["annotations"]
    assert [found["id"] for found in document["annotations"]] == list(range(1, len(document["annotations"]) + 1))
    assert not partial.exists()
    assert set(vars(job.Job())) == {"images", "detections", "errors", "notes"} and job.Job().images == 0


def test_an_original_is_never_overwritten(capsys, exported, images, monkeypatch):
    monkeypatch.chdir(images)
    (images / "link.png").symlink_to("0.png")
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    for source, out in (("0.png", "."), (".", "."), ("*.png", images), ("link.png", images), ("../images", ".")):
        code, _, err = run(capsys, "predict", source, "--model", exported, "-o", out)
        assert code == 2 and "would overwrite this original" in one_line(err)
    assert {path.name: path.read_bytes() for path in images.iterdir()} == before


def test_images_whose_names_differ_in_the_suffix_alone_get_files_of_their_own(capsys, exported, images, tmp_path):
    for name in ("a.jpg", "a.png", "a.png.jpg", "b.bmp", "b.bmp.jpg"):
        cv2.imwrite(str(images / name), pictures(1)[0])
    code, _, _ = run(capsys, "predict", images, "--model", exported, "-o", tmp_path / "out", "--also", "yolo")
    assert code == 0
    labels = sorted(path.name for path in (tmp_path / "out" / "labels").iterdir())
    assert labels == ["0.txt", "1.txt", "2.txt", "a.jpg.txt", "a.png.jpg.txt", "a.png.txt", "b.bmp.jpg.txt", "b.txt"]
    drawn = {path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".jpg"}
    assert drawn == {"a.jpg", "a.png.jpg", "b.bmp.jpg", "b.bmp.jpg.jpg"}


def test_an_image_too_wide_to_be_drawn_is_drawn_smaller(capsys, exported, images, tmp_path, monkeypatch):
    monkeypatch.setattr("yolov7.predict.draw.LONGEST", 1000)
    cv2.imwrite(str(images / "0wide.jpg"), cv2.resize(pictures(1)[0], (1200, 40)))
    code, _, err = run(capsys, "predict", images, "--model", exported, "-o", tmp_path / "out")
    assert code == 0 and err.startswith("warning: 0wide.jpg: 1200 x 40 pixels") and err.count("\n") == 1
    document = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [image["file_name"] for image in document["images"]] == ["0.png", "0wide.jpg", "1.png", "2.png"]
    assert document["images"][1]["width"] == 1200
    assert cv2.imread(str(tmp_path / "out" / "0wide.jpg")).shape == (33, 1000, 3)


@pytest.fixture(params=["", "_yolov6"])
def made(request):
    """Export folder and trained model of a family."""
    return tuple(request.getfixturevalue(f"{kind}{request.param}") for kind in ("exported", "trained"))


def test_benchmark_as_table_and_json(capsys, made, images):
    exported, trained = made
    common = ("benchmark", "--model", exported, "--rounds", "4", "--warmup", "1")
    code, out, _ = run(capsys, *common, "--batch-size", "2", "--json", "--source", images)
    result = json.loads(out)
    assert code == 0
    assert (result["variant"], result["runtime"]) == (trained.variant, "OnnxRuntime")
    assert (result["batch_size"], result["image_size"]) == (2, [96, 96])
    parts = {timing["part"]: timing for timing in result["timings"]}
    assert list(parts) == ["preprocessing", "network", "suppression", "total"]
    assert all(0 < timing["low"] <= timing["median"] <= timing["high"] for timing in parts.values())
    assert result["images_per_second"] == pytest.approx(2000 / parts["total"]["median"])
    assert result["detections"] > 0
    code, out, _ = run(capsys, "benchmark", "--model", exported / "model-nms.onnx", "--rounds", "2", "--warmup", "0")
    assert code == 0 and "mapping back" in out and "images/s" in out


def test_benchmark_compares_every_file_with_the_training_form(capsys, made, images, monkeypatch):
    exported, trained = made
    common = ("benchmark", "--model", exported, "--compare", "--rounds", "2", "--warmup", "1", "--source", images)
    code, _, err = run(capsys, *common)
    assert code == 2 and "small" in one_line(err)  # a network of the user's own has no such reference
    monkeypatch.setattr("yolov7.predict.benchmark.create_model", lambda *_: copy.deepcopy(trained))
    code, out, _ = run(capsys, *common, "--json", "--threads", "1")
    result = json.loads(out)
    assert code == 0
    files = ["onnx float32", "torch float32", "openvino float32", "openvino float16"]
    assert list(result) == ["training form", *files]
    assert result["training form"]["network_ratio"] == 1
    assert [said["precision"] for said in result.values()] == ["float32"] * 4 + ["float16"]
    assert {said["threads"] for said in result.values()} == {1}
    sizes = [said["size_mb"] for said in result.values()]
    assert sizes[:2] == [None, (exported / "model.onnx").stat().st_size / 1e6] and min(sizes[1:]) > 0
    for said in result.values():
        network = next(timing for timing in said["timings"] if timing["part"] == "network")
        assert said["network_ratio"] * network["median"] > 0 and said["rounds"] == 2
        assert said["detections"] == result["training form"]["detections"] > 0
    code, out, _ = run(capsys, *common)
    assert code == 0 and "times faster" in out and "openvino float16" in out and "2 rounds in turn" in out
    code, _, err = run(capsys, *common, "--runtime", "onnx")
    assert code == 2 and "runs every file" in one_line(err)


def test_a_network_of_ones_own_is_found_in_the_current_folder(capsys, exported, tmp_path, monkeypatch):
    """The installed command has its own folder on Python's path, not the current one."""
    (tmp_path / "networks_here_for_test.py").write_text("from small_detector import small_network as small\n")
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    monkeypatch.chdir(tmp_path)
    network = "networks_here_for_test:small"
    code, out, _ = run(capsys, "info", "--variant", network, "--json")
    assert code == 0 and json.loads(out)[0]["variant"] == "small"
    common = ("benchmark", "--model", exported, "--compare", "--rounds", "1", "--warmup", "0", "--json")
    code, out, _ = run(capsys, *common, "--network", network)
    assert code == 0 and json.loads(out)["training form"]["variant"] == "small"


def test_predict_by_openvino_finds_what_onnx_finds(capsys, exported, images, tmp_path):
    found = {}
    for name in ("onnx", "openvino"):
        code, _, _ = run(capsys, "predict", images, "--model", exported, "--runtime", name, "-o", tmp_path / name)
        assert code == 0
        found[name] = json.loads((tmp_path / name / "detections.json").read_text())["annotations"]
    assert len(found["onnx"]) == len(found["openvino"]) > 0
    for ours, theirs in zip(found["openvino"], found["onnx"], strict=True):
        assert ours["category_id"] == theirs["category_id"]
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=0.1)
    code, _, err = run(capsys, "predict", images, "--model", exported, "--precision", "int8", "-o", tmp_path / "x")
    assert code == 2 and "export.formats" in one_line(err)


def test_a_file_that_is_not_a_checkpoint_is_not_imported(capsys, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("readme", "hello")
    code, _, err = run(
        capsys, "import-weights", tmp_path / "x.pt", "--variant", "yolov7-tiny", "-o", tmp_path / "x.safetensors"
    )
    assert code == 2 and "x.pt" in one_line(err)
    assert not (tmp_path / "x.safetensors").exists()


def test_the_command_in_a_process_of_its_own(exported, images, tmp_path):
    """Cases beyond pytest's capture: noise of native libraries on stderr, a reader that goes away."""
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing")
    command = [sys.executable, "-m", "yolov7.cli"]
    done = subprocess.run(
        [*command, "predict", str(broken), "--model", str(exported), "-o", str(tmp_path / "out")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: {broken}: not readable as a video: of no known format, or damaged\n"
    assert not (tmp_path / "out").exists()
    piped = subprocess.run(
        f"{sys.executable} -m yolov7.cli info --variant yolov7-tiny --json | head -c 1; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (piped.returncode, piped.stdout, piped.stderr) == (0, "[", "")
