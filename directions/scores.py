"""The form of a prompt's score: how its tokens' readings become one number. Fitting and use share it.

A reader is a linear probe: (state - center) @ reader. There are two for each name (`global`, then the categories): the token
reader tells unsafe *words* ("heroin" also on a poster that warns of it), the prompt reader tells unsafe *prompts* from the mean
of their states. One more for all names tells *mentions*: harmless prompts that name something unsafe (posters, news, titles).

    local_t = mean of the prompt reading over the tokens within NEAR of t
    both_t  = soft minimum of the token reading at t and local_t
    score   = (mean of the TOP highest token readings + mean of the TOP highest both_t) / 2 + mean prompt reading
              - MENTION * mean mention reading, where that is above average

each standardised by harmless prompts. Compared with other forms in docs/log.md ("The form of the score").
"""

from __future__ import annotations

import math
from typing import NamedTuple, Sequence

import torch
from torch import Tensor

TOP = 2
"""How many of a prompt's highest tokens count. 1 and 3 find as many."""

NEAR = 4
"""Tokens on either side over which the prompt reading is averaged: 2 lets more mentions through, 8 loses short prompts."""

SHARPNESS = 1.0
"""Of the soft minimum: 0.25 and 0.5 find up to 0.02 more, and as many more harmless prompts are flagged (docs/log.md)."""

WINDOW, STRIDE = 32, 16
"""Prompts longer than a window are also read through windows, so that length around it doesn't hide an unsafe part."""

WINDOW_MARGIN = 1.5
"""How much more a window must read than the prompt as a whole, in benign standard deviations: a long harmless prompt has many
windows. At 1 long harmless prompts are flagged more often, at 2 a hidden sentence is found half as often."""


MENTION, MOST_MENTION = 0.22, 4.0
"""Weight of the mention reading in each name's score, and the most that it counts for, in harmless standard deviations. With
none, two to three times as many mentions are taken for unsafe; with twice as much, 0.05 to 0.07 fewer held-out unsafe prompts are
found (docs/log.md). The most bounds what words of a notice around an unsafe prompt can hide; not tuned."""


class Readings(NamedTuple):
    """What a prompt's n tokens read: by token and prompt readers [..., n, K], and by the mention reader [..., n]."""

    token: Tensor
    prompt: Tensor
    mention: Tensor


class Parts(NamedTuple):
    """Of prompts or windows: the mean of the highest token readings and of the highest soft minima, the mean prompt reading,
    [..., K] each, and the mean mention reading [..., 1]."""

    words: Tensor
    both: Tensor
    pooled: Tensor
    mention: Tensor


class ReadingMoments(NamedTuple):
    """Mean and standard deviation over everyday harmless prompts, [K, 2] each: of tokens' readings, of local prompt readings, of
    the mean of a prompt's highest token readings, of that of its highest soft minima, of the mean prompt reading, and of the mean
    mention reading (the same for every name)."""

    token: Tensor
    local: Tensor
    words: Tensor
    both: Tensor
    pooled: Tensor
    mention: Tensor


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


def headed(scores: Tensor, heads: Sequence[int] = (0,)) -> Tensor:
    """Scores [..., K] with what `global_plus_highest` says in the place of each head; a head's categories stand behind it."""
    out = []
    for start, stop in zip(heads, (*heads[1:], scores.shape[-1])):
        own = scores[..., start:stop]
        out += [global_plus_highest(own).unsqueeze(-1), own[..., 1:]]
    return torch.cat(out, -1)


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


def parts(readings: Readings, moments: ReadingMoments) -> Parts:
    """The parts of the score of the whole prompt, then of each window; n > 0."""
    token = standardised(readings.token, moments.token)
    both = soft_minimum(token, standardised(local_means(readings.prompt), moments.local))
    n = token.shape[-2]
    spans = [(0, n), *windows(n)]

    def highest(values: Tensor) -> Tensor:
        found = [values[..., a:b, :].topk(min(TOP, b - a), dim=-2).values.mean(-2) for a, b in spans]
        return torch.stack(found, -2)

    def means(values: Tensor) -> Tensor:
        return torch.stack([values[..., a:b, :].mean(-2) for a, b in spans], -2)

    return Parts(highest(token), highest(both), means(readings.prompt), means(readings.mention.unsqueeze(-1)))


def together(some: Parts, moments: ReadingMoments, scale: Tensor) -> Tensor:
    """The parts as one, by each name [..., K]: in standard deviations of everyday prompts, but for what reads as a mention.

    Args:
        scale: [K, 2], moments of the sum of the parts without the mention reading.
    """
    mention = standardised(some.mention, moments.mention).clamp(0, MOST_MENTION)
    return standardised(summed(some, moments), scale) - MENTION * mention


def summed(some: Parts, moments: ReadingMoments) -> Tensor:
    """What reads as unsafe, [..., K]."""
    words, both = standardised(some.words, moments.words), standardised(some.both, moments.both)
    return (words + both) / 2 + standardised(some.pooled, moments.pooled)


def prompt_scores(readings: Readings, moments: ReadingMoments, scale: Tensor, heads: Sequence[int] = (0,)) -> Tensor:
    """Prompts' scores for each name, their length not yet taken into account; the first is `global` plus the highest category.

    Args:
        readings: of prompts of one length n > 0.
        scale: as in `together`.
        heads: the columns of the directions' own `global`, where several were joined.

    Returns:
        [..., K]
    """
    scores = headed(together(parts(readings, moments), moments, scale), heads)
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
