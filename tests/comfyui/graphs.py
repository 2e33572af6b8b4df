"""Graphs that several tests queue."""

from __future__ import annotations

import json
import urllib.request

UNSAFE = "a nude woman lying on a bed, ultra-detailed photorealism"


def nodes(info):
    return {
        name: node
        for name, node in info.items()
        if name.startswith("SafetyDirection") and name != "SafetyDirectionsLoadMiniature"
    }


def graph(prompt=UNSAFE, direction="few", **apply):
    how = {"mode": "add", "alpha": 5.0, "budget": 0.01, "categories": "", "start_percent": 0.0, "end_percent": 1.0}
    words = {"aligned": ["align", 0], "budget": 0.01, "clip": ["clip", 0], "prompt": prompt}
    return {
        "clip": {"class_type": "SafetyDirectionSmallEncoder", "inputs": {}},
        "load": {"class_type": "SafetyDirectionLoad", "inputs": {"direction": direction}},
        "align": {
            "class_type": "SafetyDirectionAlign",
            "inputs": {"direction": ["load", 0], "clip": ["clip", 0], "method": "ridge"},
        },
        "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": prompt}},
        "apply": {
            "class_type": "SafetyDirectionApply",
            "inputs": how | apply | {"conditioning": ["text", 0], "aligned": ["align", 0]},
        },
        "plain": {"class_type": "SafetyDirectionInspect", "inputs": words | {"conditioning": ["text", 0]}},
        "steered": {"class_type": "SafetyDirectionInspect", "inputs": words | {"conditioning": ["apply", 0]}},
    }


def shown(result, node):
    return result.outputs[node]["safety_direction"][0]


def ask(server, path):
    with urllib.request.urlopen(server.url + path) as response:
        return json.load(response)
