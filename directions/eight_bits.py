"""Anchor states in a direction file: one byte each, with a grid of two numbers per column."""

from __future__ import annotations

from typing import Mapping

import torch
from torch import Tensor

from .direction_format import GRID
from .files import DirectionFormatError

LEVELS = 255
"""Of a signed byte, from -128; states that it holds are 2% of their standard deviation away from what they were."""


def eight_bits(states: Tensor) -> Tensor:
    """States [N, D] rounded, so that a file can hold each as one byte: to LEVELS steps from the lowest to the highest of its
    column."""
    return _on_grid(*_bytes_and_grid(states.half()))


def _bytes_and_grid(states: Tensor) -> tuple[Tensor, Tensor]:
    low, high = states.float().amin(0), states.float().amax(0)
    step = (high - low) / LEVELS
    values = ((states.float() - low) / step.clamp_min(1e-30)).round().clamp(0, LEVELS) - 128
    return values.to(torch.int8), torch.stack([low + 128 * step, step])


def _on_grid(values: Tensor, grid: Tensor) -> Tensor:
    return (grid[0] + values.float() * grid[1]).half()


def packed(states: Tensor) -> dict[str, Tensor]:
    """As the file has them: in bytes where these say the same (`eight_bits`), else in half precision."""
    values, grid = _bytes_and_grid(states)
    if torch.equal(_on_grid(values, grid), states):
        return {"anchors.states": values, GRID: grid}
    return {"anchors.states": states}


def unpacked(tensors: Mapping[str, Tensor], file: str) -> Tensor:
    """The states [N, D] of the direction file of that name, float16.

    Raises:
        DirectionFormatError: the bytes give no finite states.
    """
    states = tensors["anchors.states"]
    if GRID not in tensors:
        return states
    grid = tensors[GRID]
    found = _on_grid(states, grid)
    if not (grid[1] >= 0).all() or not torch.isfinite(found).all():
        raise DirectionFormatError(f"{file}: {GRID} gives states that are not finite, or has a negative step")
    return found
