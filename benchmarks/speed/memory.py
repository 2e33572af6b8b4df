"""Peak memory of fitting one slot at width 4096 by the number of anchors, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, Iterator

import torch

from benchmarks.peak import NotMeasured, rise
from directions import align
from directions.direction import Direction
from harness.server import ROOT

from .clock import Row

WIDTH, SOURCE, TOKENS = 4096, 576, 12  # content tokens of an anchor
ANCHORS = (500, 2000, 5431, 20000)


def measure() -> Iterator[Row]:
    """What fitting adds to the states that it is given."""
    for anchors in ANCHORS:
        done = subprocess.run(
            [sys.executable, "-m", f"{__package__}.memory", str(anchors)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        yield _row(anchors, json.loads(done.stdout))


def _row(anchors: int, found: dict[str, Any]) -> Row:
    what = f"ridge, {anchors} anchors of {TOKENS} tokens"
    if found["added"] is None:
        return Row.not_measured(what, found["why"], "MB")
    return Row(what, found["added"], "MB", detail=f"beyond {found['states']:.0f} MB of states")


def made_up_direction(anchors: int, draw: torch.Generator) -> Direction:
    """One of random numbers."""
    vectors = {"global": torch.randn(SOURCE, generator=draw), "violence": torch.randn(SOURCE, generator=draw)}
    return Direction(
        vectors=vectors,
        readers=vectors,
        anchor_states=torch.randn(anchors, SOURCE, generator=draw).half(),
        anchor_prompts=tuple(map(str, range(anchors))),
        source={"model": "made up", "layers": [0]},
        pairs={},
        licence="CC0",
        created="2026-01-01T00:00:00Z",
        tool_version="benchmark",
    )


def fit(anchors: int) -> dict[str, Any]:
    """Megabytes of random states, and by how much the peak while aligning exceeds what was there before (or `why` not)."""
    draw = torch.Generator().manual_seed(0)
    states = [torch.randn(TOKENS, WIDTH, generator=draw) for _ in range(anchors)]
    direction = made_up_direction(anchors, draw)
    held = sum(rows.nbytes for rows in states) / 1e6
    try:
        return {"states": held, "added": rise(lambda: align(direction, states, "ridge")) / 1e6}
    except NotMeasured as reason:
        return {"states": held, "added": None, "why": str(reason)}


if __name__ == "__main__":
    print(json.dumps(fit(int(sys.argv[1]))))
