"""A reader that tells content from padding, for encoders that pad and give no mask."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Mapping, Sequence

import torch
from torch import Tensor

from ...directions.slot import SlotAlignment
from .content import content_of_states
from .layout import Layout, first_row
from .places import encode

WITHIN_PENALTY = 0.1
"""Mean variances on the diagonal. Not tuned: content and padding lie far apart in every class that is tested."""

SCALE = 4.0
"""Distance of the two groups' means in score."""

PADDING_PROMPTS, PADDING_ROWS = 36, 24
"""Prompts of all lengths that the padding reader is fitted on, and padding states of each."""

PADDING_VALUES = 2**25
"""That the padding reader is fitted on, of content and of padding each."""


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


def with_padding(
    clip: Any, prompts: Sequence[str], layout: Layout, slots: Mapping[str, SlotAlignment]
) -> dict[str, SlotAlignment]:
    """The slots with the readers that tell content from padding, where they need one."""
    readers = _padding(clip, prompts, layout)
    return {name: replace(slot, padding=readers[name]) if name in readers else slot for name, slot in slots.items()}


def _padding(clip: Any, prompts: Sequence[str], layout: Layout) -> dict[str, Tensor]:
    """Readers that tell content from padding, for the slots that need one; from prompts of all lengths."""
    wanted = layout.only([name for name, place in layout.places.items() if place.unmasked])
    kept: dict[str, tuple[list[Tensor], list[Tensor]]] = {name: ([], []) for name in wanted.places}
    for count in range(PADDING_PROMPTS if kept else 0):
        words = " ".join(prompts[(count + i) % len(prompts)] for i in range(1 + count % 6)).split()
        tokens = layout.tokenize(" ".join(words[: 2 + 2 * count]))
        output = encode(clip, tokens)
        for name, mask in wanted.content(tokens, output).items():
            place = wanted.places[name]
            rest = content_of_states(output[place.tensor], replace(place, after=0), {})[0].cpu() & ~mask
            own = first_row(output[place.tensor], place).float().cpu()
            kept[name][0].append(own[mask])
            kept[name][1].append(own[rest][:: max(1, int(rest.sum()) // PADDING_ROWS)])
    return {name: fit_padding(*(_some(torch.cat(rows)) for rows in both)) for name, both in kept.items()}


def _some(rows: Tensor) -> Tensor:
    return rows[:: -(-rows.numel() // PADDING_VALUES)]
