"""Run one graph on a server, with a bar in the terminal."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from ..graph import Graph
from .client import Remote, ServerLost, raise_failed

ASKED = 0.5
"""Seconds between two questions how far a node is."""


def run_with_bar(server: Remote, graph: Graph, title: str) -> dict[str, Any]:
    """ComfyUI's history of a graph, once it has run; meanwhile a bar in the terminal for what is read to align. Interrupted, the
    graph is taken from the server.

    Raises:
        GraphError: ComfyUI finds it invalid, or a node failed.
    """
    from tqdm import tqdm

    prompt_id, asked = server.submit(graph), 0.0
    try:
        with tqdm(desc=title, unit="prompt") as bar:

            def stopped() -> bool:
                nonlocal asked
                if time.monotonic() - asked > ASKED:
                    asked = time.monotonic()
                    now = server.read("/safety_directions/progress")
                    done, of = max(now["nodes"].values(), key=lambda own: own[1], default=(0, 1))
                    if now["prompt_id"] == prompt_id and of > 1:
                        bar.n, bar.total = int(done), int(of)
                        bar.refresh()
                return False

            entry = server.finished(prompt_id, stopped) or {}
    except BaseException:
        with suppress(ServerLost):
            server.cancel([prompt_id])
        raise
    raise_failed(entry)
    return entry
