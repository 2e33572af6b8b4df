"""Which tensors of an encoder's output hold the prompt, and at which offset.

An encoder turns the streams of one or more tokenizers into tensors. Changing one token and looking at what changes tells
which tensor a stream goes into, at which offset, and what was cropped.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ...directions.place import Place
from .content import attended_states, length_in, placed
from .past import find_carriers
from .templates import Template, Tokens, streams, unpadded


class Unsteerable(ValueError):
    """A text encoder that gives no states: there is nothing to move. The message says what it gives instead."""


CHANGED = 1e-3
"""Of a state's size, from which it counts as changed: above what half precision rounds."""


def slots(output: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors that may hold a prompt: floating point [1, W], [1, T, W] or stacked layers [1, L, T, W]; masks left out."""
    return {
        name: value
        for name, value in output.items()
        if torch.is_tensor(value)
        and value.is_floating_point()
        and value.dim() in (2, 3, 4)
        and "mask" not in name
        and value.shape[-1] > 1
    }


def encode(clip: Any, tokens: Tokens) -> dict[str, Any]:
    return clip.encode_from_tokens(tokens, return_dict=True)


def find_places(
    clip: Any, templates: Mapping[str, Template], tokens: Tokens, output: Mapping[str, Any], more: Collection[str] = ()
) -> dict[str, Place]:
    """The slots of a CLIP's output that depend on the prompt, by name.

    Args:
        tokens, output: of the probe prompt.
        more: what else the CLIP may give besides.
    """
    found = slots(output)
    offsets: dict[str, dict[str, int]] = {name: {} for name in found}  # of a stream's tokens in a tensor
    strides: dict[str, int] = {}
    changed = dict.fromkeys(more, "")
    for key, sections in streams(tokens).items():
        content = templates[key].content(sections[0]) if key in templates else []
        if len(content) < 2:
            continue
        ends = [_with_another(clip, tokens, key, at, content) for at in (content[0], content[-1])]
        first, last = (_changes(found, slots(after)) for after in ends)
        for name in found:
            if min(first[name].max(), last[name].max()) > CHANGED:
                strides[name] = _stride(first[name], last[name], content, len(sections[0]))
                start, end = (rows.reshape(-1, strides[name]).amax(-1) for rows in (first[name], last[name]))
                offsets[name][key] = _offset(start, end, content)
        rest = (name for name in output if name not in found and "mask" not in name)
        changed |= {name: key for name in rest if _other(output[name], ends[0].get(name))}
    places: dict[str, Place] = {}
    for name, value in found.items():
        for place in _parts(name, value, offsets[name], tokens, output, templates, strides.get(name, 1)):
            places[place.name] = place
    carriers = find_carriers(tokens, templates, output, changed, lambda changed: encode(clip, changed))
    if carriers and not places:
        raise Unsteerable(
            f"this encoder hands the model the prompt's tokens ({', '.join(name for name, *_ in carriers)}) and no states: "
            "the model reads the prompt by itself. It can't be steered, nor refused by its score; use another model where "
            "prompts must be safe"
        )
    if carriers:
        first_place = max(places.values(), key=lambda place: (place.tensor == "cond", place.length > 0, -place.part))
        places[first_place.name] = replace(first_place, past=carriers)
    return places


def _other(before: Any, after: Any) -> bool:
    """Whether something that is no states changed: ids, numbers or text."""
    if torch.is_tensor(before) and torch.is_tensor(after):
        return before.shape != after.shape or not torch.equal(before, after)
    return (
        type(before) in (list, tuple, str, int, float) and type(before) is type(after) and repr(before) != repr(after)
    )


def _with_another(clip: Any, tokens: Tokens, key: str, at: int, content: Sequence[int]) -> dict[str, Any]:
    """A CLIP's output where one token is replaced by another of the prompt."""
    section = list(tokens[key][0])
    other = next(t for t in (section[i] for i in content) if isinstance(t[0], int) and t[0] != section[at][0])
    section[at] = (other[0], *section[at][1:])
    return encode(clip, {**tokens, key: [section, *tokens[key][1:]]})


def _changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How much each position of each tensor moves: [T] (or [1]), relative."""
    moved = {}
    for name, value in before.items():
        old, new = value.float().cpu(), after[name].float().cpu() if name in after else value.float().cpu()
        if old.shape != new.shape:
            moved[name] = torch.zeros(1)
            continue
        size = old.flatten(0, -2).norm(dim=-1).mean().clamp_min(1e-12)
        rows = (new - old).norm(dim=-1)[0] / size
        moved[name] = rows.mean(0) if rows.dim() == 2 else rows.reshape(-1)
    return moved


def _stride(first: Tensor, last: Tensor, content: Sequence[int], count: int) -> int:
    """How many states each token has: 1, but for encoders that give each a key and a value of its own."""
    each = len(first) // count
    if each < 2 or len(first) % count:
        return 1
    apart = int(last.argmax()) // each - int(first.argmax()) // each
    return each if apart == content[-1] - content[0] else 1


def _offset(first: Tensor, last: Tensor, content: Sequence[int]) -> int:
    """Where the stream's token 0 lies: a state shows the token it was read from most, or, when causal, first."""
    for own in (lambda rows: int(rows.argmax()), lambda rows: int((rows > CHANGED * rows.max()).nonzero()[0])):
        if own(last) - own(first) == content[-1] - content[0]:
            return own(first) - content[0]
    return int((first > CHANGED * first.max()).nonzero()[0]) - content[0]


def _parts(
    name: str,
    value: Tensor,
    offsets: Mapping[str, int],
    tokens: Tokens,
    output: Mapping[str, Any],
    templates: Mapping[str, Template],
    stride: int,
) -> Iterator[Place]:
    """The places in one tensor: one, or one for each of the segments that are joined along the tokens, and each layer."""
    if not offsets:
        return
    if value.dim() == 2:
        yield Place(name, tuple(offsets), columns=value.shape[-1], width=value.shape[-1])
        return
    groups: dict[int, list[str]] = {}
    for key, offset in offsets.items():
        groups.setdefault(offset, []).append(key)
    start = 0
    found: list[Place] = []
    for part, offset in enumerate(sorted(groups)):
        place = _segment(name, value, groups[offset], offset, part, len(groups), start, tokens, templates)
        place = replace(place, stride=stride, chunk=place.chunk * stride)
        stop = value.shape[-2] if part == len(groups) - 1 else start + length_in(tokens, place)
        found.append(_measured(place, value, start, stop, tokens, output, templates))
        start = stop
    layers = [None] if value.dim() == 3 else list(range(value.shape[1]))
    for place in found:
        narrower = max((other.width for other in found if other.width < place.width), default=0)
        for layer in layers:
            yield replace(place, layer=layer, narrower=narrower)


def _segment(
    name: str,
    value: Tensor,
    keys: Sequence[str],
    offset: int,
    part: int,
    parts: int,
    start: int,
    tokens: Tokens,
    templates: Mapping[str, Template],
) -> Place:
    """One segment, with what follows from its tokens."""
    pads = [unpadded(templates[key].kinds(tokens[key][0]), templates[key].pad)[0] for key in keys]
    # Left padding that isn't among the states: they are counted from the first real token.
    trimmed = part == 0 and min(pads) > 0 and offset <= -min(pads)
    shift = start - offset - (min(pads) if trimmed else 0)
    chunk = max(templates[key].chunk for key in keys)
    columns = value.shape[-1]
    return Place(name, tuple(keys), columns, columns, part=part, parts=parts, shift=shift, trimmed=trimmed, chunk=chunk)


def _measured(
    place: Place,
    value: Tensor,
    start: int,
    stop: int,
    tokens: Tokens,
    output: Mapping[str, Any],
    templates: Mapping[str, Template],
) -> Place:
    """A segment from `start` to `stop`, with what follows from its states."""
    states = value.reshape(-1, *value.shape[-2:])
    used = states[:, start:stop].abs().amax((0, 1)).nonzero()
    mine = torch.zeros(value.shape[-2], dtype=torch.bool)
    mine[start:stop] = True
    content = placed(tokens, place, templates, start, value.shape[-2]) & mine
    attended = attended_states(states[:1], place.tensor, output)[0] & mine
    ends = content.nonzero().flatten()
    head, tail = (int(ends[0]), int(ends[-1])) if len(ends) else (start, stop - 1)
    padded = any(templates[key].pads(tokens[key][0]) for key in place.keys)
    return replace(
        place,
        width=int(used.max()) + 1 if place.parts > 1 else place.columns,
        start=start,
        length=stop - start,
        before=int(attended[:head].sum()),
        after=int(attended[tail + 1 :].sum()),
        unmasked=padded and bool(attended[stop - 1]),
        cropped=max(0, length_in(tokens, place) - _left(tokens, place, templates) - (stop - start) // place.stride),
    )


def _left(tokens: Tokens, place: Place, templates: Mapping[str, Template]) -> int:
    """How much padding on the left is dropped besides."""
    pads = (unpadded(templates[key].kinds(tokens[key][0]), templates[key].pad)[0] for key in place.keys)
    return min(pads) if place.trimmed else 0
