"""Non-maximum suppression as standard ONNX operators, appended to a graph with decoded output.

Legend: B batch, N predictions, C classes, K detections kept of an image, n boxes that survive, m rows put out.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, compose, helper, parser

from yolov7.export.trace import rename_value
from yolov7.nms import Thresholds
from yolov7.predictions import Scoring, columns_before_classes

# Only the best class of a box competes; all others score 0 in (B, C, N). So suppression stays within a class without
# shifting boxes apart by class, which costs precision. Survivors are scattered back to (B, N), where one sort finds the
# best K of every image.
_BODY = """
<ir_version: {ir_version}, opset_import: ["": {opset}]>
suppression (float[batch, predictions, {columns}] decoded) => (float[rows, 7] detections) {{
    boxes = Slice (decoded, at_0, at_4, last_axis)
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

_BEST_OF = """
    best = ReduceMax <keepdims = 1> ({scores}, last_axis)
    label = ArgMax <axis = 2, keepdims = 1> ({scores})
    is_best = Equal (label, class_numbers)
    alone = Where (is_best, {scores}, zero)
    competing = Transpose <perm = [0, 2, 1]> (alone)
"""
_SCORES: dict[Scoring, str] = {
    "objectness x class probability": """
    objectness = Slice (decoded, at_4, at_5, last_axis)
    probabilities = Slice (decoded, at_5, at_end, last_axis)
    products = Mul (objectness, probabilities)
"""
    + _BEST_OF.format(scores="products"),
    "objectness": """
    objectness = Slice (decoded, at_4, at_5, last_axis)
    best = Identity (objectness)
    shape = Shape (objectness)
    label = ConstantOfShape <value = int64[1] {0}> (shape)
    competing = Transpose <perm = [0, 2, 1]> (objectness)
""",
    "class probability": """
    probabilities = Slice (decoded, at_4, at_end, last_axis)
"""
    + _BEST_OF.format(scores="probabilities"),
}


def append_suppression(
    graph: onnx.ModelProto, thresholds: Thresholds, *, classes: int, scoring: Scoring
) -> onnx.ModelProto:
    """`graph` with its output `detections` (B, N, F) replaced by rows (m, 7): see `yolov7.export.onnx`.

    Changes `graph`, which must not be used afterwards.
    """
    opset = next(entry.version for entry in graph.opset_import if entry.domain == "")
    text = _BODY.format(
        ir_version=graph.ir_version,
        opset=opset,
        columns=columns_before_classes(scoring) + classes,
        scores=_SCORES[scoring].strip(),
    )
    suppression = parser.parse_model(text)
    suppression.graph.initializer.extend(_constants(suppression.graph, thresholds, classes, scoring))
    rename_value(graph, "detections", "decoded_output")
    merged = compose.merge_models(
        graph, suppression, io_map=[("decoded_output", "decoded")], prefix2="nms/", producer_name=graph.producer_name
    )
    rename_value(merged, "nms/detections", "detections")
    del merged.graph.value_info[:]
    return merged


def _constants(
    suppression: onnx.GraphProto, thresholds: Thresholds, classes: int, scoring: Scoring
) -> list[TensorProto]:
    """Those that the nodes of the suppression read."""
    whole = {
        "at_0": [0],
        "at_1": [1],
        "at_4": [4],
        "at_5": [5],
        "at_end": [columns_before_classes(scoring) + classes],
        "last_axis": [2],
        "image_and_box": [0, 2],
        "max_detections": [thresholds.max_detections],
    }
    constants = [helper.make_tensor(name, TensorProto.INT64, [len(v)], v) for name, v in whole.items()]
    for name, value in (("iou", thresholds.iou), ("confidence", thresholds.confidence)):
        constants.append(helper.make_tensor(name, TensorProto.FLOAT, [1], [value]))
    constants.append(helper.make_tensor("class_numbers", TensorProto.INT64, [classes], range(classes)))
    constants.append(helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]))
    used = {name for node in suppression.node for name in node.input}
    return [constant for constant in constants if constant.name in used]
