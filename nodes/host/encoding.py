"""Steer what a CLIP gives, by an alignment that is made when it first encodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Mapping, MutableMapping
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...directions.alignment import Alignment
from ...directions.graph import HOST_MODE as NODE
from ...directions.joining import joined
from ..encoders.alignment import align_encoder
from ..encoders.entry import Entry, slot_content, tensor_of
from ..encoders.layout import Layout
from ..encoders.marks import marks, remember
from ..encoders.steering import Steering
from ..encoders.templates import Tokens
from ..encoders.typed import Typed, type_direction
from .server import Host

SECONDS = 60.0
"""That aligning to a new encoder may take, about."""


class Encoding:
    """What every CLIP of the process encodes, steered; `aligned` counts how often one got its alignment."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.aligned = 0
        self._known: MutableMapping[Any, tuple[tuple, Alignment, Layout]] = WeakKeyDictionary()

    def steered(self, clip: Any, tokens: Any, entry: Entry) -> Entry:
        """An entry that a CLIP made of tokens, steered and marked as host mode's; one that is, as it is.

        Raises:
            Unsteerable: the CLIP gives no states that depend on its prompt.
        """
        if any(record.host for record in marks(entry)):
            return entry
        aligned, layout = self._alignment(clip)
        entry = entry[0], {name: value for name, value in entry[1].items() if name != "cond"}
        masks = layout.content(tokens, {**entry[1], "cond": entry[0]})
        if unread(entry, aligned, masks):
            return entry  # without a mark: the sampler refuses it
        # Steered even where prompts are refused: it may be a negative prompt. The sampler refuses.
        on_flag = "report" if self.host.reports else "steer"
        steering = Steering(NODE, aligned, self.host.settings, on_flag, host=True)
        found = steering(entry, masks, give_back=True, same_text=lambda slot: layout.same_text(tokens, slot))
        remember(found[0], marks(found)[0])
        return found

    def _alignment(self, clip: Any) -> tuple[Alignment, Layout]:
        wanted = (self.host.fingerprint, self.host.policy.method)
        facts, known = (*wanted, *_facts(clip)), self._known.get(clip)
        if known is None or known[0] != facts:
            direction, also = self.host.direction, self.host.policy.also
            aligned = align_encoder(clip, direction, self.host.policy.method, SECONDS)
            if also:
                aligned = joined(aligned, type_direction(clip, Typed(also), direction))
            # The layout's own way to tokenize would hold the CLIP.
            layout = replace(Layout.known(clip, aligned.places), tokenize=_nothing)
            known = self._known[clip] = (facts, aligned, layout)
            self.aligned += 1
        return known[1:]


def _nothing(prompt: str) -> Tokens:
    return {}


def _facts(clip: Any) -> tuple:
    """What a node may change about a CLIP in place, so that it encodes otherwise."""
    patches = tuple((name, id(patch)) for name, patch in clip.patcher.object_patches.items())
    return clip.patcher.patches_uuid, clip.layer_idx, repr(clip.tokenizer_options), patches, id(clip.patcher.forced_hooks)


def unread(entry: Entry, aligned: Alignment, masks: Mapping[str, Tensor]) -> bool:
    """Whether nothing of the prompt is found, in states that aren't zeros and of tokens that aren't known."""
    here = [name for name, place in aligned.places.items() if place.length and tensor_of(entry, place.tensor) is not None]
    if not here or any(name in masks for name in here) or silent(entry):
        return False
    contents = (slot_content(entry, aligned, name) for name in here)
    return not any(content is not None and bool(content.any()) for content in contents)


def silent(entry: Entry) -> bool:
    """Whether there are no states, or zeros alone: a model without a prompt, or a prompt that was zeroed out."""
    more = (value for name, value in entry[1].items() if name == "pooled_output" or name.startswith("conditioning"))
    return not any(torch.is_tensor(value) and bool(value.any()) for value in (entry[0], *more))
