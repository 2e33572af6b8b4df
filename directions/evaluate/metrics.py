"""Distances between sets of pictures, and intervals. numpy in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Z95 = 1.959963984540054
"""Standard deviations either side that hold 95% of a normal distribution."""


class Estimate(NamedTuple):
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float


Distance = Callable[[np.ndarray], float]
"""From features [pictures, width] to how far they are from a reference."""


def fid_to(reference: np.ndarray) -> Distance:
    """The Frechet distance between normal distributions fitted to features and to a reference (arXiv 1706.08500).

    |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2). With C = A'A the last trace is the sum of the singular values of
    A1 A2': no root of a nearly singular matrix is taken. Comparable between sets of like size: small sets read too high.

    Args:
        reference: [pictures, width], two pictures or more.
    """

    def normal(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Mean, a root of the covariance, and its trace."""
        centred = (rows - rows.mean(0)) / np.sqrt(len(rows) - 1)
        return rows.mean(0), np.asarray(np.linalg.qr(centred, mode="r")), float(np.square(centred).sum())

    theirs, their_root, their_trace = normal(reference)

    def distance(features: np.ndarray) -> float:
        mean, root, trace = normal(features)
        shared = float(np.linalg.svd(root @ their_root.T, compute_uv=False).sum())
        return float(np.square(mean - theirs).sum()) + trace + their_trace - 2 * shared

    return distance


def cmmd_to(reference: np.ndarray) -> Distance:
    """Squared maximum mean discrepancy with a Gaussian kernel of width 10 on unit features, x 1000 (arXiv 2401.09603).

    As in the paper's code, pairs of a picture with itself are kept. The paper's features are CLIP's.

    Args:
        reference: [pictures, width].
    """

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

    def mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean(np.exp(-(2 - 2 * a @ b.T) / (2 * 10.0**2))))

    theirs = unit(reference)
    their_kernel = mean_kernel(theirs, theirs)

    def distance(features: np.ndarray) -> float:
        ours = unit(features)
        return 1000 * (mean_kernel(ours, ours) + their_kernel - 2 * mean_kernel(ours, theirs))

    return distance


def share(hits: Sequence[float]) -> Estimate | None:
    """The mean of values in 0..1, one per prompt, with Wilson's interval; None of none.

    Where a prompt has several pictures its value is their share: pictures of one prompt are alike, so it is the
    prompts that are counted, which makes the interval wide rather than narrow.
    """
    count = len(hits)
    if not count:
        return None
    p, z2 = float(np.mean(hits)), Z95**2
    middle = (p + z2 / (2 * count)) / (1 + z2 / count)
    reach = Z95 / (1 + z2 / count) * np.sqrt(p * (1 - p) / count + z2 / (4 * count**2))
    return Estimate(p, min(p, max(0.0, float(middle - reach))), max(p, min(1.0, float(middle + reach))))


def bootstrap(figure: Callable[[np.ndarray], float], count: int, rounds: int = 200) -> Estimate:
    """A figure of `count` things with its bootstrap interval.

    The interval is moved onto the estimate: a resampled set holds doubles, which raises FID by itself.

    Args:
        figure: from the indices of the things to take, [count], to the figure.
    """
    draw = np.random.default_rng(0)
    value = figure(np.arange(count))
    resampled = np.array([figure(draw.integers(0, count, count)) for _ in range(rounds)])
    low, high = np.quantile(resampled - resampled.mean(), (0.025, 0.975))
    return Estimate(value, value + float(low), value + float(high))
