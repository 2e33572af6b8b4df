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
from ...directions.encoder import PROBE_PROMPT, AlignedEncoder, Place, load_aligned_encoder
from ...directions.files import DirectionFormatError
from . import layout
from .steering import unsteered

BATCH = 64
PADDING_PROMPTS, PADDING_ROWS = 36, 24
MEMORY, USUAL_TOKENS = 3 * 2**30, 12  # bytes of anchor states at a time; content tokens of an anchor
FORMAT = 2  # of what is kept: places rather than margins


def align_encoder(clip: Any, direction: Direction, method: str) -> AlignedEncoder:
    """The alignment of `direction` to `clip`: from the cache if it was made before, else made and kept.

    Raises:
        ValueError: the CLIP gives no text conditioning, or none that depends on its prompt.
    """
    clip = unsteered(clip)
    edges = layout.find_edges(clip)
    tokens = clip.tokenize(PROBE_PROMPT)
    output = layout.encode(clip, tokens)
    if "cond" not in layout.slots(output):
        raise ValueError(f"this CLIP gives {sorted(output)} and no `cond` tensor to steer")
    places = layout.find_places(clip, edges)
    if not any(place.tensor == "cond" for place in places.values()):
        raise ValueError("this CLIP's `cond` doesn't depend on the prompt: there is nothing to steer")
    probes = {name: rows.mean(0) for name, rows in _rows(tokens, output, places, edges).items()}
    cache = _cache_file(direction, probes, method)
    kept = _kept(cache, direction, places, probes)
    if kept is not None:
        return kept
    slots: dict[str, AlignedDirection] = {}
    for some in _affordable(places, len(direction.anchor_prompts)):
        states = _anchor_states(clip, direction.anchor_prompts, some, edges)
        slots |= {name: align(direction, states.pop(name), method) for name in list(states)}
    aligned = AlignedEncoder(
        slots=slots,
        places=places,
        probes=probes,
        padding=_padding(clip, direction.anchor_prompts, places, edges),
    )
    try:
        aligned.save(cache)
    except OSError as error:
        logging.warning("safety-directions: the alignment works but can't be kept (%s); it is made again next time", error)
    return aligned


def fingerprint(clip: Any, aligned: AlignedEncoder) -> dict[str, Tensor]:
    """A CLIP's mean states on the probe prompt, where `aligned` has its slots; see `AlignedEncoder.fits`."""
    clip = unsteered(clip)
    tokens = clip.tokenize(PROBE_PROMPT)
    output = layout.encode(clip, tokens)
    return {name: rows.mean(0) for name, rows in _rows(tokens, output, aligned.places, layout.find_edges(clip)).items()}


def check_encoder(clip: Any, aligned: AlignedEncoder) -> None:
    """Raise ValueError when `aligned` was made for another encoder, or for this one before a LoRA or another layer changed it."""
    probes = fingerprint(clip, aligned)
    if not aligned.fits(probes):
        expected, found = ({name: len(probe) for name, probe in some.items()} for some in (aligned.probes, probes))
        what = f"slots {expected}, this one has {found}" if expected != found else "other weights: another encoder, a LoRA, or another layer"
        raise ValueError(f"this alignment was made for an encoder with {what}. Connect Align Safety Direction to the CLIP that comes in here")


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


