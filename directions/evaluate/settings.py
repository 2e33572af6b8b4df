"""The settings that a run compares."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..steer import MODES

UNSTEERED = "none"


@dataclass(frozen=True)
class Setting:
    """One way to draw: `steering` are inputs of the steering nodes (None: they are left out), `changes` others."""

    label: str
    steering: Mapping[str, Any] | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Its label as a file name."""
        return re.sub(r"[^\w.+-]+", "-", self.label)


def plan(
    modes: Sequence[str],
    alphas: Sequence[float],
    categories: Sequence[str] = (),
    vary: Mapping[str, Sequence[Any]] = {},
) -> list[Setting]:
    """All combinations, after the unsteered one.

    Args:
        categories: values of the steering node's `categories`, such as "violence, hate"; none leaves it as it is.
        vary: further inputs, "<node id>.<input>", and the values that each takes in turn.

    Raises:
        ValueError: an unknown mode, or nothing to compare.
    """
    if unknown := [mode for mode in modes if mode not in MODES]:
        raise ValueError(f"there is no mode {unknown[0]!r}; there are {', '.join(MODES)}")
    if not modes or not alphas or any(not values for values in vary.values()):
        raise ValueError("at least one mode, one alpha and one value of everything that varies are needed")
    others = [dict(zip(vary, values)) for values in itertools.product(*vary.values())]
    settings = [Setting(UNSTEERED, None, others[0])]
    spans: Sequence[str | None] = categories or [None]
    for changes, mode, alpha, category in itertools.product(others, modes, alphas, spans):
        steering = {"mode": mode, "alpha": float(alpha)} | ({} if category is None else {"categories": category})
        words = [
            mode,
            f"{alpha:g}",
            *([category or "all"] if category is not None else []),
            *map(str, changes.values()),
        ]
        settings.append(Setting(" ".join(words), steering, changes))
    if len({setting.folder for setting in settings}) != len(settings):
        raise ValueError("two of the settings are the same")
    return settings
