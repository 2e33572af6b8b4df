"""The form of a prompt's score: how its tokens' and its mean state's readings become one number. Fitting and use share it.

A reader is a linear probe, (state - center) @ reader. Readings come in K columns: `global`, then the categories.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOP = 2
"""How many of a prompt's highest tokens count; chosen on the held-out pairs among 1, 2, 3 and 5 (benchmarks/RESULTS.md)."""


def mean_of_top_k(readings: Tensor, content: Tensor, k: int = TOP) -> Tensor:
    """The mean of each prompt's `k` highest token readings, or of all where it has fewer: [..., T, K] -> [..., K].

    Args:
        content: bool [..., T], the tokens that count. A prompt without any gets 0.
    """
    readings = readings.masked_fill(~content.unsqueeze(-1), -torch.inf)
    highest = readings.topk(min(k, readings.shape[-2]), dim=-2).values
    count = content.sum(-1, keepdim=True).clamp(1, k)
    return highest.masked_fill(highest == -torch.inf, 0).sum(-2) / count


def global_plus_highest(readings: Tensor) -> Tensor:
    """Standardised readings [..., K] to one [...]: the global one plus the highest category's; together they find
    more than either."""
    return readings[..., 0] + readings[..., 1:].amax(-1) if readings.shape[-1] > 1 else readings[..., 0]


def standardised(scores: Tensor, moments: Tensor) -> Tensor:
    """Scores [..., K] in standard deviations: moments [K, 2] are each column's mean and standard deviation."""
    return (scores - moments[..., 0]) / moments[..., 1]
