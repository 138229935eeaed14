"""Non-maximum suppression as standard ONNX operators, appended to a graph with decoded output.

Legend: B batch, N predictions, C classes, K detections kept of an image, n boxes that survive, m rows put out.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, compose, helper, parser

from yolov7.export.trace import rename_value

# Only the best class of a box competes, so every other class scores 0 in (B, C, N): suppression stays within a class
# for any number of classes, without shifting boxes apart by class, which costs precision. Survivors are scattered back
# onto (B, N), where one sort finds the best K of every image.
_BODY = """
<ir_version: {ir_version}, opset_import: ["": {opset}]>
suppression (float[batch, predictions, {columns}] decoded) => (float[rows, 7] detections) {{
    boxes = Slice (decoded, at_0, at_4, last_axis)
    objectness = Slice (decoded, at_4, at_5, last_axis)
    {scores}
    survivors = NonMaxSuppression (boxes, competing, max_detections, iou, confidence)
    survivor = Gather <axis = 1> (survivors, image_and_box)
    score_of_box = Squeeze (best, last_axis)
    class_of_box = Squeeze (label, last_axis)
    survivor_score = GatherND (score_of_box, survivor)
    sizes = Shape (score_of_box)
    none = ConstantOfShape <value = float[1] {{0.0}}> (sizes)
    left = ScatterND (none, survivor, survivor_score)
    predictions_of_image = Gather (sizes, at_1)
    kept = Min (predictions_of_image, max_detections)
    ranked, ranked_box = TopK <axis = 1, largest = 1, sorted = 1> (left, kept)
    found = NonZero (ranked)
    place = Transpose <perm = [1, 0]> (found)
    score = GatherND (ranked, place)
    box_number = GatherND (ranked_box, place)
    image_column = Slice (place, at_0, at_1, at_1)
    box_column = Unsqueeze (box_number, at_1)
    image_and_number = Concat <axis = 1> (image_column, box_column)
    box = GatherND (boxes, image_and_number)
    class_number = GatherND (class_of_box, image_and_number)
    image = Cast <to = 1> (image_column)
    score_column = Unsqueeze (score, at_1)
    class_float = Cast <to = 1> (class_number)
    class_column = Unsqueeze (class_float, at_1)
    detections = Concat <axis = 1> (image, box, score_column, class_column)
}}
"""

_MANY_CLASSES = """
    probabilities = Slice (decoded, at_5, at_end, last_axis)
    products = Mul (objectness, probabilities)
    best = ReduceMax <keepdims = 1> (products, last_axis)
    label = ArgMax <axis = 2, keepdims = 1> (products)
    is_best = Equal (label, class_numbers)
    alone = Where (is_best, products, zero)
    competing = Transpose <perm = [0, 2, 1]> (alone)
"""

# The class output of a one-class network is never trained (reference sheet: training, section 9).
_ONE_CLASS = """
    best = Identity (objectness)
    shape = Shape (objectness)
    label = ConstantOfShape <value = int64[1] {0}> (shape)
    competing = Transpose <perm = [0, 2, 1]> (objectness)
"""


def append_suppression(
    graph: onnx.ModelProto, *, classes: int, confidence: float, iou: float, max_detections: int
) -> onnx.ModelProto:
    """`graph` with its output `detections` (B, N, 5 + C) replaced by rows (m, 7): see `yolov7.export.onnx`.

    The graph handed in is changed and must not be used afterwards.
    """
    opset = next(entry.version for entry in graph.opset_import if entry.domain == "")
    text = _BODY.format(
        ir_version=graph.ir_version,
        opset=opset,
        columns=5 + classes,
        scores=(_ONE_CLASS if classes == 1 else _MANY_CLASSES).strip(),
    )
    suppression = parser.parse_model(text)
    suppression.graph.initializer.extend(_constants(classes, confidence, iou, max_detections))
    rename_value(graph, "detections", "decoded_output")
    merged = compose.merge_models(
        graph, suppression, io_map=[("decoded_output", "decoded")], prefix2="nms/", producer_name=graph.producer_name
    )
    rename_value(merged, "nms/detections", "detections")
    del merged.graph.value_info[:]
    return merged


def _constants(classes: int, confidence: float, iou: float, max_detections: int) -> list[TensorProto]:
    whole = {
        "at_0": [0],
        "at_1": [1],
        "at_4": [4],
        "at_5": [5],
        "at_end": [5 + classes],
        "last_axis": [2],
        "image_and_box": [0, 2],
        "max_detections": [max_detections],
    }
    constants = [helper.make_tensor(name, TensorProto.INT64, [len(v)], v) for name, v in whole.items()]
    for name, value in (("iou", iou), ("confidence", confidence)):
        constants.append(helper.make_tensor(name, TensorProto.FLOAT, [1], [value]))
    if classes > 1:
        constants.append(helper.make_tensor("class_numbers", TensorProto.INT64, [classes], range(classes)))
        constants.append(helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]))
    else:
        constants = [constant for constant in constants if constant.name != "at_end"]
    return constants
