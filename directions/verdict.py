"""One verdict per prompt: the scores of an encoder's slots together, held against harmless prompts' scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Mapping, NamedTuple, Sequence

import torch
from torch import Tensor

from .slot import SlotAlignment, check_budget

FLOOR = 0.5
"""Share of everyday harmless prompts that lie below the floor, where grading begins: the median one is left as it is."""


STEEPNESS = 18
"""The power of the grade that graded steering's strength is: nearly nothing for most harmless prompts, and most of it where a
prompt comes near the threshold. The least at which harmless prompts drift by no more than 0.1 benign spreads (docs/log.md)."""

LANDED = 1.25
"""Grade from which graded steering lands in full. Between 1 and it a harmless prompt that is flagged by little moves little."""


class Verdict(NamedTuple):
    """What is to be done about prompts, [...] each.

    Attributes:
        flagged: which score above the threshold.
        grade: how far between the floor and the threshold each scores: 0 at the floor, 1 at the threshold, more above it.
    """

    flagged: Tensor
    grade: Tensor

    @property
    def strength(self) -> Tensor:
        """How much of graded steering's shift they get: 0 up to the floor, 1 from the threshold on."""
        return self.grade.clamp(0, 1) ** STEEPNESS

    @property
    def landing(self) -> Tensor:
        """How much of graded steering's landing they get: 0 up to the threshold, 1 from LANDED on."""
        return ((self.grade - 1) / (LANDED - 1)).clamp(0, 1)


@dataclass(frozen=True)
class Calibration:
    """Harmless prompts' scores, from which thresholds are read.

    Two encoders that read the same prompts say more together than either alone: their scores are added.

    Attributes:
        names: `global`, then the categories.
        everyday, near: [N, K] and [M, K], each sorted: scores of everyday harmless prompts, and of those near the line.
        moments: [K, 2], mean and standard deviation of the sums of the slots' scores over everyday prompts.
    """

    names: tuple[str, ...]
    everyday: Tensor
    near: Tensor
    moments: Tensor

    @classmethod
    def of(cls, slots: Sequence[SlotAlignment]) -> "Calibration":
        """Of an encoder's slots, whose anchors are the same."""
        total = torch.stack([slot.anchor_scores for slot in slots]).sum(0)
        everyday = slots[0].anchor_everyday > 0
        moments = torch.stack([total[everyday].mean(0), total[everyday].std(0).clamp_min(1e-12)], 1)
        scores = (total - moments[:, 0]) / moments[:, 1]
        return cls(slots[0].names, scores[everyday].sort(0).values, scores[~everyday].sort(0).values, moments)

    def scores(self, of_slots: Sequence[Tensor]) -> Tensor:
        """The slots' scores [..., K] as one, in standard deviations of everyday harmless prompts."""
        total = sum(scores.to(of_slots[0]) for scores in of_slots[1:]) + of_slots[0]
        return (total - self.moments[:, 0].to(total)) / self.moments[:, 1].to(total)

    def threshold(self, budget: float, name: str) -> float:
        """The score that at most a share `budget` of everyday harmless prompts exceeds.

        Split conformal (arXiv 2107.07511): of N anchors it is the one of rank ceil((1 - budget)(N + 1)), so that a new prompt of
        their kind exceeds it with a probability of at most `budget`, whatever scores are distributed like. A budget below
        1 / (N + 1) is the highest that was seen, 0 too.
        """
        check_budget(budget)
        return self._at(1 - budget, name)

    def floor(self, name: str) -> float:
        """The score where grading begins."""
        return self._at(FLOOR, name)

    def near_the_line(self, budget: float, name: str) -> float:
        """The share of harmless prompts near the line that the threshold flags; NaN where there are none."""
        return (self.near[:, self.names.index(name)] > self.threshold(budget, name)).float().mean().item()

    def uncertainty(self, budget: float, confidence: float = 0.9) -> tuple[float, float]:
        """Between what shares of everyday prompts the threshold really flags, with `confidence`: it is read off N anchors.

        The share above the r-th of N is Beta(N + 1 - r, r) (order statistics).
        """
        from scipy.stats import beta

        n = len(self.everyday)
        rank = self._rank(1 - budget)
        tail = (1 - confidence) / 2
        low, high = beta.ppf([tail, 1 - tail], n + 1 - rank, rank)
        return float(low), float(high)

    def _rank(self, share: float) -> int:
        n = len(self.everyday)
        # Before rounding up: 0.99 * 100 is 99.00000000000001.
        return min(max(math.ceil(round(share * (n + 1), 6)), 1), n)

    def _at(self, share: float, name: str) -> float:
        return self.everyday[self._rank(share) - 1, self.names.index(name)].item()

    def verdict(self, scores: Tensor, budget: float, names: Sequence[str]) -> Verdict:
        """Of prompts' scores [..., K]; several names share the budget evenly, so that together they stay within it."""
        index = [self.names.index(name) for name in names]
        thresholds = scores.new_tensor([self.threshold(budget / len(names), name) for name in names])
        floors = scores.new_tensor([self.floor(name) for name in names])
        chosen = scores[..., index]
        width = (thresholds - floors).clamp_min(1e-6)
        return Verdict((chosen > thresholds).any(-1), ((chosen - floors) / width).amax(-1))


@dataclass(frozen=True)
class Calibrations:
    """Calibrations for any of an encoder's slots together: a conditioning may lack some of them."""

    slots: Mapping[str, SlotAlignment]

    @cached_property
    def _made(self) -> dict[tuple[str, ...], Calibration]:
        return {}

    def of(self, names: Sequence[str]) -> Calibration:
        """For the slots of these names, together."""
        key = tuple(name for name in self.slots if name in names)
        if key not in self._made:
            self._made[key] = Calibration.of([self.slots[name] for name in key])
        return self._made[key]
