"""What was flagged and why, as a value; words are made here alone."""

from __future__ import annotations

import logging
from typing import NamedTuple

LOG = logging.getLogger("safety_directions")


class Flag(NamedTuple):
    """A prompt that scored above its threshold.

    Attributes:
        name: `global` or the category.
        slot: where.
        score, threshold: in benign standard deviations.
        budget: the share of harmless prompts that it was set for.
    """

    name: str
    slot: str
    score: float
    threshold: float
    budget: float

    def __str__(self) -> str:
        return (
            f"{self.name} score {self.score:+.2f} in {self.slot}, over the threshold {self.threshold:+.2f} "
            f"at a budget of {self.budget:.1%}"
        )


class Refused(ValueError):
    """A prompt scored above the threshold and the node refuses such prompts."""


def act_on(flag: Flag | None, node: str, on_flag: str, mode: str) -> None:
    """Log a flag with what is done about it.

    Raises:
        Refused: if that is what the node does.
    """
    if flag is None:
        return
    LOG.info("%s: %s, %s", node, flag, "refused" if on_flag == "refuse" else f"steered ({mode})")
    if on_flag == "refuse":
        raise Refused(
            f"{node} refused this prompt: {flag}. Nothing was sampled. Change the prompt, or set on_flag to steer."
        )
