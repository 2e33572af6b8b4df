"""How much memory a process has held at most, where the system tells."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Callable


class NotMeasured(Exception):
    """What could not be measured on this machine, and why."""


def peak() -> int:
    """Bytes that this process has held at most so far.

    On Linux from /proc: what getrusage gives there begins at the peak of the process that started this one.

    Raises:
        NotMeasured: the system doesn't say.
    """
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    if found:
        return int(found[1]) << 10
    try:
        import resource
    except ImportError:
        raise NotMeasured("this system doesn't say how much memory a process has held") from None
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if not held:
        raise NotMeasured("this system says that a process has held no memory at all")
    return held if sys.platform == "darwin" else held << 10


def rise(task: Callable[[], Any]) -> int:
    """Bytes by which the peak rises while `task` runs.

    Raises:
        NotMeasured: see `peak`; or the peak was higher before, so that it says nothing about `task`.
    """
    before = peak()
    task()
    after = peak()
    if after <= before:
        raise NotMeasured(f"the process had held {before / 1e6:.0f} MB before, and this took less than that")
    return after - before
