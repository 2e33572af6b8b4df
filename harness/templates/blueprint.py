"""The subgraph that ComfyUI offers as a node of its own."""

from __future__ import annotations

from typing import Any

from .build import Node, Template, uuid_of
from .layout import Info


def safe_prompt(info: Info) -> dict[str, Any]:
    """The subgraph "Safe prompt", which replaces a CLIPTextEncode: load, align, encode and apply in one node."""
    graph = Template("")
    load = graph.add("SafetyDirectionLoad", 0, direction="smollm2-135m-instruct")
    align = graph.add("SafetyDirectionAlign", 0, direction=load[0])
    encode = graph.add("CLIPTextEncode", 1)
    apply = graph.add("SafetyDirectionApply", 2, conditioning=encode[0], aligned=align[0])
    flat = graph.workflow(info, "Safe prompt")
    nodes = [node for node in flat["nodes"] if node["type"] != "MarkdownNote"]
    links = [
        dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link))
        for link in flat["links"]
    ]
    by_id = {node["id"]: node for node in nodes}
    inputs: list[dict[str, Any]] = []

    def offer(name: str, *targets: tuple[Node, str]) -> None:
        own = {"id": uuid_of(name), "name": name, "linkIds": [], "pos": [-200, 20 * len(inputs)]}
        for target, key in targets:
            slot, socket = next((i, one) for i, one in enumerate(by_id[target.id]["inputs"]) if one["name"] == key)
            links.append(
                {
                    "id": len(links) + 1,
                    "origin_id": -10,
                    "origin_slot": len(inputs),
                    "target_id": target.id,
                    "target_slot": slot,
                    "type": socket["type"],
                }
            )
            socket["link"] = len(links)
            own["type"] = socket["type"]
            own["linkIds"].append(len(links))
        inputs.append(own)

    offer("clip", (encode, "clip"), (align, "clip"))
    offer("text", (encode, "text"))
    offer("direction", (load, "direction"))
    for name in ("mode", "alpha", "budget", "categories"):
        offer(name, (apply, name))
    links.append(
        {
            "id": len(links) + 1,
            "origin_id": apply.id,
            "origin_slot": 0,
            "target_id": -20,
            "target_slot": 0,
            "type": "CONDITIONING",
        }
    )
    by_id[apply.id]["outputs"][0]["links"].append(len(links))
    output = {
        "id": uuid_of("output"),
        "name": "CONDITIONING",
        "type": "CONDITIONING",
        "linkIds": [len(links)],
        "pos": [1300, 20],
    }
    inner = {
        "id": uuid_of("Safe prompt"),
        "version": 1,
        "revision": 0,
        "config": {},
        "name": "Safe prompt",
        "state": {"lastGroupId": 0, "lastNodeId": len(nodes), "lastLinkId": len(links), "lastRerouteId": 0},
        "inputNode": {"id": -10, "bounding": [-220, -20, 120, 200]},
        "outputNode": {"id": -20, "bounding": [1280, -20, 120, 60]},
        "inputs": inputs,
        "outputs": [output],
        "widgets": [],
        "nodes": nodes,
        "groups": [],
        "links": links,
        "extra": {},
        "category": "conditioning/safety",
        "description": "Encodes a prompt and steers it to the safe side: in place of a CLIP Text Encode.",
    }
    widgets = [one for one in inputs if one["type"] != "CLIP"]
    owners = {"text": encode, "direction": load}
    outer = {
        "id": 1,
        "type": inner["id"],
        "pos": [0, 0],
        "size": [400, 320],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [
            {
                "name": one["name"],
                "type": one["type"],
                "link": None,
                **({"widget": {"name": one["name"]}} if one in widgets else {}),
            }
            for one in inputs
        ],
        "outputs": [{"name": "CONDITIONING", "type": "CONDITIONING", "links": []}],
        "title": "Safe prompt",
        "widgets_values": [],
        "properties": {"proxyWidgets": [[str(owners.get(one["name"], apply).id), one["name"]] for one in widgets]},
    }
    return {
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [outer],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [inner]},
        "extra": {},
    }
