"""Records of int8 files: those of this revision, those of earlier ones, and damaged ones."""

from __future__ import annotations

import json
import shutil

import pytest

from yolov7.errors import ModelError
from yolov7.int8_files import int8_files, makings, read_makings, runtime_of, size_mb

EARLIER = {
    "file": "model-int8.onnx", "layers": 6, "kept_in_float": ["node_7"], "float_ap": 0.503, "ap": 0.5,
    "steps": [{"in_float": 0, "AP": 0.4}, {"in_float": 1, "AP": 0.5}],
    "sensitivity": {"node_3": 0.01, "node_7": 0.2}, "calibration_images": 64, "validation_images": 100,
}  # fmt: skip
ROWS = [
    {"layer": "neck.U2.conv", "node": "node_7", "kind": "Conv", "channels": 8, "mse": 0.2, "snr": 20.0, "ap": None},
    {"layer": "backbone.stem.conv", "node": "node_3", "kind": "Conv", "channels": 4, "mse": 0.1, "snr": 30.0},
]


def test_a_record_of_an_earlier_revision():
    (making,) = makings({"onnx-int8": EARLIER}).values()
    assert making.how == "post-training, ranges on 64 training images"
    assert making.kept == "1 of 6: node_7" and making.attempts == "0 in float: AP 0.4000; 1 in float: AP 0.5000"
    assert [row["layer"] for row in making.sensitivity] == ["node_7", "node_3"], "the worst first"
    assert not making.trained and making.metric == "shift"


def test_layers_have_their_names_in_the_network_where_these_are_known():
    more = {"layer_sensitivity": ROWS, "method": "entropy", "pictures": "mosaic", "share_ranges": True, "metric": "mse"}
    (making,) = makings({"onnx-int8": {**EARLIER, **more}}).values()
    assert making.kept == "1 of 6: neck.U2.conv"
    assert making.how == (
        "post-training, ranges by entropy on 64 training images (mosaic), shared where values are joined"
    )
    assert making.sensitivity == tuple(ROWS) and making.metric == "mse"
    (making,) = makings({"onnx-int8": {**EARLIER, "method": "mse", "rounding": "compensated"}}).values()
    assert making.how == "post-training, ranges by mse on 64 training images, weights by compensated rounding"
    (trained,) = makings({"onnx-int8": {**EARLIER, "trained": True, "method": "mse"}}).values()
    assert trained.how == "quantisation-aware training; other ranges by mse on 64 training images"


def test_a_record_without_the_name_of_its_file_is_of_its_format():
    report = {key: value for key, value in EARLIER.items() if key != "file"}
    assert list(makings({"openvino-int8": report, "of-another-revision": report})) == [
        "openvino-int8.xml",
        "of-another-revision",
    ]


@pytest.mark.parametrize(
    "text",
    ["[]", "{", '{"int8": []}', '{"int8": {"onnx-int8": {}}}', '{"int8": {"onnx-int8": 3}}',
     '{"int8": {"onnx-int8": {"layers": "many", "kept_in_float": []}}}'],
)  # fmt: skip
def test_a_damaged_record_is_named_in_one_line(tmp_path, text):
    (tmp_path / "optional").mkdir()
    (tmp_path / "optional/formats.json").write_text(text)
    with pytest.raises(ModelError, match=r"formats\.json: not a record of an export's formats") as error:
        read_makings(tmp_path)
    assert "\n" not in str(error.value)


def test_the_manifest_says_which_files_there_are(exported, tmp_path):
    assert int8_files(exported) == [] and read_makings(exported) == {}
    assert int8_files(tmp_path) == [] and read_makings(tmp_path) == {}, "no export folder"
    folder = shutil.copytree(exported, tmp_path / "export")
    description = json.loads((folder / "model.json").read_text())
    entry = {"sha256": "0" * 64, "bytes": 3}
    description["files"] |= {"optional/openvino-int8.xml": entry, "optional/model-int8.onnx": entry}
    (folder / "model.json").write_text(json.dumps(description))
    assert int8_files(folder) == ["optional/model-int8.onnx", "optional/openvino-int8.xml"]
    (folder / "model.json").write_text("{")
    with pytest.raises(ModelError, match=r"model\.json: not readable as JSON"):
        int8_files(folder)


def test_sizes_and_runtimes(exported):
    parts = [exported / "optional/openvino.xml", exported / "optional/openvino.bin"]
    assert size_mb(parts[0]) == sum(part.stat().st_size for part in parts) / 1e6
    assert size_mb(exported / "model.onnx") == (exported / "model.onnx").stat().st_size / 1e6
    assert [runtime_of(name) for name in ("model-int8.onnx", "a.xml", "model-int8-tensorrt.onnx", "b")] == [
        "ONNX Runtime",
        "OpenVINO",
        "ONNX Runtime (for TensorRT)",
        "",
    ]
