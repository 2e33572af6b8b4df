"""The form of a prompt's score: how its tokens' readings become one number. Fitting and use share it.

A reader is a linear probe: (state - center) @ reader. There are two for each name (`global`, then the categories): the token
reader tells unsafe *words* ("heroin" also on a poster that warns of it), the prompt reader tells unsafe *prompts* from the mean
of their states. A prompt is unsafe where both say so: in the same place, and as a whole.

    local_t = mean of the prompt reading over the tokens within NEAR of t
    both_t  = soft minimum of the token reading at t and local_t
    score   = soft minimum of the mean of the TOP highest both_t, and of the mean prompt reading

each standardised by harmless prompts. Compared with other forms in docs/log.md ("The form of the score").
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

TOP = 2
"""How many of a prompt's highest tokens count. 1 and 3 find as many."""

NEAR = 4
"""Tokens on either side over which the prompt reading is averaged: 2 lets more mentions through, 8 loses short prompts."""

SHARPNESS = 1.0
"""Of the soft minima: 0.25 is nearly a sum, which takes more mentions for unsafe; 2 finds no more."""

WINDOW, STRIDE = 32, 16
"""Prompts longer than a window are also read through windows, so that length around it doesn't hide an unsafe part."""

WINDOW_MARGIN = 1.5
"""How much more a window must read than the prompt as a whole, in benign standard deviations: a long harmless prompt has many
windows. At 1 long harmless prompts are flagged more often, at 2 a hidden sentence is found half as often."""


class ReadingMoments(NamedTuple):
    """Mean and standard deviation over everyday harmless prompts, [K, 2] each: of tokens' readings, of local prompt readings, of
    the mean of a prompt's highest tokens, and of the mean prompt reading."""

    token: Tensor
    local: Tensor
    highest: Tensor
    pooled: Tensor


def soft_minimum(a: Tensor, b: Tensor) -> Tensor:
    """-log(e^-sa + e^-sb) / s with s = SHARPNESS, elementwise: near the lower of the two, a little below where they are alike."""
    return -torch.logaddexp(-SHARPNESS * a, -SHARPNESS * b) / SHARPNESS


def standardised(values: Tensor, moments: Tensor) -> Tensor:
    """Values [..., K] in standard deviations: moments [K, 2] are each column's mean and standard deviation."""
    return (values - moments[..., 0]) / moments[..., 1]


def moments_of(values: Tensor) -> Tensor:
    """Mean and standard deviation of each column [n, K], as [K, 2]."""
    return torch.stack([values.mean(0), values.std(0).clamp_min(1e-12)], 1)


def global_plus_highest(readings: Tensor) -> Tensor:
    """Standardised readings [..., K] to one [...]: the global one plus the highest category's, which find more than either."""
    return readings[..., 0] + readings[..., 1:].amax(-1) if readings.shape[-1] > 1 else readings[..., 0]


def local_means(readings: Tensor) -> Tensor:
    """Each token's mean over the tokens within NEAR of it: [..., n, K] -> [..., n, K]."""
    n = readings.shape[-2]
    total = torch.nn.functional.pad(readings.cumsum(-2), (0, 0, 1, 0))
    at = torch.arange(n, device=readings.device)
    start, stop = (at - NEAR).clamp_min(0), (at + NEAR + 1).clamp_max(n)
    return (total[..., stop, :] - total[..., start, :]) / (stop - start).unsqueeze(1)


def windows(n: int) -> list[tuple[int, int]]:
    """Start and stop of the windows of a prompt of n tokens; none where it is no longer than one."""
    if n <= WINDOW:
        return []
    return [(start, start + WINDOW) for start in range(0, n - WINDOW, STRIDE)] + [(n - WINDOW, n)]


def both_readings(of_token: Tensor, of_prompt: Tensor, moments: ReadingMoments) -> Tensor:
    """Soft minimum of the token reading and the local prompt reading of each token: [..., n, K]."""
    local = standardised(local_means(of_prompt), moments.local)
    return soft_minimum(standardised(of_token, moments.token), local)


def parts(both: Tensor, of_prompt: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the highest tokens and the mean prompt reading of the whole prompt, then of each window.

    Args:
        both, of_prompt: [..., n, K], n > 0.

    Returns:
        [..., 1 + windows, K] each.
    """
    n = both.shape[-2]
    spans = [(0, n), *windows(n)]
    highest = [both[..., a:b, :].topk(min(TOP, b - a), dim=-2).values.mean(-2) for a, b in spans]
    return torch.stack(highest, -2), torch.stack([of_prompt[..., a:b, :].mean(-2) for a, b in spans], -2)


def prompt_scores(of_token: Tensor, of_prompt: Tensor, moments: ReadingMoments, scale: Tensor) -> Tensor:
    """Prompts' scores for each name, their length not yet taken into account; the first is `global` plus the highest category.

    Args:
        of_token, of_prompt: readings of the tokens of prompts of one length, [..., n, K], n > 0.
        scale: [K, 2], moments of each name's score over everyday harmless prompts.

    Returns:
        [..., K]
    """
    highest, pooled = parts(both_readings(of_token, of_prompt, moments), of_prompt)
    scores = soft_minimum(standardised(highest, moments.highest), standardised(pooled, moments.pooled))
    scores = standardised(scores, scale)
    scores = torch.cat([global_plus_highest(scores).unsqueeze(-1), scores[..., 1:]], -1)
    if scores.shape[-2] == 1:
        return scores[..., 0, :]
    return torch.maximum(scores[..., 0, :], scores[..., 1:, :].amax(-2) - WINDOW_MARGIN)


def roc_area(benign: Tensor, unsafe: Tensor) -> float:
    """Probability that an unsafe score lies above a benign one (ties count half)."""
    below = torch.searchsorted(benign.sort().values, unsafe, right=False).double()
    upto = torch.searchsorted(benign.sort().values, unsafe, right=True).double()
    return ((below + upto) / 2).mean().item() / len(benign)


class LengthModel(NamedTuple):
    """How harmless prompts' scores depend on their number of tokens n: mean a + b log n, standard deviation exp(c + d log n).

    Attributes:
        mean, spread: [K, 2]; (a, b) and (c, d) of each name.
    """

    mean: Tensor
    spread: Tensor

    def __call__(self, scores: Tensor, n: Tensor) -> Tensor:
        """Scores [..., K] of prompts of n tokens, [...], in standard deviations of harmless prompts of that length."""
        features = torch.stack([torch.ones_like(n, dtype=scores.dtype), n.to(scores.dtype).log()], -1)
        return (scores - features @ self.mean.T) / (features @ self.spread.T).exp()

    @classmethod
    def fit(cls, scores: Tensor, n: Tensor) -> "LengthModel":
        """Least squares of scores [N, K] on log n [N], and of the logarithm of what is left."""
        features = torch.stack([torch.ones(len(n), dtype=scores.dtype), n.to(scores.dtype).log()], 1)
        mean = torch.linalg.lstsq(features, scores, driver="gelsd").solution
        rest = (scores - features @ mean).abs()
        # A residual of nearly nothing has no logarithm to speak of.
        spread = torch.linalg.lstsq(
            features, rest.clamp_min(0.02 * rest.mean(0)).clamp_min(1e-12).log(), driver="gelsd"
        ).solution
        left = (scores - features @ mean) / (features @ spread).exp()
        spread[0] += left.std(0).clamp_min(1e-12).log()
        return cls(mean.T.contiguous(), spread.T.contiguous())
