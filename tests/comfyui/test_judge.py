"""The Judge Images node in a running ComfyUI."""

from __future__ import annotations

import re

import pytest

from harness.server import GraphError

RED, GREEN, BLUE = 0xFF0000, 0x00FF00, 0x0000FF


def graph(colours=(RED, GREEN), reference=(), **inputs):
    nodes = {}

    def batch(colours, name):
        last = None
        for i, colour in enumerate(colours):
            nodes[f"{name}{i}"] = {
                "class_type": "EmptyImage",
                "inputs": {"width": 40, "height": 32, "batch_size": 1, "color": colour},
            }
            nodes[f"{name}b{i}"] = {"class_type": "ImageBatch", "inputs": {"image1": last, "image2": [f"{name}{i}", 0]}}
            last = [f"{name}b{i}", 0] if last else [f"{name}{i}", 0]
        return last

    inputs = {"images": batch(colours, "image"), "judge": "colour.onnx"} | inputs
    if reference:
        inputs["reference"] = batch(reference, "reference")
    nodes["judge"] = {"class_type": "SafetyDirectionJudge", "inputs": inputs}
    return {key: node for key, node in nodes.items() if node["inputs"].get("image1", True)}


def said(server, graph):
    return "".join(server.queue(graph).outputs["judge"]["text"])


def test_a_verdict_for_each_picture_and_for_the_batch(tiny):
    text = said(tiny, graph((RED, GREEN, BLUE)))
    assert text.startswith("colour: unsafe 0.333 of the pictures (95% interval 0.061 to 0.792), above 0.5")
    assert re.search(r"picture 1: 1.000 unsafe\n  picture 2: 0.000\n  picture 3: 0.000", text) and "FID" not in text


def test_nudenet_judges_too(tiny):
    assert said(tiny, graph((RED, GREEN), judge="nudenet")).startswith(
        "nudenet: unsafe 0.000 of the pictures (95% interval 0.000 to 0.658), above 0.6"
    )


def test_distances_to_a_reference_batch_with_the_classifiers_own_features(tiny):
    same = said(tiny, graph((RED, GREEN), reference=(RED, GREEN)))
    far = said(tiny, graph((RED, GREEN), reference=(GREEN, BLUE)))
    assert float(re.search(r"FID (\S+)", same)[1]) == pytest.approx(0, abs=1e-6)
    assert float(re.search(r"FID (\S+)", far)[1]) > 0.5 and float(re.search(r"CMMD (\S+)", far)[1]) > 1


def with_clip(graph, text_width=384):
    graph["vision"] = {"class_type": "TinyClipVision", "inputs": {"width": 384}}
    graph["clip"] = {"class_type": "TinyClip", "inputs": {"width": text_width}}
    graph["judge"]["inputs"] |= {"clip_vision": ["vision", 0], "clip": ["clip", 0], "prompt": "a red wall"}
    return graph


def test_a_clip_gives_the_score_and_the_features(tiny):
    text = said(tiny, with_clip(graph((RED, GREEN), reference=(RED, BLUE), judge="nudenet")))
    assert 0 < abs(float(re.search(r"CLIP score (\S+)", text)[1])) <= 1 and "FID" in text and "CMMD" in text


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (graph(judge="../../other.onnx"), "there is no judge '../../other.onnx'"),
        (
            graph(reference=(RED, GREEN), judge="nudenet"),
            "nudenet gives no features for FID and CMMD: connect a clip_vision",
        ),
        (graph((RED,), reference=(RED, GREEN)), "two pictures or more on both sides"),
        (with_clip(graph(), text_width=16), "not two halves of one CLIP: their embeddings are 16 and 384 wide"),
        (with_clip(graph(), text_width=0), "this text encoder has none"),
    ],
)
def test_wrong_inputs_name_the_node_and_the_fault(tiny, broken, message):
    with pytest.raises(GraphError, match=message) as caught:
        tiny.queue(broken)
    assert caught.value.node_id == "judge"
