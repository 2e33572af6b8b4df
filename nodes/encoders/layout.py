"""Where the prompt is in what a text encoder returns; learned by asking the encoder, so that a new one works unseen.

An encoder turns the streams of one or more tokenizers into tensors. Changing one token and looking at what changes tells
which tensor a stream goes into, at which offset, and what was cropped. The template, start and end tokens are what all
prompts have in common.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ...directions.edges import find as find_edge_states
from ...directions.encoder import PROBE_PROMPT, Place

# They share no first or last word, also between the quotes, which some encoders give to a second encoder for lettering.
PROBES = (PROBE_PROMPT, 'two cats asleep below the word "late" on blue paper', 'seven ships called "Ada" under heavy clouds')
LONG = " ".join(PROBES) * 12
CHANGED = 1e-3
FIRST = 64  # columns

Tokens = Mapping[str, list]


@dataclass(frozen=True)
class Edges:
    """What one tokenizer puts around every prompt: a padding token, and how many tokens of start or template and of end."""

    pad: int | None
    before: int
    after: int
    chunk: int  # tokens per chunk where long prompts are cut, else 0

    def content(self, section: Sequence[tuple]) -> range:
        """The prompt's own tokens in one section."""
        start, stop = unpadded(section, self.pad)
        return range(start + self.before, max(start + self.before, stop - self.after))


def unpadded(section: Sequence[tuple], pad: int | None) -> tuple[int, int]:
    """The section without its padding, which may be on the left: start, stop."""
    start, stop = 0, len(section)
    while pad is not None and stop > 0 and _is(section[stop - 1], pad):
        stop -= 1
    while pad is not None and start < stop and _is(section[start], pad):
        start += 1
    return start, stop


def _is(token: tuple, value: int | None) -> bool:
    return isinstance(token[0], int) and token[0] == value


def streams(tokens: Any) -> dict[str, list]:
    """The token streams among what a tokenizer gives: lists of sections of (token, weight, ...)."""
    if not isinstance(tokens, Mapping):
        return {}
    return {
        key: sections
        for key, sections in tokens.items()
        if isinstance(sections, list) and sections and all(isinstance(s, list) and all(isinstance(t, tuple) for t in s) for s in sections)
    }


def find_edges(clip: Any) -> dict[str, Edges]:
    """The edges of each of a CLIP's tokenizers."""
    probes = [streams(clip.tokenize(prompt)) for prompt in PROBES]
    long = streams(clip.tokenize(LONG))
    found = {}
    for key in probes[0]:
        sections = [probe[key][0] for probe in probes if key in probe]
        pad = _pad(sections)
        ids = [[t[0] for t in section[slice(*unpadded(section, pad))]] for section in sections]
        before = _common(ids)
        after = _common([row[before:][::-1] for row in ids])
        pieces = long.get(key, [[]])
        found[key] = Edges(pad, before, after, len(pieces[0]) if len(pieces) > 1 else 0)
    return found


def _pad(sections: Sequence[Sequence[tuple]]) -> int | None:
    """The token that a section ends with twice, or begins with twice."""
    for outer, next_to in ((-1, -2), (0, 1)):
        for section in sections:
            if len(section) > 1 and isinstance(section[outer][0], int) and section[outer][0] == section[next_to][0]:
                return section[outer][0]
    return None


def _common(rows: Sequence[Sequence[Any]]) -> int:
    count = 0
    for column in zip(*rows):
        if not all(isinstance(t, int) and t == column[0] for t in column):
            break
        count += 1
    return count


