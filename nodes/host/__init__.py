"""Host mode: with SAFETY_DIRECTION_POLICY set, every text is steered where it is encoded and every sampling run is guarded,
whatever nodes a graph has.

policy    what the host asks for
server    ComfyUI's on-prompt handler, and the policy in force
log       an object a line
pages     health and counts over HTTP
encoding  steer what a CLIP gives
sampling  let only that into a sampler
pictures  judge what is drawn, if the policy names a judge
patches   where ComfyUI is made to ask the three
"""

from __future__ import annotations

import os
from typing import Any, Callable

VARIABLE = "SAFETY_DIRECTION_POLICY"


def in_force() -> bool:
    """Whether this ComfyUI is in host mode: the steering nodes of a client then pass on what they are given."""
    return os.environ.get(VARIABLE) is not None


def refuse_to_write() -> None:
    """Raise in host mode: no node of a client leaves files of ours on the host's disk."""
    if in_force():
        raise ValueError("this server is in host mode: no node keeps files of a client's on it. Run it on a ComfyUI of your own")


def register(load_direction: Callable[[str], Any], load_judge: Callable[[str], Any]) -> None:
    """Start host mode if the environment asks for it; once, however many copies of the pack there are.

    Args:
        load_direction, load_judge: give the direction and the judge of a name.
    """
    path = os.environ.get(VARIABLE)
    if path is None:
        return
    from server import PromptServer  # ComfyUI's, which exists only inside it

    from . import patches
    from .pages import add_routes, hand_on_headers
    from .server import Host

    handlers = getattr(PromptServer.instance, "on_prompt_handlers", ())
    if any(getattr(handler, "variable", None) == VARIABLE for handler in handlers):
        return
    host = Host(path, load_direction, load_judge)
    hand_on_headers(PromptServer.instance)
    add_routes(PromptServer.instance, host, patches.apply(host))
    PromptServer.instance.add_on_prompt_handler(host)
