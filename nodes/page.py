"""What the page asks this server about files; see web/js. Nothing in the graph depends on it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Callable

from ..directions.alignment import load_aligned_encoder
from ..directions.direction import available, read_direction
from ..directions.files import DirectionFormatError
from . import encoders
from .load import folders
from .share import aligned_files

Facts = dict[str, Any]


def direction_facts(path: Path) -> Facts:
    """What a direction file is: where it comes from, its categories, size, date and licence."""
    direction = read_direction(path)
    return {
        "source": direction.source["model"],
        "layers": direction.source.get("layers"),
        "categories": list(direction.categories),
        "pairs": direction.pairs.get("counts"),
        "anchors": len(direction.anchor_prompts),
        "created": direction.created[:10],
        "licence": direction.licence,
        "sha256": direction.fingerprint[:12],
        "megabytes": round(path.stat().st_size / 1e6, 1),
    }


def aligned_facts(path: Path) -> Facts:
    """What an alignment file is: of which direction, for which slots, its categories, whether all anchors were read, and its
    hash."""
    aligned = load_aligned_encoder(path)
    return {
        "source": str(aligned.direction.get("name") or aligned.direction.get("source")),
        "slots": {name: slot.width for name, slot in aligned.slots.items()},
        "categories": list(aligned.categories),
        "sha256": str(aligned.direction.get("sha256"))[:12],
        "whole": encoders.enough(aligned, None),
        "file": hashlib.sha256(path.read_bytes()).hexdigest(),
        "megabytes": round(path.stat().st_size / 1e6, 1),
    }


def answer(name: str, known: dict[str, Path], read: Callable[[Path], Facts]) -> Facts:
    """The facts of the file of that name, or what is wrong with it. Only listed names are opened, so none escapes its folder."""
    if name not in known:
        return {"name": name, "error": f"there is no {name[:80]!r} here"}
    try:
        return {"name": name, **read(known[name])}
    except (DirectionFormatError, OSError) as error:
        return {"name": name, "error": str(error)}


def keep_metadata() -> None:
    """Let pictures say how they were steered; see nodes/encoders/picture_notes.py."""
    from server import PromptServer

    PromptServer.instance.add_on_prompt_handler(encoders.keep_metadata)


PATH = "/safety_directions/{kind:direction|aligned}/{name}"
PROGRESS = "/safety_directions/progress"


def running() -> Facts:
    """How far the nodes are that run now: [done, of how many] by node, and the prompt that they belong to."""
    from comfy_execution.progress import NodeState, get_progress_state

    state = get_progress_state()
    nodes = {node: [own["value"], own["max"]] for node, own in list(state.nodes.items()) if own["state"] is NodeState.Running}
    return {"prompt_id": state.prompt_id, "nodes": nodes}


def add_routes() -> None:
    """GET /safety_directions/direction/{name}, /safety_directions/aligned/{name} and /safety_directions/progress; once,
    however many copies of the pack there are."""
    import asyncio

    from aiohttp import web
    from server import PromptServer

    async def respond(request: web.Request) -> web.Response:
        kind = request.match_info["kind"]
        known, read = (
            (available(folders()), direction_facts) if kind == "direction" else (aligned_files(), aligned_facts)
        )
        return web.json_response(await asyncio.to_thread(answer, request.match_info["name"], known, read))

    async def progress(request: web.Request) -> web.Response:
        return web.json_response(running())

    # A second copy of the pack in another folder must not keep ComfyUI from starting, which it does not with a path twice.
    if all(getattr(route, "path", None) != PATH for route in PromptServer.instance.routes):
        PromptServer.instance.routes.get(PATH)(respond)
        PromptServer.instance.routes.get(PROGRESS)(progress)
