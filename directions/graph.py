"""ComfyUI's graphs in API format: their links, and this pack's steering nodes in them."""

from __future__ import annotations

from typing import Any, Collection, Iterator, Mapping

Graph = dict[str, dict[str, Any]]
"""{node id: {"class_type": ..., "inputs": {...}}}"""

Link = tuple[str, int]
"""Node id, output."""

STEERING: dict[str, tuple[str | None, ...]] = {
    "SafetyDirection": ("model", "clip", None),
    "SafetyDirectionApply": ("conditioning", None, None),
    "SafetyDirectionCLIP": ("clip",),
    "SafetyDirectionGuard": ("model",),
}
"""The pack's steering nodes, and for each output the input that it passes on; None for what the node itself finds out."""


HOST_MODE = "Safety Direction host mode"
"""What host mode calls itself, in messages and in the notes in pictures."""

HEALTH = "/safety_directions/health"
"""Where it says whether it is ready."""


def is_link(value: Any) -> bool:
    """Whether an input's value comes from another node."""
    return (
        isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], (int, float))
    )


def links(node: Mapping[str, Any]) -> Iterator[tuple[str, Link]]:
    """A node's inputs that come from other nodes: name, link."""
    for name, value in (node.get("inputs") or {}).items():
        if is_link(value):
            yield name, (value[0], int(value[1]))


def steering_nodes(graph: Graph) -> list[str]:
    """The ids of the pack's steering nodes."""
    return [node_id for node_id, node in graph.items() if str(node.get("class_type")) in STEERING]


def bypassed(graph: Graph, nodes: Collection[str]) -> Graph:
    """The graph with every link that comes from one of these steering nodes moved to what that node was given; the
    given one is left as it is. Links to what such a node finds out itself stay."""

    def source(link: Link) -> Link:
        seen = set()
        while link[0] in nodes and link[0] not in seen:
            seen.add(link[0])
            before = _passed_on(graph.get(link[0], {}), link[1])
            if before is None:
                break
            link = before
        return link

    def moved(node: Mapping[str, Any]) -> dict[str, Any]:
        inputs = node.get("inputs") or {}
        return {**node, "inputs": {**inputs, **{name: list(source(link)) for name, link in links(node)}}}

    return {node_id: moved(node) for node_id, node in graph.items()}


def without(graph: Graph, nodes: Collection[str]) -> Graph:
    """The graph without those of these nodes that no other node needs."""
    needed = {link[0] for node_id, node in graph.items() if node_id not in nodes for _, link in links(node)}
    waiting = list(needed)
    while waiting:
        behind = {link[0] for _, link in links(graph.get(waiting.pop(), {}))} - needed
        needed |= behind
        waiting += behind
    return {node_id: node for node_id, node in graph.items() if node_id not in nodes or node_id in needed}


def _passed_on(node: Mapping[str, Any], output: int) -> Link | None:
    """Where what a steering node gives at an output came from; outputs count as ComfyUI counts them: -1 is the last."""
    inputs = STEERING.get(str(node.get("class_type")), ())
    name = inputs[output] if -len(inputs) <= output < len(inputs) else None
    return dict(links(node)).get(name) if name else None
