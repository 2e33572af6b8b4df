"""The verdict on a prompt, and why it was flagged, as a value; words are made here alone."""

from __future__ import annotations

import logging
from typing import Mapping, NamedTuple

from ...directions.alignment import Alignment
from ...directions.direction_format import GLOBAL
from ...directions.steer import SteeringSettings
from ...directions.verdict import Verdict
from .entry import Own

LOG = logging.getLogger("safety_directions")


class Flag(NamedTuple):
    """A prompt that scored above its threshold.

    Attributes:
        name: `global` or the category.
        score, threshold: in benign standard deviations.
        budget: the share of harmless prompts that it was set for.
    """

    name: str
    score: float
    threshold: float
    budget: float

    def __str__(self) -> str:
        return (
            f"{self.name} score {self.score:+.2f}, over the threshold {self.threshold:+.2f} "
            f"at a budget of {self.budget:.1%}"
        )


class Judgement(NamedTuple):
    """What is thought of an entry.

    Attributes:
        verdict: one on each row of the batch over all its slots, [B]; None where it has none.
        flag: why the row that is furthest over is flagged, or None.
        score: the highest global score of a row, in benign standard deviations.
    """

    verdict: Verdict | None = None
    flag: Flag | None = None
    score: float | None = None


def judge(own: Mapping[str, Own], aligned: Alignment, settings: SteeringSettings) -> Judgement:
    """The verdict on an entry by the states of its slots."""
    if not own:
        return Judgement()
    names, budget = next(iter(aligned.slots.values())).chosen(settings.categories), settings.budget
    calibration = aligned.calibrations.of(list(own))
    scores = calibration.scores([aligned.slots[name].prompt_scores(one.states, one.mask) for name, one in own.items()])
    verdict = calibration.verdict(scores, budget, names)
    highest = scores.amax(0).tolist()
    score = highest[aligned.names.index(GLOBAL)]
    if not bool(verdict.flagged.any()):
        return Judgement(verdict, None, score)
    flags = [
        Flag(name, highest[aligned.names.index(name)], calibration.threshold(budget / len(names), name), budget)
        for name in names
    ]
    return Judgement(verdict, max(flags, key=lambda flag: flag.score - flag.threshold), score)


class Refused(ValueError):
    """A prompt scored above the threshold and the node refuses such prompts."""


def act_on(flag: Flag | None, node: str, on_flag: str, mode: str) -> None:
    """Log a flag with what is done about it: in words, and as the record's `event`.

    Args:
        on_flag: "steer", "refuse", or "report": nothing is done.

    Raises:
        Refused: if that is what the node does.
    """
    if flag is None:
        return
    action = {"refuse": "refused", "report": "reported"}.get(on_flag, "steered")
    event = {"event": "flagged", "node": node, **flag._asdict(), "mode": mode, "action": action}
    LOG.info("%s: %s, %s", node, flag, f"{action} ({mode})" if action == "steered" else action, extra={"event": event})
    if on_flag == "refuse":
        raise Refused(
            f"{node} refused this prompt: {flag}. Nothing was sampled. Change the prompt, or set on_flag to steer."
        )
