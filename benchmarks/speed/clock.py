"""Time things in turn, in seconds of CPU: what else the machine does then hardly shows."""

from __future__ import annotations

import time
from statistics import median
from typing import Any, Callable, Mapping, NamedTuple


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        what: measured thing.
        value: a ratio, or a number of `unit`; None where it can't be measured here.
        unit: "x" for a ratio, "%", "ms", "s", "MB".
        target: the bound, with its sense ("<= 1"); empty where it is a figure beside others.
        detail: the absolute figures behind it, or why there are none.
    """

    what: str
    value: float | None
    unit: str = ""
    target: str = ""
    detail: str = ""

    @classmethod
    def not_measured(cls, what: str, why: object, unit: str = "", target: str = "") -> Row:
        """The line of something that can't be measured on this machine: it meets no target, and misses none."""
        return cls(what, None, unit, target, f"not measured here: {why}")

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one, and where nothing was measured."""
        if not self.target or self.value is None:
            return None
        sense, bound = self.target.split()
        return self.value <= float(bound) if sense == "<=" else self.value >= float(bound)


def in_turn(tasks: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of CPU that each task takes in each round, after one round that doesn't count."""
    for task in tasks.values():
        task()
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            started = time.process_time()
            task()
            seconds[name].append(time.process_time() - started)
    return seconds


def ratio(seconds: Mapping[str, list[float]], what: str, to: str) -> float:
    """Median over the rounds of what one task took, to what another took in the same round."""
    return median(a / b for a, b in zip(seconds[what], seconds[to]))