def slots(output: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors that may hold a prompt: floating point [1, W], [1, T, W] or stacked layers [1, L, T, W]; masks left out."""
    return {
        name: value
        for name, value in output.items()
        if torch.is_tensor(value) and value.is_floating_point() and value.dim() in (2, 3, 4) and "mask" not in name and value.shape[-1] > 1
    }


def encode(clip: Any, tokens: Tokens) -> dict[str, Any]:
    return clip.encode_from_tokens(tokens, return_dict=True)


def find_places(clip: Any, edges: Mapping[str, Edges]) -> dict[str, Place]:
    """The slots of a CLIP's output that depend on the prompt, by name."""
    tokens = clip.tokenize(PROBE_PROMPT)
    output = encode(clip, tokens)
    found = slots(output)
    offsets: dict[str, dict[str, int]] = {name: {} for name in found}  # of a stream's tokens in a tensor
    for key, sections in streams(tokens).items():
        content = list(edges[key].content(sections[0])) if key in edges else []
        if len(content) < 2:
            continue
        first, last = (_changes(clip, tokens, key, at, content, found) for at in (content[0], content[-1]))
        for name in found:
            if min(first[name].max(), last[name].max()) > CHANGED:
                offsets[name][key] = _offset(first[name], last[name], content)
    places: dict[str, Place] = {}
    for name, value in found.items():
        for place in _parts(name, value, offsets[name], tokens, output, edges):
            places[place.name] = place
    return places


def _changes(clip: Any, tokens: Tokens, key: str, at: int, content: Sequence[int], before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How much each position of each tensor moves when one token is replaced by another of the prompt: [T] (or [1]), relative."""
    section = list(tokens[key][0])
    other = next(t for t in (section[i] for i in content) if isinstance(t[0], int) and t[0] != section[at][0])
    section[at] = (other[0], *section[at][1:])
    after = slots(encode(clip, {**tokens, key: [section, *tokens[key][1:]]}))
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


def _offset(first: Tensor, last: Tensor, content: Sequence[int]) -> int:
    """Where the stream's token 0 lies: a state shows the token it was read from most, or, when causal, first."""
    for own in (lambda rows: int(rows.argmax()), lambda rows: int((rows > CHANGED * rows.max()).nonzero()[0])):
        if own(last) - own(first) == content[-1] - content[0]:
            return own(first) - content[0]
    return int((first > CHANGED * first.max()).nonzero()[0]) - content[0]


def _parts(
    name: str, value: Tensor, offsets: Mapping[str, int], tokens: Tokens, output: Mapping[str, Any], edges: Mapping[str, Edges]
) -> Iterator[Place]:
    if not offsets:
        return
    columns = value.shape[-1]
    if value.dim() == 2:
        yield Place(name, tuple(offsets), columns=columns, width=columns)
        return
    layers = [None] if value.dim() == 3 else list(range(value.shape[1]))
    groups: dict[int, list[str]] = {}
    for key, offset in offsets.items():
        groups.setdefault(offset, []).append(key)
    start = 0
    found: list[Place] = []
    for part, offset in enumerate(sorted(groups)):
        keys = groups[offset]
        pads = [unpadded(tokens[key][0], edges[key].pad)[0] for key in keys]
        # Left padding that isn't among the states: they are counted from the first real token.
        trimmed = part == 0 and min(pads) > 0 and offset <= -min(pads)
        shift = start - offset - (min(pads) if trimmed else 0)
        place = Place(
            tensor=name, keys=tuple(keys), columns=columns, width=columns, part=part, parts=len(groups), shift=shift, trimmed=trimmed,
            chunk=max(edges[key].chunk for key in keys),
        )  # fmt: skip
        stop = value.shape[-2] if part == len(groups) - 1 else start + _length(tokens, place)
        rows = value.reshape(-1, *value.shape[-2:])[:, start:stop]
        width = int(rows.abs().amax((0, 1)).nonzero().max()) + 1 if len(groups) > 1 else columns
        mine = torch.zeros(value.shape[-2], dtype=torch.bool)
        mine[start:stop] = True
        content = _placed(tokens, place, edges, start, value.shape[-2]) & mine
        attended = _attended(value.reshape(-1, *value.shape[-2:])[:1], name, output)[0] & mine
        ends = content.nonzero().flatten()
        head, tail = (int(ends[0]), int(ends[-1])) if len(ends) else (start, stop - 1)
        padded = [key for key in keys if unpadded(tokens[key][0], edges[key].pad)[1] < len(tokens[key][0])]
        masked = bool(padded) and not bool(attended[stop - 1])
        found.append(
            replace(
                place, width=width, start=start, length=stop - start, before=int(attended[:head].sum()),
                after=int(attended[tail + 1 :].sum()), unmasked=bool(padded) and not masked,
            )
        )
        start = stop
    for place in found:
        narrower = max((other.width for other in found if other.width < place.width), default=0)
        for layer in layers:
            yield replace(place, layer=layer, narrower=narrower)


def _length(tokens: Tokens, place: Place) -> int:
    return min(sum(len(section) for section in tokens[key]) for key in place.keys) - place.shift


def _placed(tokens: Tokens, place: Place, edges: Mapping[str, Edges], start: int, length: int) -> Tensor:
    """The content of one part, bool [length], from its tokens."""
    positions: list[int] = []
    for key in place.keys:
        if key not in streams(tokens):
            continue
        at = start - place.shift - (unpadded(tokens[key][0], edges[key].pad)[0] if place.trimmed else 0)
        total = sum(len(section) for section in tokens[key])
        # A picture in the prompt is one token and many states; what comes after it moves back.
        pictures = [i for i, token in enumerate(t for section in tokens[key] for t in section) if isinstance(token[0], dict)]
        extra = max(0, length - (total + at)) if pictures else 0
        index = 0
        for section in tokens[key]:
            for i in edges[key].content(section):
                position = index + i + at + (extra if pictures and index + i > pictures[-1] else 0)
                if 0 <= position < length and not isinstance(section[i][0], dict) and not (pictures and index + i < pictures[-1]):
                    positions.append(position)
            index += len(section)
    mask = torch.zeros(length, dtype=torch.bool)
    mask[positions] = True
    return mask


def content_of_tokens(tokens: Tokens, places: Mapping[str, Place], edges: Mapping[str, Edges], output: Mapping[str, Any]) -> dict[str, Tensor]:
    """The content of every sequence slot, bool [T], where the tokens are known: exact."""
    masks = {}
    starts: dict[str, int] = {}
    for slot, place in sorted(places.items(), key=lambda item: item[1].part):
        value = output.get(place.tensor)
        if not torch.is_tensor(value) or value.dim() < 3:
            continue
        if any(key not in edges for key in place.keys):
            continue
        start = starts.get(f"{place.tensor} {place.part}", 0)
        masks[slot] = _placed(tokens, place, edges, start, value.shape[-2])
        if place.part < place.parts - 1 and all(key in tokens for key in place.keys):
            starts[f"{place.tensor} {place.part + 1}"] = start + _length(tokens, place)
    return masks


def _attended(states: Tensor, name: str, extras: Mapping[str, Any]) -> Tensor:
    """bool [B, T]: not masked (`attention_mask` goes with `cond`, `attention_mask_x` with `conditioning_x`), not zeroed out."""
    mask = extras.get("attention_mask" + name.removeprefix("cond").removeprefix("itioning"))
    # Reading all of every state takes longer than steering: zeros are looked for among those that begin with zeros.
    seen = (states[..., :FIRST] != 0).any(-1)
    seen[~seen] = (states[~seen] != 0).any(-1)
    attended = seen.cpu()
    if torch.is_tensor(mask) and mask.shape[-1] == states.shape[-2] and mask.numel() in (attended.shape[-1], attended.numel()):
        attended = attended & mask.to("cpu").bool().reshape(-1, states.shape[-2])
    return attended


def attended(tensor: Tensor, place: Place, extras: Mapping[str, Any]) -> Tensor:
    """The states of a slot that aren't masked or zeroed out, own and edge, bool [B, T] on the CPU; tensor as in `content_of_states`."""
    states = tensor if place.layer is None else tensor[:, place.layer]
    mine = _attended(states, place.tensor, extras)
    return mine & _members(states.cpu(), place) if place.parts > 1 else mine


def edge_positions(content: Tensor, attended: Tensor, place: Place) -> dict[int, list[int]]:
    """Where one prompt's edge states stand, by role: content, attended are bool [T] on the CPU."""
    ends = 1 if place.unmasked else place.after
    return find_edge_states(content.tolist(), attended.tolist(), ends, place.unmasked, place.chunk)


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
                gain = torch.cat([torch.zeros(1), scores[b, inside].clamp(-4, 4).cumsum(0)])
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


def fit_padding(content: Tensor, padding: Tensor) -> Tensor:
    """A linear reader [W + 1], positive on content states [n, W] and negative on the padding's [m, W]: Fisher's discriminant."""
    a, b = content.double(), padding.double()
    within = torch.cat([a - a.mean(0), b - b.mean(0)])
    penalty = within.square().mean() * 0.1 + 1e-12
    difference = a.mean(0) - b.mean(0)
    # Woodbury where there are fewer rows than columns.
    if len(within) < within.shape[1]:
        gram = within @ within.T / len(within) + penalty * torch.eye(len(within), dtype=within.dtype)
        reader = (difference - within.T @ torch.linalg.solve(gram, within @ difference) / len(within)) / penalty
    else:
        cover = within.T @ within / len(within) + penalty * torch.eye(within.shape[1], dtype=within.dtype)
        reader = torch.linalg.solve(cover, difference)
    bias = -(reader @ (a.mean(0) + b.mean(0))) / 2
    scale = 1 / (reader @ difference).abs().clamp_min(1e-12) * 4
    return (torch.cat([reader, bias.reshape(1)]) * scale).float()
