"""Solving the maps at 4096 x 4096: seconds and memory, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any, Iterator

import torch

from benchmarks.peak import NotMeasured, rise
from directions.maps import METHODS
from harness.server import ROOT

from .clock import Row

WIDTH, ANCHORS = 4096, 5000


def measure() -> Iterator[Row]:
    """Each map once."""
    for method in ("ridge", "svd", "cca"):
        done = subprocess.run(
            [sys.executable, "-m", f"{__package__}.solving", method],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        found = json.loads(done.stdout)
        yield Row(f"{method}, {ANCHORS} anchors", found["seconds"], "s", "<= 20", "of CPU: 10 s on 2 cores")
        what = f"{method}, matrices of {WIDTH} x {WIDTH} at once"
        if found["matrices"] is None:
            yield Row.not_measured(what, found["why"], target="<= 3")
        else:
            yield Row(what, found["matrices"], "", "<= 3", "peak memory beyond the states")


def solve(method: str) -> dict[str, Any]:
    """The seconds of CPU that a map takes, and its peak memory beyond its input in matrices of WIDTH x WIDTH (or `why`
    there is none)."""
    draw = torch.Generator().manual_seed(0)
    source, target = (torch.randn(ANCHORS, WIDTH, generator=draw) for _ in range(2))
    METHODS[method](source[:512, :256], target[:512, :256])
    started = time.process_time()
    try:
        memory = {"matrices": rise(lambda: METHODS[method](source, target)) / (4 * WIDTH**2)}
    except NotMeasured as reason:
        memory = {"matrices": None, "why": str(reason)}
    return {"seconds": time.process_time() - started, **memory}


if __name__ == "__main__":
    print(json.dumps(solve(sys.argv[1])))
