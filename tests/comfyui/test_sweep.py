"""A sweep runs what is behind it once for each setting."""

from __future__ import annotations

from io import BytesIO

import pytest
from PIL import Image

from harness.server import GraphError
from tests.comfyui.graphs import UNSAFE, graph


def sweep(**changes):
    found = graph()
    del found["apply"], found["steered"], found["plain"]
    inputs = {
        "conditioning": ["text", 0],
        "aligned": ["align", 0],
        "alphas": "0, 3",
        "modes": "gate, add",
        "budget": 0.01,
        "categories": "",
    }
    found["sweep"] = {
        "class_type": "SafetyDirectionSweep",
        "inputs": inputs | {"clip": ["clip", 0], "prompt": UNSAFE} | changes,
    }
    return found


def test_a_sampler_behind_the_sweep_runs_once_for_each_setting(tiny):
    sampled = sweep() | {
        "model": {"class_type": "TinyImageModel", "inputs": {}},
        "latent": {
            "class_type": "EmptyChromaRadianceLatentImage",
            "inputs": {"width": 32, "height": 32, "batch_size": 1},
        },
        "sample": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["model", 0],
                "seed": 1,
                "steps": 1,
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "positive": ["sweep", 0],
                "negative": ["text", 0],
                "latent_image": ["latent", 0],
                "denoise": 1.0,
            },
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["model", 1]}},
        "grid": {
            "class_type": "SafetyDirectionGrid",
            "inputs": {"images": ["decode", 0], "label": ["sweep", 1], "columns": 0, "cell": 64},
        },
    }
    seen = []
    result = tiny.queue(sampled, on_progress=lambda p: seen.append((p.node_id, p.value, p.maximum)))
    rows = [line.split("\t") for line in "".join(result.outputs["sweep"]["text"]).splitlines()]
    scores = {name: float(score) for name, score, _ in rows}
    assert list(scores) == ["gate 0", "gate 3", "add 0", "add 3"]
    assert scores["gate 0"] == scores["add 0"] > scores["add 3"]
    assert ("sweep", 4, 4) in seen
    grid = Image.open(BytesIO(tiny.image(result.outputs["grid"]["images"][0])))
    assert grid.width == 2 * 64 + 3 * 10 and grid.height == 2 * (64 + 30) + 3 * 10  # two modes in rows of two


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alphas": "1, much"}, "'much' is not a number"),
        ({"alphas": "0, 99"}, "99 is not between -20 and 20"),
        ({"alphas": ""}, "0 strengths"),
        ({"modes": "gate, magic"}, "'magic' is not a mode; write some of gate"),
        ({"categories": "weather"}, "no category 'weather'"),
    ],
)
def test_a_sweep_says_which_setting_is_wrong(tiny, change, message):
    with pytest.raises(GraphError, match=message) as caught:
        tiny.queue(sweep(**change))
    assert caught.value.node_id == "sweep"
