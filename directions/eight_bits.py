"""States in a file: one byte each, with a grid of two numbers per column."""

from __future__ import annotations

from typing import Mapping

import torch
from torch import Tensor

from .files import DirectionFormatError

LEVELS = 255
"""Of a signed byte, from -128; states that it holds are 2% of their standard deviation away from what they were."""

CLOSE = 0.05
"""Of how far states lie from their mean: what bytes may move one by. MiniLM's bank moves by 0.01 on average, 0.04 at most."""


def grid_of(name: str) -> str:
    """The name of the grid of a tensor in bytes."""
    return f"{name}_grid"


def eight_bits(states: Tensor) -> Tensor:
    """States [N, D] rounded, so that a file can hold each as one byte: to LEVELS steps from the lowest to the highest of its
    column."""
    return _on_grid(*_bytes_and_grid(states.half()))


def eight_bits_or_half(states: Tensor) -> Tensor:
    """The same where no state is moved far by it; as they are in half precision where a few huge values take up the bytes."""
    exact = states.half()
    if not len(states):
        return exact
    rounded = eight_bits(exact)
    moved, spread = (
        rows.norm(dim=-1) for rows in (rounded.float() - exact.float(), exact.float() - exact.float().mean(0))
    )
    return rounded if bool((moved <= CLOSE * spread.mean(0)).all()) else exact


def _bytes_and_grid(states: Tensor) -> tuple[Tensor, Tensor]:
    low, high = states.float().amin(0), states.float().amax(0)
    step = (high - low) / LEVELS
    values = ((states.float() - low) / step.clamp_min(1e-30)).round().clamp(0, LEVELS) - 128
    return values.to(torch.int8), torch.stack([low + 128 * step, step])


def _on_grid(values: Tensor, grid: Tensor) -> Tensor:
    return (grid[0] + values.float() * grid[1]).half()


def packed(name: str, states: Tensor) -> dict[str, Tensor]:
    """As a file has them: in bytes where these say the same (`eight_bits`), else in half precision."""
    states = states.half()
    values, grid = _bytes_and_grid(states) if len(states) else (states, states)
    if len(states) and torch.equal(_on_grid(values, grid), states):
        return {name: values, grid_of(name): grid}
    return {name: states}


def unpacked(tensors: Mapping[str, Tensor], name: str, file: str) -> Tensor:
    """The states of that name in a file, float16.

    Raises:
        DirectionFormatError: the bytes give no finite states.
    """
    states, grid = tensors[name], tensors.get(grid_of(name))
    if grid is None:
        return states
    found = _on_grid(states, grid)
    if not (grid[1] >= 0).all() or not torch.isfinite(found).all():
        raise DirectionFormatError(f"{file}: {grid_of(name)} gives states that are not finite, or has a negative step")
    return found


def bytes_fault(entries: Mapping[str, tuple], name: str) -> str | None:
    """What is wrong with the type of such a tensor and with its grid, or None."""
    dtype, shape = entries[name]
    grid, wanted = entries.get(grid_of(name)), (2, *shape[1:])
    if dtype not in ("F16", "I8"):
        return f"{name} has dtype {dtype}"
    if (dtype == "I8") != (grid is not None) or (grid is not None and tuple(grid) != ("F32", wanted)):
        return f"{grid_of(name)} is {grid}; {name} in bytes has one of F32 {list(wanted)}, and in half precision none"
    return None
