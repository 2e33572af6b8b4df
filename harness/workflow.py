"""Turn a workflow that the web page saved into the graph that ComfyUI's queue takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_NOTES = ("Note", "MarkdownNote")
#: Nodes that only the web page knows.
_PAGE_ONLY = (*_NOTES, "Reroute", "PrimitiveNode")
_WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")
_UPLOADS = ("image_upload", "animated_image_upload", "video_upload", "audio_upload")
_CONTROLS = ("fixed", "increment", "decrement", "randomize", "increment-wrap")
_MUTED, _BYPASSED = 2, 4


def to_api(workflow: Mapping[str, Any], object_info: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Turn a workflow as the web page saves it into the API format that `Client.queue` takes.

    Meant for plain graphs: notes, reroutes, primitives, muted and bypassed nodes, and inputs that are widgets or links
    alike; no subgraphs. The page gives every seed a second widget ("control after generate"), which is skipped.

    Args:
        workflow: the parsed JSON file.
        object_info: from `Client.object_info`, with every pack that the workflow uses.

    Raises:
        ValueError: a node type is unknown (a missing pack, or a subgraph), or saved values do not fit the node.
    """
    nodes = {node["id"]: node for node in workflow["nodes"]}
    graph = _Links(nodes, workflow.get("links") or ())
    prompt: dict[str, dict[str, Any]] = {}
    for node in workflow["nodes"]:
        if node["type"] in _PAGE_ONLY or node.get("mode") in (_MUTED, _BYPASSED):
            continue
        info = object_info.get(node["type"])
        if info is None:
            raise ValueError(
                f"node {node['id']} has type {node['type']!r}, which this ComfyUI does not know: "
                "a pack is missing, or it is a subgraph, which cannot be converted"
            )
        inputs = {name: _literal(value) for name, value in _widget_values(node, info)}
        for slot in node.get("inputs") or ():
            if slot.get("link") is not None:
                source = graph.source(slot["link"])
                if source is not None:
                    inputs[slot["name"]] = source
        title = node.get("title") or info.get("display_name") or node["type"]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    return prompt


class _Links:
    """Finds where a link really comes from, past what exists on the web page only."""

    def __init__(self, nodes: Mapping[Any, Mapping[str, Any]], links: Sequence[Any]) -> None:
        self.nodes = nodes
        self.origins: dict[Any, tuple[Any, int]] = {}
        for link in links:
            if isinstance(link, Mapping):  # schema 1
                self.origins[link["id"]] = (link["origin_id"], link["origin_slot"])
            else:  # [id, origin, origin's slot, target, target's slot, type]
                self.origins[link[0]] = (link[1], link[2])

    def source(self, link: Any) -> Any:
        """[node id, output slot], or the value of a primitive, or None where nothing arrives."""
        while link is not None:
            if link not in self.origins:
                raise ValueError(f"an input names link {link}, which is not in the workflow's links")
            node_id, slot = self.origins[link]
            node = self.nodes.get(node_id)
            if node is None:
                raise ValueError(f"link {link} comes from node {node_id}, which is not in the workflow")
            if node.get("mode") == _MUTED:
                return None
            if node["type"] == "PrimitiveNode":
                return _literal((node.get("widgets_values") or [None])[0])
            if node["type"] == "Reroute":
                link = node["inputs"][0].get("link")
            elif node.get("mode") == _BYPASSED:
                link = _bypass(node, slot)
            else:
                return [str(node_id), slot]
        return None


def _literal(value: Any) -> Any:
    """A value as an input; a list on its own would be read as a link."""
    return {"__value__": value} if isinstance(value, list) else value


def _bypass(node: Mapping[str, Any], slot: int) -> Any:
    """The link that goes through a bypassed node to one of its outputs: from the input of the same place or type."""
    inputs = node.get("inputs") or []
    wanted = node["outputs"][slot]["type"]
    for candidate in [*inputs[slot : slot + 1], *inputs]:
        if candidate["type"] == wanted:
            return candidate.get("link")
    return None


def _widget_values(node: Mapping[str, Any], info: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """A saved node's widgets as (name, value), in the page's order: required, then optional, as the node lists them."""
    saved = node.get("widgets_values") or []
    if isinstance(saved, Mapping):  # some packs save by name
        yield from ((name, saved[name]) for name, _ in _inputs(info) if name in saved)
        return
    # Newer pages save a socket for every widget, which also tells the types of widget that only a pack knows.
    widgets = {slot["widget"]["name"] for slot in node.get("inputs") or () if slot.get("widget")}
    values = iter(saved)

    def take(name: str, kind: Any, options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        fallback = options.get("default", _choices(kind, options)[:1] or None)
        try:
            value = next(values)
        except StopIteration:  # saved before the node had this widget
            if fallback is not None:
                yield name, fallback[0] if isinstance(fallback, list) else fallback
            return
        _check(node, name, kind, value)
        yield name, value
        if kind == "COMFY_DYNAMICCOMBO_V3":
            for option in options.get("options", ()):
                if option["key"] == value:
                    for child, spec in _inputs({"input": option["inputs"]}):
                        yield from visit(f"{name}.{child}", spec)

    def visit(name: str, spec: Sequence[Any]) -> Iterator[tuple[str, Any]]:
        options = (spec[1] if len(spec) > 1 else None) or {}
        kind = options.get("widgetType", spec[0])
        by_type = isinstance(kind, list) or kind in _WIDGET_TYPES
        if options.get("forceInput") or not (by_type or name in widgets):
            return
        yield from take(name, kind, options)
        controlled = kind == "INT" and name in ("seed", "noise_seed")
        if options.get("control_after_generate", controlled) and next(values, "fixed") not in _CONTROLS:
            raise ValueError(f"node {node['id']} ({node['type']}): {name!r} is not followed by one of {_CONTROLS}")

    uploads = False
    for section in ("required", "optional"):
        for name, spec in _inputs(info, (section,)):
            yield from visit(name, spec)
            uploads = uploads or any(spec[1].get(flag) for flag in _UPLOADS if len(spec) > 1)
        if section == "required" and uploads:
            next(values, None)  # the page adds the upload button as a last required widget


def _inputs(info: Mapping[str, Any], sections: Sequence[str] = ("required", "optional")) -> Iterator[tuple[str, Any]]:
    for section in sections:
        specs = info["input"].get(section) or {}
        order = (info.get("input_order") or {}).get(section) or list(specs)
        yield from ((name, specs[name]) for name in order)


def _choices(kind: Any, options: Mapping[str, Any]) -> list[Any]:
    return kind if isinstance(kind, list) else options.get("options", []) if kind == "COMBO" else []


def _check(node: Mapping[str, Any], name: str, kind: Any, value: Any) -> None:
    """Refuse a value of the wrong sort: the values are a bare list, and one too many shifts all that follow."""
    number: tuple[type, ...] = (int, float)
    expected = {"INT": number, "FLOAT": number, "STRING": (str,), "BOOLEAN": (bool,)}.get(str(kind))
    if expected and not (isinstance(value, expected) and (kind == "BOOLEAN" or not isinstance(value, bool))):
        raise ValueError(f"node {node['id']} ({node['type']}): the saved value of {name!r} ({kind}) is {value!r}")
