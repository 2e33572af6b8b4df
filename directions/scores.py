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

import math
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


KNOTS = (2, 4, 8, 16, 32, 64, 128)
"""Numbers of tokens between which levels are interpolated: middling prompts score higher than short and long ones, so that a
straight line would flag 2% of the ones and 0.2% of the others."""

TAIL = 0.97
"""Share of prompts below the level that spreads are measured to: budgets ask for the tail, which is shorter where prompts are
long. Nearer to 1 there are too few prompts to measure it on."""

USUAL = 30
"""How many prompts' worth the levels of all prompts count at a knot, near which there may be few."""


class LengthModel(NamedTuple):
    """How harmless prompts' scores depend on their number of tokens: mean, and logarithm of the spread, at each of KNOTS.

    Attributes:
        mean, spread: [K, J].
    """

    mean: Tensor
    spread: Tensor

    def __call__(self, scores: Tensor, n: Tensor) -> Tensor:
        """Scores [..., K] of prompts of n tokens, [...], in standard deviations of harmless prompts of that length."""
        shares = _shares(n, scores.dtype)
        return (scores - shares @ self.mean.T) / (shares @ self.spread.T).exp()

    @classmethod
    def fit(cls, scores: Tensor, n: Tensor) -> "LengthModel":
        """Of scores [N, K] of prompts of n tokens [N]: means by least squares, spreads by the tail above them."""
        shares = _shares(n, scores.dtype)
        usual = scores.mean(0)
        gram = shares.T @ shares + USUAL * torch.eye(len(KNOTS), dtype=scores.dtype)
        mean = torch.linalg.solve(gram, shares.T @ (scores - usual)) + usual
        rest = scores - shares @ mean
        tails = [(rest.quantile(TAIL, 0).clamp_min(1e-12).log())] * len(KNOTS)
        for knot in range(len(KNOTS)):
            near = rest[shares.argmax(1) == knot]
            if len(near) > 1:
                own = near.quantile(TAIL, 0).clamp_min(1e-12).log()
                tails[knot] = (len(near) * own + USUAL * tails[knot]) / (len(near) + USUAL)
        spread = torch.stack(tails)
        left = rest / (shares @ spread).exp()
        return cls(mean.T.contiguous(), (spread + left.std(0).clamp_min(1e-12).log()).T.contiguous())


def _shares(n: Tensor, dtype: torch.dtype) -> Tensor:
    """How much each knot counts for prompts of n tokens: [...] -> [..., J]."""
    place = (n.to(dtype).log2() - math.log2(KNOTS[0])).clamp(0, len(KNOTS) - 1)
    knots = torch.arange(len(KNOTS), dtype=dtype, device=n.device)
    return (1 - (place.unsqueeze(-1) - knots).abs()).clamp_min(0)
