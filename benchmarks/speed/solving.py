"""Solving the maps at 4096 x 4096: seconds and memory, each in a process of its own."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from typing import Iterator

import torch

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
        seconds, buffers = map(float, done.stdout.split())
        yield Row(f"{method}, {ANCHORS} anchors", seconds, "s", "<= 20", "of CPU: 10 s on 2 cores")
        yield Row(
            f"{method}, matrices of {WIDTH} x {WIDTH} at once", buffers, "", "<= 3", "peak memory beyond the states"
        )


def solve(method: str) -> None:
    """Print the seconds of CPU that a map takes, and its peak memory beyond its input in matrices of WIDTH x WIDTH."""
    draw = torch.Generator().manual_seed(0)
    source, target = (torch.randn(ANCHORS, WIDTH, generator=draw) for _ in range(2))
    METHODS[method](source[:512, :256], target[:512, :256])
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    METHODS[method](source, target)
    print(
        time.process_time() - started,
        (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (4 * WIDTH**2),
    )


if __name__ == "__main__":
    solve(sys.argv[1])