def _anchor_states(
    clip: Any, prompts: Sequence[str], places: Mapping[str, Place], edges: Mapping[str, layout.Edges]
) -> dict[str, list[Tensor]]:
    """Each prompt's content states by slot, in order; prompts of one length go through the encoder together."""
    tokens = [clip.tokenize(prompt) for prompt in prompts]
    groups: dict[Any, list[int]] = {}
    for index, entry in enumerate(tokens):
        groups.setdefault(_shape(entry) or index, []).append(index)
    batch = BATCH if list(places) == ["cond"] and _batches_agree(clip, tokens, groups) else 1
    states: dict[str, list[Tensor]] = {name: [torch.empty(0)] * len(prompts) for name in places}
    bar = comfy.utils.ProgressBar(len(prompts))
    for group in groups.values():
        for part in (group[at : at + batch] for at in range(0, len(group), batch)):
            comfy.model_management.throw_exception_if_processing_interrupted()
            for index, output in zip(part, _encode_together(clip, [tokens[i] for i in part])):
                rows = _rows(tokens[index], output, places, edges)
                if len(rows) < len(places):
                    # Some encoders fill a slot only from text in quotation marks.
                    quoted = clip.tokenize(f'a sign that says "{prompts[index]}"')
                    rows = _rows(quoted, layout.encode(clip, quoted), places, edges) | rows
                for name, own in rows.items():
                    states[name][index] = own
            bar.update(len(part))
    return states


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


def _shape(tokens: Mapping[str, list]) -> tuple[int, ...] | None:
    """Token counts of a prompt that fits one section per tokenizer; None for one that can't be batched."""
    if not isinstance(tokens, dict) or any(len(sections) != 1 for sections in tokens.values()):
        return None
    return tuple(len(sections[0]) for sections in tokens.values())


def _encode_together(clip, tokens: Sequence[Mapping[str, list]]) -> list[dict[str, Any]]:
    """Encode prompts of one length as the sections of one long prompt, which ComfyUI runs as a batch, and take them apart."""
    if len(tokens) == 1:
        return [clip.encode_from_tokens(tokens[0], return_dict=True)]
    output = clip.encode_from_tokens({key: [entry[key][0] for entry in tokens] for key in tokens[0]}, return_dict=True)
    cond, mask = output["cond"], output.get("attention_mask")
    conds = cond.reshape(len(tokens), -1, cond.shape[-1]).split(1)
    masks = [None] * len(tokens) if mask is None else mask.reshape(len(tokens), -1).split(1)
    return [{"cond": c, "attention_mask": m} for c, m in zip(conds, masks)]


def _batches_agree(clip, tokens: Sequence[Mapping[str, list]], groups: Mapping[Any, list[int]]) -> bool:
    """Whether this encoder gives the same states in a batch as one by one; encoders with other section rules don't."""
    pair = next((group[:2] for group in groups.values() if len(group) > 1), None)
    if pair is None:
        return False
    try:
        together = _encode_together(clip, [tokens[i] for i in pair])
    except (RuntimeError, KeyError, IndexError, TypeError):
        return False
    alone = [clip.encode_from_tokens(tokens[i], return_dict=True)["cond"] for i in pair]
    return all(t["cond"].shape == a.shape and torch.allclose(t["cond"], a, atol=1e-4, rtol=1e-3) for t, a in zip(together, alone))


def _cache_file(direction: Direction, probes: Mapping[str, Tensor], method: str) -> Path:
    """Where an alignment is kept: named for what it is made of and for the encoder's shape, then for its very states."""
    kind = hashlib.sha256(f"{FORMAT} {direction.fingerprint} {method} {[(name, len(probes[name])) for name in sorted(probes)]}".encode())
    states = hashlib.sha256(b"".join(probes[name].float().numpy().tobytes() for name in sorted(probes)))
    return Path(folder_paths.get_user_directory()) / "safety_directions" / f"{kind.hexdigest()[:20]}-{states.hexdigest()[:20]}.safetensors"


def _kept(cache: Path, direction: Direction, places: Mapping[str, Place], probes: Mapping[str, Tensor]) -> AlignedEncoder | None:
    """An alignment that was kept and fits: this encoder's own, or that of the same weights in another precision."""
    others = sorted(cache.parent.glob(f"{cache.name.partition('-')[0]}-*.safetensors"))
    for path in [cache, *(other for other in others if other != cache)]:
        try:
            aligned = load_aligned_encoder(path)
        except (FileNotFoundError, DirectionFormatError):
            continue
        if aligned.fits(probes) and aligned.places == places and aligned.direction.get("sha256") == direction.fingerprint:
            return aligned
    return None
