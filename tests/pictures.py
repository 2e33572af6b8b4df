"""A classifier whose answers are known: it goes by a picture's mean colour."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

LABELS = {"labels": ["red", "green", "blue"], "unsafe": ["red"], "size": 32}


def colour_judge(path: Path, features: bool = True, labels: dict | None = LABELS) -> Path:
    """An ONNX classifier: the logits are 20 times the mean colour, the features the mean colour itself."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Mul", ["features", "scale"], ["logits"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3])
        for name in ["logits", *(["features"] if features else [])]
    ]
    graph = helper.make_graph(nodes, "colour", [image], outputs, [numpy_helper.from_array(np.float32(20), "scale")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    if labels is not None:
        path.with_suffix(".json").write_text(json.dumps(labels))
    return path


def plain(red: int, green: int, blue: int, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    """A picture of one colour."""
    return np.broadcast_to(np.array([red, green, blue], np.uint8), (*size, 3)).copy()
