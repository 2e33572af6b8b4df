"""Peak memory and time of fitting the widest states that there are, each width in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import chain
from typing import Any, Iterator

import torch

from benchmarks.peak import NotMeasured, rise
from directions.align import align_slot
from directions.wide import WideStates
from harness.server import ROOT

from .clock import Row
from .memory import TOKENS, made_up_direction

ANCHORS = 5431
WIDTHS = {"FLUX.2 [dev]": 15_360, "Krea 2": 30_720, "Ideogram 4": 53_248}


def measure() -> Iterator[Row]:
    """Each width once."""
    for name, width in WIDTHS.items():
        found = measured(width, ANCHORS)
        what = f"{name}, {width} wide"
        if found["gibibytes"] is None:
            yield Row.not_measured(what, found["why"], "GiB")
        else:
            yield Row(what, found["gibibytes"], "GiB", "<= 4", f"states included; {found['seconds']:.0f} s of CPU")


def measured(width: int, anchors: int, method: str = "auto") -> dict[str, Any]:
    """What `fit` finds, in a process of its own."""
    command = [sys.executable, "-m", f"{__package__}.wide", str(width), str(anchors), method]
    return json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def fit(width: int, anchors: int, method: str) -> dict[str, Any]:
    """Seconds of CPU that a fit of random states takes, and the peak memory that it adds, states included (or `why` not)."""
    draw = torch.Generator().manual_seed(0)
    direction = made_up_direction(anchors, draw)
    view = torch.randn(64, width, generator=draw)

    def aligned() -> None:
        states = WideStates([True] * anchors, width)
        for index in chain(*states.order()):
            noise = torch.randn(TOKENS, width, generator=draw)
            states.add(index, torch.randn(TOKENS, 64, generator=draw) @ view + noise)
        align_slot(direction, states, method)

    started = time.process_time()
    try:
        found: dict[str, Any] = {"gibibytes": rise(aligned) / 2**30}
    except NotMeasured as reason:
        found = {"gibibytes": None, "why": str(reason)}
    return found | {"seconds": time.process_time() - started}


if __name__ == "__main__":
    print(json.dumps(fit(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
