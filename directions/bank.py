"""A bank of benign states to land on: what a steered state becomes looks like conditioning that the image model knows."""

from __future__ import annotations

import torch
from torch import Tensor

from .direction_format import SHORTEST

NEIGHBOURS = 4
"""Bank states that a landed state is made of. With 1, 2 and 8 attacks differ by less than 0.02 (docs/log.md, Pictures)."""

SHARPNESS = 8.0
"""Of the softmax over neighbours, in units of their mean distance: one that is an eighth of it further away weighs 1/e as
much. Not tuned."""

BANK_STATES_AT_ONCE = 128
"""A half precision bank is widened in parts of this size, which stay in the processor's cache."""

AROUND = 10
"""Nearest others whose mean distance is a bank state's spacing, as in CSLS (arXiv 1710.04087)."""

ROWS_AT_ONCE = 512


def land(states: Tensor, bank: Tensor, spacing: Tensor) -> Tensor:
    """Softmax average of the nearest bank states.

    Args:
        states: [n, W]; bank: [M, W]; spacing: [M], see `spacing_of`.
    """
    if len(states) == 0 or len(bank) == 0:
        return states
    weight, index = nearest(states, bank, spacing)
    return (weight.unsqueeze(-1) * bank[index].float()).sum(1).to(states)


def nearest(states: Tensor, bank: Tensor, spacing: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest bank states [M, W] of each state [n, W]: their softmax weights [n, k], the nearer the more, and indices [n, k].

    Distances are measured in each bank state's spacing [M]. A few states in the middle of the crowd are the nearest ones
    to almost anything ("hubs"; between two languages' words, arXiv 1710.04087), and all that is flagged would become the same.
    """
    near, index = (_distances(states.float(), bank) / spacing).topk(min(NEIGHBOURS, len(bank)), largest=False)
    return torch.softmax(-(near - near[:, :1]) / near.mean(1, keepdim=True).clamp_min(1e-6) * SHARPNESS, dim=1), index


def spacing_of(bank: Tensor) -> Tensor:
    """How far apart the states of a bank [M, W] lie around each of them, [M]: the mean distance to its AROUND nearest others."""
    if len(bank) < 2:
        return torch.ones(len(bank))
    near = [
        _distances(part.float(), bank).topk(min(AROUND + 1, len(bank)), largest=False).values[:, 1:]
        for part in bank.split(ROWS_AT_ONCE)
    ]
    return torch.cat(near).mean(1).clamp_min(SHORTEST)


def _distances(states: Tensor, bank: Tensor) -> Tensor:
    """Euclidean distances [n, M]."""
    parts = []
    for part in bank.split(BANK_STATES_AT_ONCE):
        part = part.to(states)
        # The other way round (states @ part.T first) takes twice as long.
        parts.append(torch.linalg.vector_norm(part, dim=1).square() - 2 * states @ part.T)
    return (torch.cat(parts, 1) + states.square().sum(1, keepdim=True)).clamp_min(0).sqrt()
