"""A reader that tells content from padding, for encoders that pad and give no mask."""

from __future__ import annotations

import torch
from torch import Tensor

WITHIN_PENALTY = 0.1
"""Mean variances on the diagonal. Not tuned: content and padding lie far apart in every class that is tested."""

SCALE = 4.0
"""Distance of the two groups' means in score."""


def fit_padding(content: Tensor, padding: Tensor) -> Tensor:
    """A linear reader [W + 1], positive on content states [n, W] and negative on the padding's [m, W]: Fisher's discriminant."""
    a, b = content.double(), padding.double()
    within = torch.cat([a - a.mean(0), b - b.mean(0)])
    penalty = within.square().mean() * WITHIN_PENALTY + 1e-12
    difference = a.mean(0) - b.mean(0)
    # Woodbury where there are fewer rows than columns.
    if len(within) < within.shape[1]:
        gram = within @ within.T / len(within) + penalty * torch.eye(len(within), dtype=within.dtype)
        reader = (difference - within.T @ torch.linalg.solve(gram, within @ difference) / len(within)) / penalty
    else:
        cover = within.T @ within / len(within) + penalty * torch.eye(within.shape[1], dtype=within.dtype)
        reader = torch.linalg.solve(cover, difference)
    bias = -(reader @ (a.mean(0) + b.mean(0))) / 2
    scale = 1 / (reader @ difference).abs().clamp_min(1e-12) * SCALE
    return (torch.cat([reader, bias.reshape(1)]) * scale).float()
