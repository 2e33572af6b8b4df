"""Which language a prompt is in, read from its mean state, and how harmless prompts of that language score.

A reader that is fitted on translations reads each language about as well as the encoder does, but harmless prompts of one score
higher or spread wider than those of another: a threshold for all of them would flag none of one and a quarter of another.
"""

from __future__ import annotations

from typing import Mapping, NamedTuple, Sequence

import torch
from torch import Tensor

from .scores import roc_area

USUAL = 10
"""How many prompts' worth the mean 0 and the deviation 1 count beside a language's own prompts, of which there may be few."""

READ = 0.7
"""Area under the ROC curve of a language's mentions against its everyday prompts below which an encoder doesn't read it; 0.5 is
chance. Languages of which nothing is found lie below 0.6; those of which an eighth or more is found above 0.72 (docs/log.md)."""

FEWEST = 20
"""Mentions of a language from which such an area says anything."""


class Languages(NamedTuple):
    """L languages in the space of one slot, of width W.

    Attributes:
        readers, bias: [L, W] and [L]; the language is the one that (mean state - center) @ reader + bias is highest for.
        moments: [L, K, 2], mean and standard deviation of everyday harmless prompts' scores by every name.
    """

    readers: Tensor
    bias: Tensor
    moments: Tensor

    def __call__(self, scores: Tensor, readings: Tensor) -> Tensor:
        """Scores [m, K] in standard deviations of the language that the prompts' mean states read, [m, L] before the bias."""
        moments = self.moments.to(scores)[(readings + self.bias.to(scores)).argmax(-1)]
        return (scores - moments[..., 0]) / moments[..., 1]


def moments_by_language(scores: Tensor, language: Tensor, everyday: Tensor, count: int) -> Tensor:
    """`Languages.moments` of prompts' scores [N, K], each of the language [N] among `count`."""
    out = []
    for index in range(count):
        own = scores[(language == index) & everyday]
        n = len(own)
        mean = own.sum(0) / (n + USUAL)
        variance = (own - mean).square().sum(0) / (n + USUAL) + USUAL / (n + USUAL)
        out.append(torch.stack([mean, variance.sqrt()], 1))
    return torch.stack(out)


def separation(highest: Tensor, language: Tensor, everyday: Tensor, mentioned: Tensor, count: int) -> list[float | None]:
    """How well each language's mentions are told from its everyday prompts: the area under the ROC curve of the highest tokens'
    readings [N]; None where there are too few."""
    found: list[float | None] = []
    for index in range(count):
        plain, named = (highest[kind & (language == index)] for kind in (everyday, mentioned))
        found.append(roc_area(plain, named) if len(named) >= FEWEST and len(plain) >= FEWEST else None)
    return found


def unread(areas: Mapping[str, float | None]) -> list[str]:
    """The languages that an encoder doesn't read, of those in `fit["languages"]`."""
    return [name for name, area in areas.items() if area is not None and area < READ]


def names_of(languages: Sequence[str]) -> tuple[str, ...]:
    """The languages that there are, the first first."""
    return tuple(dict.fromkeys(languages)) or ("en",)
