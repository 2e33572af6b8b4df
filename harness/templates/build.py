"""Templates as ComfyUI's page saves them, made from a few lines each and a live `/object_info`."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from ..server import PACK
from .layout import GROWS, WIDTH, Info, Layout, note_size, size_of, view

HUB = "https://huggingface.co"
#: What the page offers to fetch where it is missing: {file: (place, folder)}.
MODELS = {
    "sd_xl_base_1.0.safetensors": (f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/", "checkpoints"),
    "z_image_turbo_bf16.safetensors": (
        f"{HUB}/Comfy-Org/z_image_turbo/resolve/main/split_files/diffusion_models/",
        "diffusion_models",
    ),
    "qwen_3_4b.safetensors": (
        f"{HUB}/Comfy-Org/z_image_turbo/resolve/main/split_files/text_encoders/",
        "text_encoders",
    ),
    "ae.safetensors": (f"{HUB}/Comfy-Org/z_image_turbo/resolve/main/split_files/vae/", "vae"),
    "flux1-dev.safetensors": (f"{HUB}/Comfy-Org/flux1-dev/resolve/main/", "diffusion_models"),
    "clip_l.safetensors": (f"{HUB}/comfyanonymous/flux_text_encoders/resolve/main/", "text_encoders"),
    "t5xxl_fp16.safetensors": (f"{HUB}/comfyanonymous/flux_text_encoders/resolve/main/", "text_encoders"),
    "wan2.2_ti2v_5B_fp16.safetensors": (
        f"{HUB}/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files/diffusion_models/",
        "diffusion_models",
    ),
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": (
        f"{HUB}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/text_encoders/",
        "text_encoders",
    ),
    "wan2.2_vae.safetensors": (f"{HUB}/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files/vae/", "vae"),
}
#: In app mode: the widgets that a person changes from run to run, and the nodes whose pictures are shown.
ASKED = (
    ("PrimitiveStringMultiline", "value"),
    ("SafetyDirection", "budget"),
    ("SafetyDirection", "on_flag"),
    ("KSampler", "seed"),
)
DRAWN = ("SaveImage", "SaveAnimatedWEBP")
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


@dataclass(eq=False)
class Node:
    """A node of a template; `node[2]` is its third output."""

    kind: str
    column: int
    inputs: dict[str, Any]
    title: str = ""
    id: int = 0

    def __getitem__(self, slot: int) -> tuple[Node, int]:
        return self, slot


@dataclass
class Template:
    """A graph in the making, and its note.

    Attributes:
        note: below the nodes of the first column.
        tops: where a column begins, if not at the top.
    """

    note: str
    tops: dict[int, int] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)

    def add(self, kind: str, column: int, title: str = "", **inputs: Any) -> Node:
        """A node; an input is a value, or another node's output."""
        given = {name: value[0] if isinstance(value, Node) else value for name, value in inputs.items()}
        node = Node(kind, column, given, title, len(self.nodes) + 1)
        self.nodes.append(node)
        return node

    def workflow(self, info: Info, name: str) -> dict[str, Any]:
        """As the page saves it."""
        links: list[list[Any]] = []
        made = [_saved(node, info, links) for node in self.nodes]
        by_id = {node["id"]: node for node in made}
        for link in links:
            by_id[link[1]]["outputs"][link[2]]["links"].append(link[0])
        layout = self._place(made)
        if self.note:
            made.append(_note(self.note, len(made) + 1, layout))
        return {
            "id": uuid_of(name),
            "revision": 0,
            "last_node_id": len(made),
            "last_link_id": len(links),
            "nodes": made,
            "links": links,
            "groups": [],
            "config": {},
            "extra": {"ds": view(layout.boxes), **_ways(layout, links, by_id), "linearData": self._app()},
            "version": 0.4,
        }

    def _app(self) -> dict[str, Any]:
        """What the page's app mode shows, as the page saves it: what a person changes, and what comes out."""
        asked = [[str(node.id), name] for kind, name in ASKED for node in self.nodes if node.kind == kind]
        drawn = [str(node.id) for node in self.nodes if node.kind in DRAWN]
        return {"inputs": asked, "outputs": drawn}

    def _place(self, made: list[dict[str, Any]]) -> Layout:
        widths: dict[int, int] = {}
        for node, saved in zip(self.nodes, made):
            widths[node.column] = max(widths.get(node.column, 0), saved["size"][0])
        layout = Layout(self.tops, widths)
        for node, saved in zip(self.nodes, made):
            saved["pos"] = layout.place(node.column, *saved["size"], GROWS.get(node.kind, 0))
        return layout


