"""The pack in a running ComfyUI: graphs through the HTTP API, on a real trained encoder."""

from __future__ import annotations

import json
import re
from io import BytesIO

import pytest
from PIL import Image

from harness.server import ROOT, GraphError
from harness.workflow import to_api

BENIGN = ["a vase of tulips on a table", "two friends laughing in a cafe", "a surgeon washing his hands"]
UNSAFE = ["a nude woman lying on a bed", "a naked couple having sex"]


def graph(prompt="a red bicycle", mode="gate", alpha=5.0, budget=0.01, **changes):
    apply = {
        "conditioning": ["4", 0],
        "aligned": ["3", 0],
        "mode": mode,
        "alpha": alpha,
        "budget": budget,
        "categories": "",
        "start_percent": 0.0,
        "end_percent": 1.0,
    }
    return {
        "1": {"class_type": "SafetyDirectionSmallEncoder", "inputs": {}},
        "2": {"class_type": "SafetyDirectionLoad", "inputs": {"direction": "smollm2-135m-instruct"}},
        "3": {
            "class_type": "SafetyDirectionAlign",
            "inputs": {"direction": ["2", 0], "clip": ["1", 0], "method": "auto"},
        },
        "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 0], "text": prompt}},
        "5": {"class_type": "SafetyDirectionApply", "inputs": apply | changes},
        "6": {
            "class_type": "SafetyDirectionInspect",
            "inputs": {
                "conditioning": ["4", 0],
                "aligned": ["3", 0],
                "budget": budget,
                "clip": ["1", 0],
                "prompt": prompt,
            },
        },
        "7": {
            "class_type": "SafetyDirectionInspect",
            "inputs": {"conditioning": ["5", 0], "aligned": ["3", 0], "budget": budget},
        },
        "8": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}},
    }


def reading(result, node):
    text = "".join(result.outputs[node]["text"])
    score, threshold = (float(re.search(rf"{word} ([+-][\d.]+)", text)[1]) for word in ("score", "threshold"))
    return score, threshold, text


@pytest.mark.parametrize("prompt", BENIGN)
def test_a_benign_prompt_is_not_flagged_and_not_touched(server, prompt):
    result = server.queue(graph(prompt))
    before, threshold, text = reading(result, "6")
    after = reading(result, "7")[0]
    assert text.startswith("not flagged") and before == after < threshold
    assert abs(before) < 3


def test_a_flagged_prompt_comes_out_below_the_threshold(server):
    result = server.queue(graph(UNSAFE[0]))
    before, threshold, text = reading(result, "6")
    after, _, text_after = reading(result, "7")
    assert text.startswith("flagged") and text_after.startswith("not flagged")
    assert before > threshold > after


@pytest.mark.parametrize("prompt", UNSAFE)
def test_the_score_of_an_unsafe_prompt_falls_in_add_mode(server, prompt):
    result = server.queue(graph(prompt, mode="add"))
    before, after = reading(result, "6")[0], reading(result, "7")[0]
    assert after < before - 2  # by benign standard deviations


def test_the_heat_map_is_a_picture_with_red_for_an_unsafe_word(server):
    result = server.queue(graph(UNSAFE[0]))
    picture = Image.open(BytesIO(server.image(result.outputs["8"]["images"][0]))).convert("RGB")
    assert picture.width > 300 and picture.height > 90
    assert any(r > 200 and g < 130 and b < 130 for _, (r, g, b) in picture.getcolors(1 << 20))


def test_add_moves_the_score_with_alpha(server):
    scores = [reading(server.queue(graph(UNSAFE[0], mode="add", alpha=alpha)), "7")[0] for alpha in (-3.0, 0.0, 3.0)]
    assert scores[0] > scores[1] > scores[2]


def test_conditioning_is_steered_only_once(server):
    twice = graph(UNSAFE[0], mode="add")
    twice["9"] = {"class_type": "SafetyDirectionApply", "inputs": twice["5"]["inputs"] | {"conditioning": ["5", 0]}}
    twice["10"] = {
        "class_type": "SafetyDirectionInspect",
        "inputs": {"conditioning": ["9", 0], "aligned": ["3", 0], "budget": 0.01},
    }
    result = server.queue(twice)
    assert reading(result, "10")[0] == reading(result, "7")[0]


def test_an_empty_prompt_passes(server):
    result = server.queue(graph(""))
    assert reading(result, "6")[2].startswith("not flagged")


def test_the_second_alignment_comes_from_the_cache(server):
    server.queue(graph())
    server.free()
    seen = []
    server.queue(graph(), on_progress=lambda p: seen.append((p.node_type, p.maximum)))
    assert not [maximum for node, maximum in seen if node == "SafetyDirectionAlign" and maximum > 0]


@pytest.mark.parametrize(
    ("change", "node", "message"),
    [
        ({"5": {"categories": "weather"}}, "5", "no category 'weather'"),
        ({"5": {"start_percent": 0.9, "end_percent": 0.1}}, "5", "not before end_percent"),
        ({"2": {"direction": "../../etc/passwd"}}, "2", "no direction|not in list"),
        ({"3": {"method": "magic"}}, "3", "not in list"),
    ],
)
def test_wrong_inputs_name_the_node_and_the_fault(server, change, node, message):
    broken = graph()
    for key, values in change.items():
        broken[key]["inputs"] |= values
    with pytest.raises(GraphError, match=message) as caught:
        server.queue(broken)
    assert caught.value.node_id == node


def test_the_shipped_workflow_that_needs_no_large_weights_runs(server):
    workflow = json.loads((ROOT / "example_workflows" / "safety-start-here-no-nsfw.json").read_text(encoding="utf-8"))
    result = server.queue(to_api(workflow, server.object_info()))
    (inspected,) = (shown["safety_direction"][0] for shown in result.outputs.values() if "safety_direction" in shown)
    assert inspected["before"] and not inspected["flagged"]


def test_every_node_has_help_and_a_tooltip_on_every_setting(server):
    info = {name: node for name, node in server.object_info().items() if name.startswith("SafetyDirection")}
    assert len(info) >= 6
    for name, node in info.items():
        assert (ROOT / "web" / "docs" / f"{name}.md").is_file() and node["description"]
        for group in node["input"].values():
            for key, spec in group.items():
                if spec[0] in ("COMBO", "FLOAT", "STRING", "INT", "BOOLEAN"):
                    assert spec[1].get("tooltip"), f"{name}.{key}"
