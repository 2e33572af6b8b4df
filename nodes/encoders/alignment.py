"""Fit a direction to a loaded text encoder, once, and know that encoder again."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ...directions.align import align
from ...directions.aligned import AlignedDirection
from ...directions.direction import Direction
from ...directions.edges import EdgeBank
from ...directions.edges import read as read_edges
from ...directions.encoder import PROBE_PROMPT, AlignedEncoder, Place, load_aligned_encoder
from ...directions.files import DirectionFormatError
from . import layout
from .batching import BatchReader
from .identity import identify
from .steering import StaleAlignment, unsteered

REPORT = 16
PADDING_PROMPTS, PADDING_ROWS = 36, 24
EDGE_PROMPTS = 1024  # anchors whose edge states are kept; about half of them score low enough to land on
MEMORY, USUAL_TOKENS = 3 * 2**30, 12  # bytes of anchor states at a time; content tokens of an anchor
FORMAT = 6  # of what is kept: named for the encoder itself


def align_encoder(clip: Any, direction: Direction, method: str) -> AlignedEncoder:
    """The alignment of `direction` to `clip`: from the cache if it was made before, else made and kept.

    Raises:
        ValueError: the CLIP gives no text conditioning, or none that depends on its prompt.
    """
    clip = unsteered(clip)
    kind = _kind(direction, method)
    identity = identify(clip)
    kept = _kept_for(kind, identity, direction)
    if kept is not None:
        return kept
    edges = layout.find_edges(clip)
    tokens = clip.tokenize(PROBE_PROMPT)
    output = layout.encode(clip, tokens)
    if "cond" not in layout.slots(output):
        raise ValueError(f"this CLIP gives {sorted(output)} and no `cond` tensor to steer")
    places = layout.find_places(clip, edges)
    if not any(place.tensor == "cond" for place in places.values()):
        raise ValueError("this CLIP's `cond` doesn't depend on the prompt: there is nothing to steer")
    probes = {name: rows.mean(0) for name, rows in _rows(tokens, output, places, edges).items()}
    aligned = _kept_like(kind, direction, places, probes) or _align(clip, direction, method, places, probes, edges)
    try:
        aligned.save(_folder() / f"{kind}-{identity or _hash_of(probes)}.safetensors")
    except OSError as error:
        logging.warning("safety-directions: the alignment works but can't be kept (%s); it is made again next time", error)
    return aligned


def _align(
    clip: Any, direction: Direction, method: str, places: Mapping[str, Place], probes: Mapping[str, Tensor], edges: Mapping[str, layout.Edges]
) -> AlignedEncoder:
    slots: dict[str, AlignedDirection] = {}
    banks: dict[str, EdgeBank] = {}
    for some in _affordable(places, len(direction.anchor_prompts)):
        plain = (~direction.mentioned).nonzero().flatten().tolist()
        states, edge_states = _anchor_states(clip, direction.anchor_prompts, some, edges, plain)
        for name in list(states):
            rows = states.pop(name)
            slots[name] = align(direction, rows, method)
            bank = _edge_bank(slots[name], rows, edge_states[name])
            if bank.roles:
                banks[name] = bank
    padding = _padding(clip, direction.anchor_prompts, places, edges)
    return AlignedEncoder(slots=slots, places=places, probes=probes, padding=padding, edges=banks)


def _edge_bank(slot: AlignedDirection, rows: Sequence[Tensor], edge_states: Mapping[int, Mapping[int, Tensor]]) -> EdgeBank:
    """Of the anchors that score below average, whose own states are `rows` and whose edge states are kept by index."""
    harmless = [index for index in sorted(edge_states) if edge_states[index] and slot.prompt_score(rows[index]) < 0]
    means = torch.stack([rows[index].mean(0) for index in harmless]) if harmless else torch.empty(0, slot.width)
    return EdgeBank.of(means, [edge_states[index] for index in harmless])


def fingerprint(clip: Any, aligned: AlignedEncoder) -> dict[str, Tensor]:
    """A CLIP's mean states on the probe prompt, where `aligned` has its slots; see `AlignedEncoder.fits`."""
    clip = unsteered(clip)
    tokens = clip.tokenize(PROBE_PROMPT)
    output = layout.encode(clip, tokens)
    return {name: rows.mean(0) for name, rows in _rows(tokens, output, aligned.places, layout.find_edges(clip)).items()}


def check_encoder(clip: Any, aligned: AlignedEncoder) -> None:
    """Raise StaleAlignment when `aligned` was made for another encoder, or for this one before a LoRA or another layer changed it."""
    probes = fingerprint(clip, aligned)
    if not aligned.fits(probes):
        expected, found = ({name: len(probe) for name, probe in some.items()} for some in (aligned.probes, probes))
        what = f"slots {expected}, this one has {found}" if expected != found else "other weights: another encoder, a LoRA, or another layer"
        raise StaleAlignment(f"this alignment was made for an encoder with {what}. Connect Align Safety Direction to the CLIP that comes in here")


def _rows(tokens: Any, output: Mapping[str, Any], places: Mapping[str, Place], edges: Mapping[str, layout.Edges]) -> dict[str, Tensor]:
    """One prompt's content states by slot, [T, W] in float32 on the CPU; those that its output has."""
    masks = layout.content_of_tokens(tokens, places, edges, output)
    rows = {}
    for name, place in places.items():
        value = output.get(place.tensor)
        if not torch.is_tensor(value) or value.shape[-1] != place.columns:
            continue
        if value.dim() == 2:
            rows[name] = value[:1].float().cpu()
            continue
        states = (value[0] if place.layer is None else value[0, place.layer])[:, : place.width].float().cpu()
        own = states[masks[name]] if name in masks else states
        rows[name] = own if len(own) else states
    return rows


