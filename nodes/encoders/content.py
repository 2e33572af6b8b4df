"""Which of an encoder's states are the prompt's own: exact where the tokens are known, else read off the states."""

from __future__ import annotations

from typing import Any, Mapping

import torch
from torch import Tensor

from ...directions.place import Place
from ...directions.special_tokens import find_special_tokens
from .templates import Template, Tokens, streams, unpadded

FIRST = 64
"""Columns that are looked at first for states of zeros."""

CERTAIN = 4.0
"""A state's padding score counts no more than this, so that one odd word doesn't outweigh the padding around it."""


def length_in(tokens: Tokens, place: Place) -> int:
    return min(sum(len(section) for section in tokens[key]) for key in place.keys) - place.shift


def placed(tokens: Tokens, place: Place, templates: Mapping[str, Template], start: int, length: int) -> Tensor:
    """The content of one part, bool [length], from its tokens."""
    positions: list[int] = []
    for key in place.keys:
        if key not in streams(tokens):
            continue
        at = start - place.shift - (unpadded(tokens[key][0], templates[key].pad)[0] if place.trimmed else 0)
        total = sum(len(section) for section in tokens[key])
        # A picture in the prompt is one token and many states; what comes after it moves back.
        pictures = [
            i for i, token in enumerate(t for section in tokens[key] for t in section) if isinstance(token[0], dict)
        ]
        extra = max(0, length - (total + at)) if pictures else 0
        index = 0
        for section in tokens[key]:
            for i in templates[key].content(section):
                position = index + i + at + (extra if pictures and index + i > pictures[-1] else 0)
                if (
                    0 <= position < length
                    and not isinstance(section[i][0], dict)
                    and not (pictures and index + i < pictures[-1])
                ):
                    positions.append(position)
            index += len(section)
    mask = torch.zeros(length, dtype=torch.bool)
    mask[positions] = True
    return mask


def content_of_tokens(
    tokens: Tokens, places: Mapping[str, Place], templates: Mapping[str, Template], output: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The content of every sequence slot, bool [T], where the tokens are known: exact."""
    masks = {}
    starts: dict[str, int] = {}
    for slot, place in sorted(places.items(), key=lambda item: item[1].part):
        value = output.get(place.tensor)
        if not torch.is_tensor(value) or value.dim() < 3:
            continue
        if any(key not in templates for key in place.keys):
            continue
        start = starts.get(f"{place.tensor} {place.part}", 0)
        masks[slot] = placed(tokens, place, templates, start, value.shape[-2])
        if place.part < place.parts - 1 and all(key in tokens for key in place.keys):
            starts[f"{place.tensor} {place.part + 1}"] = start + length_in(tokens, place)
    return masks


def attended_states(states: Tensor, name: str, extras: Mapping[str, Any]) -> Tensor:
    """bool [B, T]: not masked (`attention_mask` goes with `cond`, `attention_mask_x` with `conditioning_x`), not zeroed out."""
    mask = extras.get("attention_mask" + name.removeprefix("cond").removeprefix("itioning"))
    # Reading all of every state takes longer than steering: zeros are looked for among those that begin with zeros.
    seen = (states[..., :FIRST] != 0).any(-1)
    seen[~seen] = (states[~seen] != 0).any(-1)
    attended = seen.cpu()
    if (
        torch.is_tensor(mask)
        and mask.shape[-1] == states.shape[-2]
        and mask.numel() in (attended.shape[-1], attended.numel())
    ):
        attended = attended & mask.to("cpu").bool().reshape(-1, states.shape[-2])
    return attended


def attended(tensor: Tensor, place: Place, extras: Mapping[str, Any]) -> Tensor:
    """The states of a slot that aren't masked or zeroed out, own and special, bool [B, T] on the CPU; tensor as in
    `content_of_states`."""
    states = tensor if place.layer is None else tensor[:, place.layer]
    mine = attended_states(states, place.tensor, extras)
    return mine & _members(states.cpu(), place) if place.parts > 1 else mine


def special_positions(content: Tensor, attended: Tensor, place: Place) -> dict[int, list[int]]:
    """Where one prompt's special tokens stand, by role: content, attended are bool [T] on the CPU."""
    ends = 1 if place.unmasked else place.after
    return find_special_tokens(content.tolist(), attended.tolist(), ends, place.unmasked, place.chunk)


def content_of_states(tensor: Tensor, place: Place, extras: Mapping[str, Any], padding: Tensor | None = None) -> Tensor:
    """The content of a slot, where only the states are known: attended, less the margins, less what reads as padding.

    Args:
        tensor: [B, T, W], or [B, L, T, W].
        padding: [width + 1], a reader that is positive on content; for encoders that pad and give no mask.

    Returns:
        bool [B, T]
    """
    states = tensor if place.layer is None else tensor[:, place.layer]
    mine = attended(tensor, place, extras)
    scores = None if padding is None else (states[..., : place.width].float().cpu() @ padding[:-1] + padding[-1])
    out = torch.zeros_like(mine)
    for b in range(len(mine)):
        positions = mine[b].nonzero().flatten()
        size = place.chunk if place.chunk and len(positions) % place.chunk == 0 else max(len(positions), 1)
        for chunk in positions.split(size):
            inside = chunk[place.before :]
            if scores is None:
                inside = inside[: max(0, len(inside) - place.after)]
            else:
                gain = torch.cat([torch.zeros(1), scores[b, inside].clamp(-CERTAIN, CERTAIN).cumsum(0)])
                inside = inside[: int(gain.argmax())]
            out[b, inside] = True
    return out.to(tensor.device)


def _members(states: Tensor, place: Place) -> Tensor:
    """Which tokens belong to this one of several token segments: by the columns they use, else by its usual length."""
    if place.width < states.shape[-1]:
        return (states[..., place.width :] == 0).all(-1)
    wide = torch.ones(states.shape[:-1], dtype=torch.bool)
    if place.narrower:
        return wide & (states[..., place.narrower :] != 0).any(-1)
    wide[:, : place.start] = False
    if place.part < place.parts - 1:
        wide[:, place.start + place.length :] = False
    return wide
