"""A graph written down operator by operator, for tests of the quantisation."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 8


class GraphMaker:
    """A graph written down operator by operator; values are numbered."""

    def __init__(self):
        self.nodes, self.constants = [], []
        self.generator = np.random.default_rng(0)

    def constant(self, values):
        self.constants.append(numpy_helper.from_array(np.asarray(values), f"c{len(self.constants)}"))
        return self.constants[-1].name

    def add(self, kind, *inputs, outputs=1, **attributes):
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, f"{kind}{len(self.nodes)}", **attributes))
        return names[0] if outputs == 1 else names

    def conv(self, value, channels=CHANNELS, inputs=CHANNELS, kind="Conv", **attributes):
        size = 2 if kind == "ConvTranspose" else 3
        shape = (inputs, channels, size, size) if kind == "ConvTranspose" else (channels, inputs, size, size)
        weight = self.generator.normal(0, (2 / (inputs * size * size)) ** 0.5, shape).astype(np.float32)
        bias = self.generator.normal(0, 0.1, channels).astype(np.float32)
        padding = {} if kind == "ConvTranspose" else {"pads": [1, 1, 1, 1]}
        return self.add(kind, value, self.constant(weight), self.constant(bias), **{**padding, **attributes})

    def model(self, output):
        graph = helper.make_graph(
            self.nodes,
            "small",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * 4)],
            self.constants,
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.checker.check_model(made, full_check=True)
        return made