def _affordable(places: Mapping[str, Place], prompts: int) -> Iterator[dict[str, Place]]:
    """The slots in groups whose states fit into memory together; a stack of 32 layers would want 25 GB at once."""
    group: dict[str, Place] = {}
    for name, place in places.items():
        group[name] = place
        if sum(p.width for p in group.values()) * prompts * USUAL_TOKENS * 4 > MEMORY:
            yield group
            group = {}
    if group:
        yield group


def _edge_rows(tokens: Any, output: Mapping[str, Any], places: Mapping[str, Place], edges: Mapping[str, layout.Edges]) -> dict[str, dict[int, Tensor]]:
    """One prompt's edge states by slot and role, in float32 on the CPU."""
    found: dict[str, dict[int, Tensor]] = {}
    for name, mask in layout.content_of_tokens(tokens, places, edges, output).items():
        place, value = places[name], output[places[name].tensor]
        if value.shape[-1] != place.columns or not mask.any():
            continue
        states = (value[0] if place.layer is None else value[0, place.layer])[:, : place.width].float().cpu()
        found[name] = read_edges(states, layout.edge_positions(mask, layout.attended(value, place, output)[0], place))
    return found


def _anchor_states(
    clip: Any, prompts: Sequence[str], places: Mapping[str, Place], edges: Mapping[str, layout.Edges], plain: Sequence[int]
) -> tuple[dict[str, list[Tensor]], dict[str, dict[int, dict[int, Tensor]]]]:
    """Each prompt's content states by slot, in order; and by slot and index the edge states of some, evenly drawn from the `plain` ones."""
    tokens = [clip.tokenize(prompt) for prompt in prompts]
    states: dict[str, list[Tensor]] = {name: [torch.empty(0)] * len(prompts) for name in places}
    edge_states: dict[str, dict[int, dict[int, Tensor]]] = {name: {} for name in places}
    drawn = {id(tokens[i]): i for i in plain[:: -(-len(plain) // EDGE_PROMPTS)]}

    def read(entry: Any, output: Mapping[str, Any], index: int | None = None) -> dict[str, Tensor]:
        index = drawn.get(id(entry)) if index is None else index
        if index is not None:
            for name, own in _edge_rows(entry, output, places, edges).items():
                edge_states[name].setdefault(index, own)
        return _rows(entry, output, places, edges)

    bar = comfy.utils.ProgressBar(len(prompts))
    reader = BatchReader(clip, read)
    for done, (index, rows) in enumerate(reader.read(tokens), 1):
        if len(rows) < len(places):
            # Some encoders fill a slot only from text in quotation marks.
            quoted = clip.tokenize(f'a sign that says "{prompts[index]}"')
            rows = read(quoted, layout.encode(clip, quoted), drawn.get(id(tokens[index]))) | rows
        for name, own in rows.items():
            states[name][index] = own
        if done % REPORT == 0 or done == len(prompts):
            bar.update_absolute(done)
    return states, edge_states


def _padding(clip: Any, prompts: Sequence[str], places: Mapping[str, Place], edges: Mapping[str, layout.Edges]) -> dict[str, Tensor]:
    """Readers that tell content from padding, for the slots that need one; from prompts of all lengths."""
    wanted = {name: place for name, place in places.items() if place.unmasked}
    kept: dict[str, tuple[list[Tensor], list[Tensor]]] = {name: ([], []) for name in wanted}
    for count in range(PADDING_PROMPTS if wanted else 0):
        words = " ".join(prompts[(count + i) % len(prompts)] for i in range(1 + count % 6)).split()
        tokens = clip.tokenize(" ".join(words[: 2 + 2 * count]))
        output = layout.encode(clip, tokens)
        for name, mask in layout.content_of_tokens(tokens, wanted, edges, output).items():
            place = wanted[name]
            value = output[place.tensor] if place.layer is None else output[place.tensor][:, place.layer]
            rest = layout.content_of_states(output[place.tensor], replace(place, after=0), {})[0].cpu() & ~mask
            own = value[0, :, : place.width].float().cpu()
            kept[name][0].append(own[mask])
            kept[name][1].append(own[rest][:: max(1, int(rest.sum()) // PADDING_ROWS)])
    return {name: layout.fit_padding(torch.cat(a), torch.cat(b)) for name, (a, b) in kept.items()}


def _folder() -> Path:
    return Path(folder_paths.get_user_directory()) / "safety_directions"


def _kind(direction: Direction, method: str) -> str:
    return hashlib.sha256(f"{FORMAT} {direction.fingerprint} {method}".encode()).hexdigest()[:20]


def _hash_of(probes: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(b"".join(probes[name].float().numpy().tobytes() for name in sorted(probes))).hexdigest()[:20]


def _read(path: Path, direction: Direction) -> AlignedEncoder | None:
    try:
        aligned = load_aligned_encoder(path)
    except (FileNotFoundError, DirectionFormatError):
        return None
    return aligned if aligned.direction.get("sha256") == direction.fingerprint else None


def _kept_for(kind: str, identity: str | None, direction: Direction) -> AlignedEncoder | None:
    """The alignment that was kept for this very encoder; nothing is encoded to find it."""
    return _read(_folder() / f"{kind}-{identity}.safetensors", direction) if identity else None


def _kept_like(kind: str, direction: Direction, places: Mapping[str, Place], probes: Mapping[str, Tensor]) -> AlignedEncoder | None:
    """An alignment that was kept for an encoder with the same states: the same weights in another precision, or in another file."""
    for path in sorted(_folder().glob(f"{kind}-*.safetensors")):
        aligned = _read(path, direction)
        if aligned is not None and aligned.fits(probes) and aligned.places == places:
            return aligned
    return None