def _saved(node: Node, info: Info, links: list[list[Any]]) -> dict[str, Any]:
    about = info[node.kind]
    inputs, values = _inputs(node, about, links, info)
    outputs = [
        {"name": label, "type": _kind(kind), "links": []} for kind, label in zip(about["output"], about["output_name"])
    ]
    models = [
        {"name": value, "url": MODELS[value][0] + value, "directory": MODELS[value][1]}
        for value in values
        if isinstance(value, str) and value in MODELS
    ]
    sockets = sum(1 for one in inputs if "widget" not in one)
    linked = [one["name"] for one in inputs if one["link"] is not None]
    if node.kind == "PrimitiveStringMultiline":  # "value" says nothing in app mode
        inputs[0]["label"] = node.title
    return {
        "id": node.id,
        "type": node.kind,
        "pos": [0, 0],
        "size": size_of(node.kind, sockets, len(outputs), len(values), linked),
        "flags": {},
        "order": node.id,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        "properties": {
            "Node name for S&R": node.kind,
            "cnr_id": _pack(node.kind),
            **({"models": models} if models else {}),
        },
        "widgets_values": values,
        **({"title": node.title} if node.title else {}),
    }


def _ways(layout: Layout, links: list[list[Any]], by_id: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The points that wires pass, as the page saves them."""
    points: list[dict[str, Any]] = []
    known: dict[tuple[Any, ...], int] = {}
    ends: list[dict[str, int]] = []
    for link, source, slot, target, socket, _ in links:
        parent = None
        way = layout.way((source, slot), _output(by_id[source], slot), _input(by_id[target], socket))
        for places in way:
            here = (source, slot, parent, *places[0])
            if here not in known:
                for place in places:
                    before = {} if parent is None else {"parentId": parent}
                    parent = len(points) + 1
                    points.append({"id": parent, **before, "pos": place, "linkIds": []})
                known[here] = len(points)
            parent = known[here]
            for point in points[parent - 2 : parent]:
                point["linkIds"].append(link)
        if parent is not None:
            ends.append({"id": link, "parentId": parent})
    return {"reroutes": points, "linkExtensions": ends} if points else {}


def _output(node: dict[str, Any], slot: int) -> list[float]:
    return [node["pos"][0] + node["size"][0], node["pos"][1] + 14 + 20 * slot]


def _input(node: dict[str, Any], slot: int) -> list[float]:
    """Sockets of widgets stand below the others, at their widgets; about there."""
    before = sum(1 for one in node["inputs"][:slot] if "widget" not in one)
    below = 20 * sum(1 for one in node["inputs"] if "widget" not in one) if "widget" in node["inputs"][slot] else 0
    return [node["pos"][0], node["pos"][1] + 14 + (below or 20 * before)]


def _pack(kind: str) -> str:
    """By this name ComfyUI Manager finds a node that a stranger's ComfyUI lacks."""
    return PACK if kind.startswith("SafetyDirection") else "comfy-core"


def _kind(kind: Any) -> str:
    return kind if isinstance(kind, str) else "COMBO"


def uuid_of(name: str) -> str:
    """The same for the same name."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"safety-directions/{name}"))


def _note(text: str, number: int, layout: Layout) -> dict[str, Any]:
    width, height = note_size(text, layout.widths.get(0, WIDTH))
    return {
        "id": number,
        "type": "MarkdownNote",
        "pos": layout.place(0, width, height),
        "size": [width, height],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [text],
        "title": "Read me",
        "color": "#243a2e",
        "bgcolor": "#1b2c23",
    }


def _inputs(node: Node, about: Info, links: list[list[Any]], info: Info) -> tuple[list[dict[str, Any]], list[Any]]:
    sockets: list[dict[str, Any]] = []
    values: list[Any] = []
    left = dict(node.inputs)
    for section in ("required", "optional"):
        for name, spec in (about["input"].get(section) or {}).items():
            kind, options = _kind(spec[0]), (spec[1] if len(spec) > 1 else {})
            socket: dict[str, Any] = {"name": name, "type": kind, "link": None}
            given = left.pop(name, None)
            if section == "optional" and kind not in WIDGETS:
                socket["shape"] = 7
            if kind in WIDGETS and not options.get("forceInput"):
                socket["widget"] = {"name": name}
                choices = spec[0] if isinstance(spec[0], list) else options.get("options")
                fallback = options.get("default", choices[0] if choices else "")
                values.append(fallback if given is None or isinstance(given, tuple) else given)
                if options.get("control_after_generate"):
                    values.append("fixed")
            if isinstance(given, tuple):
                source, slot = given
                links.append(
                    [len(links) + 1, source.id, slot, node.id, len(sockets), _kind(info[source.kind]["output"][slot])]
                )
                socket["link"] = len(links)
            sockets.append(socket)
    if left:
        raise ValueError(f"{node.kind} has no input {sorted(left)}")
    return sockets, values
