"""Have a running ComfyUI align a direction to every text encoder that it has."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .evaluate.client import GraphError, Remote, ServerLost
from .evaluate.progress import run_with_bar
from .graph import Graph
from .loaders import Loader, find_loaders, unused


class Made(NamedTuple):
    """What became of each text encoder.

    Attributes:
        files: the alignments' names, and what ComfyUI says of each.
        failed: why there is none, by text encoder.
    """

    files: dict[str, dict[str, Any]]
    failed: dict[str, str]


def align_all(address: str, direction: str, say: Callable[[str], None] = lambda text: None) -> Made:
    """Align `direction` to every text encoder that the ComfyUI at `address` can load, one after another.

    Raises:
        ServerLost: no ComfyUI answers there.
        ValueError: it has no such direction, or not this pack.
    """
    server = Remote(address)
    info = server.read("/object_info")
    if "SafetyDirectionAlign" not in info:
        raise ValueError(f"the ComfyUI at {server.address} has no nodes of safety-directions: install the pack there")
    facts = _facts(server, "direction", direction)
    if "error" in facts:
        raise ValueError(facts["error"])
    loaders = find_loaders(info, _workflows(server))
    made, failed = {}, {}
    for count, loader in enumerate(loaders, 1):
        name = loader.name(direction)
        found = _facts(server, "aligned", name)
        if found.get("sha256") == facts["sha256"] and found.get("whole"):
            say(f"{count} of {len(loaders)}: {loader.title}: there already, {name}")
            made[name] = found
            continue
        try:
            run_with_bar(server, _graph(loader, direction, name), f"{count} of {len(loaders)}: {loader.title}")
            found = _facts(server, "aligned", name)
            if "error" in found:
                raise GraphError(found["error"])
            made[name] = found
        except GraphError as error:
            failed[loader.title] = str(error)
            say(f"{count} of {len(loaders)}: {loader.title}: {error}")
    for line in _report(made, unused(info, loaders)):
        say(line)
    return Made(made, failed)


def _facts(server: Remote, kind: str, name: str) -> dict[str, Any]:
    return server.read(f"/safety_directions/{kind}/{urllib.parse.quote(name, safe='')}")


def _workflows(server: Remote) -> Iterator[Any]:
    """The workflows that are saved in a ComfyUI, and its templates."""
    quoted = lambda path: urllib.parse.quote(path, safe="")
    paths = [
        f"/userdata/{quoted(f'workflows/{file}')}"
        for file in _known(server, "/userdata?dir=workflows&recurse=true") or []
    ]
    for group in _known(server, "/templates/index.json") or []:
        paths += [f"/templates/{quoted(one['name'])}.json" for one in group["templates"]]
    for path in paths:
        if (workflow := _known(server, path)) is not None:
            yield workflow


def _known(server: Remote, path: str) -> Any:
    """What is there; None where nothing is, or no JSON."""
    try:
        return server.read(path)
    except ServerLost:
        return None


def _graph(loader: Loader, direction: str, name: str) -> Graph:
    return {
        "encoder": {"class_type": loader.node, "inputs": dict(loader.inputs)},
        "direction": {"class_type": "SafetyDirectionLoad", "inputs": {"direction": direction}},
        "align": {
            "class_type": "SafetyDirectionAlign",
            "inputs": {
                "direction": ["direction", 0],
                "clip": ["encoder", loader.output],
                "method": "auto",
                "seconds": 0.0,
            },
        },
        "save": {
            "class_type": "SafetyDirectionSaveAligned",
            "inputs": {"aligned": ["align", 0], "name": name, "overwrite": True},
        },
    }


def _report(made: dict[str, dict[str, Any]], unknown: list[str]) -> Iterator[str]:
    """What to publish, each file once, and what nobody said how to load."""
    first: dict[str, str] = {}
    if made:
        yield "\nTo publish, from models/safety_directions/aligned; who puts a file there needn't align:"
    for name, facts in made.items():
        own = first.setdefault(facts["file"], name)
        yield f"  {name}.safetensors  " + (
            f"{facts['megabytes']} MB  sha256 {facts['file']}" if own == name else f"is the same as {own}: needn't be"
        )
    if unknown:
        yield (
            f"\nLoaded by no workflow, so not aligned: {', '.join(unknown)}. Save a workflow that loads them in ComfyUI, "
            "and call this again"
        )
