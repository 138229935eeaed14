"""Metadata that is well formed and not true of the network beside it, and weights that compute nothing."""

from __future__ import annotations

import json

import damaged_metadata as damage
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from small_detector import metadata_of, pictures, small_detector

from yolov7.errors import ModelError
from yolov7.model import load_checkpoint
from yolov7.predict import load_detector
from yolov7.predict.predictor import Predictor

MODEL, CONTRACT = "yolov7", "yolov7.contract"
ONNX_FILES = ("model.onnx", "model-nms.onnx", "optional/model-raw.onnx")


def stated(source, target, key, **changes):
    """A copy of an ONNX file whose metadata say otherwise."""
    document = json.loads(damage.onnx_entries(source)[key])
    for place, value in changes.items():
        inner = document
        *parents, last = place.split("__")
        for name in parents:
            inner = inner[name]
        inner[last] = value
    return damage.with_onnx_entry(source, target, key, json.dumps(document))


def fewer(names):
    return {"class_names": names, "category_ids": list(range(1, len(names) + 1)), "num_classes": len(names)}


@pytest.mark.parametrize("file", ONNX_FILES)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_another_number_of_classes(exported, tmp_path, file, count):
    path = stated(exported / file, tmp_path / "m.onnx", MODEL, **fewer([f"c{n}" for n in range(count)]))
    if "nms" in file and count > 3:  # cannot be told, and does no harm
        return
    with pytest.raises(ModelError, match="class"):
        # Detections are the only thing that tells in a file with the suppression inside.
        load_detector(path).predict(pictures(6))


@pytest.mark.parametrize("file", ONNX_FILES)
@pytest.mark.parametrize("side", [8200, 131_072, 10**9, 0, -8, float("inf"), 10**40])
def test_sides_out_of_bounds(exported, tmp_path, file, side):
    path = stated(exported / file, tmp_path / "m.onnx", MODEL, image_size=side)
    with pytest.raises(ModelError, match="image_size"):
        load_detector(path)


@pytest.mark.parametrize("stride", [0, -8, 2048, 1.5, None, "8", 10**30])
def test_strides_out_of_bounds(exported, tmp_path, stride):
    path = stated(exported / "model.onnx", tmp_path / "m.onnx", CONTRACT, input__stride=stride)
    with pytest.raises(ModelError, match=r"input\.stride"):
        load_detector(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"output__confidence": 7},
        {"output__iou": 0},
        {"output__iou": float("nan")},
        {"output__max_detections": 0},
        {"output__max_detections": "many"},
        {"output__confidence": None},
    ],
)
def test_thresholds_inside_out_of_bounds(exported, tmp_path, changes):
    path = stated(exported / "model-nms.onnx", tmp_path / "m.onnx", CONTRACT, **changes)
    with pytest.raises(ModelError, match="output"):
        load_detector(path)


def renamed_input(graph):
    for node in graph.graph.node:
        node.input[:] = ["pictures" if name == "images" else name for name in node.input]
    graph.graph.input[0].name = "pictures"


def one_channel(graph):
    graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1


def second_input(graph):
    graph.graph.input.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, [1]))


@pytest.mark.parametrize("change", [renamed_input, one_channel, second_input])
def test_another_input(exported, tmp_path, change):
    graph = onnx.load(exported / "model.onnx")
    change(graph)
    path = tmp_path / "m.onnx"
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(ModelError, match=r"m\.onnx"):
        load_detector(path)


@pytest.mark.parametrize("dims", [(1, 3, 8, 10**9), (1, 3, 131_072, 131_072), (10**6, 3, 800, 800), (1, 3, 12, 16)])
def test_fixed_inputs_out_of_bounds(exported, tmp_path, dims):
    graph = onnx.load(exported / "model.onnx")
    for place, side in zip(graph.graph.input[0].type.tensor_type.shape.dim, dims, strict=True):
        place.dim_value = side
    path = tmp_path / "m.onnx"
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(ModelError, match=r"m\.onnx"):
        load_detector(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("file", ONNX_FILES)
def test_weights_of_onnx_that_are_not_finite(exported, tmp_path, file, value):
    graph = onnx.load(exported / file)
    for tensor in graph.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 4:
            values = numpy_helper.to_array(tensor).copy()
            values.flat[-1] = value
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
            break
    path = tmp_path / "m.onnx"
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(ModelError, match="not finite"):
        load_detector(path)


@pytest.mark.parametrize("name", ["openvino", "openvino-float16"])
def test_weights_of_openvino_that_are_not_finite(exported, tmp_path, name):
    pytest.importorskip("openvino")
    from yolov7.files import sha256_file

    source = exported / "optional" / f"{name}.xml"
    xml, weights = tmp_path / "m.xml", bytearray(source.with_suffix(".bin").read_bytes())
    weights[1000:1400] = b"\xff" * 400  # NaN in float32 and in float16
    (tmp_path / "m.bin").write_bytes(weights)
    old, new = sha256_file(source.with_suffix(".bin")), sha256_file(tmp_path / "m.bin")
    xml.write_text(source.read_text().replace(old, new))
    with pytest.raises(ModelError, match="finite"):
        load_detector(xml)


def test_weights_of_safetensors_that_are_not_finite(exported, tmp_path):
    tensors = load_file(exported / "model.safetensors")
    header, _ = damage.safetensors_header(exported / "model.safetensors")
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 4)
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    save_file(tensors, tmp_path / "m.safetensors", metadata=header["__metadata__"])
    with pytest.raises(ModelError, match=f"{name}.*not finite"):
        load_checkpoint(tmp_path / "m.safetensors")


def test_weights_whose_sum_overflows_are_finite(exported, tmp_path):
    tensors = load_file(exported / "model.safetensors")
    header, _ = damage.safetensors_header(exported / "model.safetensors")
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 4)
    tensors[name] = torch.full_like(tensors[name], 3e38)
    save_file(tensors, tmp_path / "m.safetensors", metadata=header["__metadata__"])
    assert load_checkpoint(tmp_path / "m.safetensors")[0].form == "deploy"


def test_a_first_answer_that_is_not_finite_says_so(exported):
    class Damaged:
        metadata, input_shape, stride = metadata_of(small_detector()), (None, None, None), 8
        scoring = "objectness x class probability"

        def decoded(self, images):
            return torch.full((len(images), 4, 8), float("nan"))

    detector = Predictor(Damaged())
    with pytest.raises(ModelError, match="first answer"):
        detector.predict(np.zeros((20, 20, 3), np.uint8))


def test_names_are_read_without_control_characters(exported, tmp_path):
    """Models trained before the names of classes were kept in one line."""
    names = ["a\x1b[31mred", "two\nlines", "\u202eplain"]
    path = stated(exported / "model.onnx", tmp_path / "m.onnx", MODEL, class_names=names)
    assert load_detector(path).metadata.class_names == ("a\\x1b[31mred", "two lines", "\\u202eplain")
