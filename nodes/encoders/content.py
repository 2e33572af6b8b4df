"""Which of an encoder's states are the prompt's own: exact where the tokens are known, else read off the states."""

from __future__ import annotations

import itertools
from typing import Any, Mapping, Sequence

import torch
from torch import Tensor

from ...directions.place import Place
from ...directions.special_tokens import find_special_tokens
from .templates import PICTURE, Template, Tokens, streams, unpadded

FIRST = 64
"""Columns that are looked at first for states of zeros."""

SIDES = range(8, 65)
"""Pixels along a side of the square that one state shows; encoders of today take 28 and 32."""

MARKED = 3
"""Tokens by which the end of what is cropped is found again: a chat's mark, its speaker and the new line."""

CERTAIN = 4.0
"""A state's padding score counts no more than this, so that one odd word doesn't outweigh the padding around it."""


def length_in(tokens: Tokens, place: Place) -> int:
    return min(sum(len(section) for section in tokens[key]) for key in place.keys) - place.shift


def placed(tokens: Tokens, place: Place, templates: Mapping[str, Template], start: int, length: int) -> Tensor:
    """The content of one part, bool [length], from its tokens."""
    mask = torch.zeros(length // place.stride, dtype=torch.bool)
    for key in place.keys:
        if key in streams(tokens):
            mask[_positions(tokens[key], place, templates[key], start // place.stride, len(mask))] = True
    own = mask.repeat_interleave(place.stride)
    return torch.cat([own, own.new_zeros(length - len(own))])


def _positions(
    sections: Sequence[Sequence[tuple]], place: Place, template: Template, start: int, length: int
) -> list[int]:
    """Where the content of one stream's sections lies among the states of a part."""
    starts = [sum(map(len, sections[:i])) for i in range(len(sections))]
    own = [begin + i for begin, section in zip(starts, sections) for i in template.content(section)]
    kinds = [kind for section in sections for kind in template.kinds(section)]
    pictures = [i for i, kind in enumerate(kinds) if kind == PICTURE]
    at = start - place.shift - (unpadded(kinds, template.pad)[0] if place.trimmed else 0)
    elsewhere = place.parts == 1 and not all(map(template.opens, sections))
    if elsewhere:  # a template of the prompt's own: what is cropped of it is only known from what is left
        at = length + place.cropped - len(kinds)
    if pictures:
        # A picture in the prompt is one token and many states; what comes after it moves back.
        sizes = [_size(token[0]) for section in sections for token in section if isinstance(token[0], dict)]
        total = length - start + place.cropped - len(kinds) + len(sizes)
        at, counts = _with_pictures(sizes, total, _drops(kinds, place, template))
        own_at = [start + at + i + sum(n - 1 for n, picture in zip(counts, pictures) if picture < i) for i in own]
    else:
        own_at = [at + i for i in own]
    inside = [i for i in own_at if 0 <= i < length]
    return list(range(length)) if elsewhere and own and not inside else inside


def _drops(kinds: Sequence[Any], place: Place, template: Template) -> list[int]:
    """How many tokens may be cropped at the front where there are pictures: up to the same tokens as without, or as many."""
    last = list(template.opening[max(0, place.shift - MARKED) : max(0, place.shift)])
    found = (i + len(last) for i in range(len(kinds)) if last and kinds[i : i + len(last)] == last)
    return [*itertools.islice(found, 1), place.shift]


def _size(picture: Mapping[str, Any]) -> tuple[int, int]:
    """A picture's height and width in pixels."""
    shapes = [value.shape for value in picture.values() if torch.is_tensor(value) and value.dim() > 2]
    return (shapes[0][-3], shapes[0][-2]) if shapes else (1, 1)


def _with_pictures(sizes: Sequence[tuple[int, int]], total: int, drops: Sequence[int]) -> tuple[int, list[int]]:
    """Where token 0 lies and how many states each picture has: one for each square of some side, else by area.

    Args:
        total: the pictures' states together, were nothing dropped.
        drops: how many tokens may be dropped at the front; the first that adds up is it.
    """
    for drop in drops:
        for side in SIDES:
            counts = [max(1, round(height / side)) * max(1, round(width / side)) for height, width in sizes]
            if sum(counts) == total + drop:
                return -drop, counts
    areas, all_of = [height * width for height, width in sizes], total + drops[0]
    stops = [round(all_of * sum(areas[: i + 1]) / sum(areas)) for i in range(len(areas))]
    return -drops[0], [stop - start for start, stop in zip([0, *stops], stops)]


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
        # Another pack's tokens can't be read: what is left out here is read from the states.
        if any(key not in templates for key in place.keys) or not any(key in streams(tokens) for key in place.keys):
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
        and mask.shape[-1] == states.shape[-2] > 0
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
