"""Which text encoders a ComfyUI can load, as its own workflows load them. Nothing here knows an encoder by name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .graph import is_link

CHECKPOINTS = "CheckpointLoaderSimple"
"""ComfyUI's loader of whole checkpoints: each of its files is loaded in one way, whatever workflows say."""

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
"""Types of an input that is set in the node itself; any other comes from another node."""

LONGEST_NAME = 64


@dataclass(frozen=True)
class Loader:
    """A node that loads a text encoder from what it is set to.

    Attributes:
        node: its class in ComfyUI.
        inputs: what each input is set to.
        output: which of its outputs is the CLIP.
    """

    node: str
    inputs: tuple[tuple[str, Any], ...]
    output: int

    @property
    def title(self) -> str:
        """What tells it from others, for people: its files and the kind."""
        values = [str(value) for _, value in self.inputs if isinstance(value, str) and value != "default"]
        return ", ".join(values) or self.node

    @property
    def files(self) -> frozenset[str]:
        """What it is set to, in any order: DualCLIPLoader sorts its files out by itself."""
        return frozenset(map(str, (self.node, *(value for _, value in self.inputs))))

    def name(self, direction: str) -> str:
        """The name of a file for its alignment: small letters, digits, - and _; at most 64."""
        stems = [re.sub(r"\.(safetensors|sft|ckpt|pt|pth|bin|gguf)$", "", part) for part in self.title.split(", ")]
        whole = re.sub(r"[^a-z0-9_]+", "-", "-".join([*stems, direction]).lower()).strip("-_")
        if len(whole) <= LONGEST_NAME:
            return whole
        short = hashlib.sha256(whole.encode()).hexdigest()[:8]
        return f"{whole[: LONGEST_NAME - len(short) - 1]}-{short}"


def find_loaders(info: Mapping[str, Any], workflows: Iterable[Any]) -> list[Loader]:
    """Every checkpoint, and whatever else the workflows load a text encoder with, of files that are there.

    Args:
        info: ComfyUI's description of its nodes (`/object_info`).
        workflows: saved from the page, or in API format; what is neither is passed over.
    """
    set_up = [(CHECKPOINTS, {"ckpt_name": file}) for file in _options(_inputs(info, CHECKPOINTS).get("ckpt_name"))]
    for workflow in workflows:
        with suppress(AttributeError, KeyError, TypeError):
            set_up += _nodes(workflow, info)
    found: dict[frozenset[str], Loader] = {}
    for node, inputs in set_up:
        outputs = info.get(node, {}).get("output") or []
        if "CLIP" in outputs and _fits(info, node, inputs):
            loader = Loader(node, tuple(inputs.items()), outputs.index("CLIP"))
            found.setdefault(loader.files, loader)
    return list(found.values())


def unused(info: Mapping[str, Any], loaders: Iterable[Loader]) -> list[str]:
    """The text encoder files that none of the loaders loads."""
    used = {value for loader in loaders for _, value in loader.inputs}
    return [file for file in _options(_inputs(info, "CLIPLoader").get("clip_name")) if file not in used]


def _inputs(info: Mapping[str, Any], node: str) -> dict[str, list]:
    """A node's inputs in order: [type or options, {...}]."""
    given = info.get(node, {}).get("input") or {}
    return {**(given.get("required") or {}), **(given.get("optional") or {})}


def _options(spec: Any) -> list:
    """What a combo offers."""
    if not spec:
        return []
    kind, *more = spec
    return kind if isinstance(kind, list) else list((more[0] if more else {}).get("options") or [])


def _fits(info: Mapping[str, Any], node: str, inputs: Mapping[str, Any]) -> bool:
    """Whether a node needs nothing else, and each choice is one that there is."""
    specs, needed = _inputs(info, node), info[node]["input"].get("required") or {}
    alone = all(isinstance(spec[0], list) or spec[0] in WIDGETS for spec in specs.values())
    choices = {name: _options(spec) for name, spec in specs.items() if isinstance(spec[0], list) or spec[0] == "COMBO"}
    return (
        alone
        and set(needed) <= set(inputs) <= set(specs)
        and all(inputs[name] in choices[name] for name in set(inputs) & set(choices))
    )


def _nodes(workflow: Any, info: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The nodes of a workflow and of its subgraphs, by class, with what their inputs are set to."""
    if "nodes" not in workflow:  # API format
        for node in workflow.values():
            if not any(map(is_link, node["inputs"].values())):
                yield node["class_type"], dict(node["inputs"])
        return
    for graph in (workflow, *((workflow.get("definitions") or {}).get("subgraphs") or ())):
        for node in graph["nodes"]:
            names, values = list(_inputs(info, node["type"])), node.get("widgets_values") or []
            if isinstance(values, list) and len(values) <= len(names):
                yield node["type"], dict(zip(names, values))
