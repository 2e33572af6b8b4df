"""An encoder's alignment: its slots together, how to recognise the encoder, and the file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Mapping, Sequence

import torch
from torch import Tensor

from . import files
from .alignment_format import EDGES, by_slot, encoder_fault
from .direction_format import GLOBAL
from .eight_bits import packed, unpacked
from .languages import unread
from .place import Place
from .slot import SlotAlignment
from .slot_format import pack, packed_fault, unpack
from .special_tokens import SpecialTokenBank
from .steer import SteeringSettings, steer
from .verdict import Calibrations, Verdict

PROBE_PROMPT = 'a red bicycle leaning on a wall that says "open" in spring'
"""Its states tell encoders apart. The quotes are for encoders that fill a slot from lettering alone."""

SAME_ENCODER = 0.99
"""Cosine of two probes, from the benign centre, above which they are the same encoder's: 8 bit roundings of its weights lie
above, a LoRA of a tenth of their size and 4 bits below (tests/test_alignment.py)."""

States = Tensor | Mapping[str, Tensor]
Masks = Tensor | Mapping[str, Tensor] | None

STATES = "states"
"""The slot's name where an alignment was made for states without an encoder."""


@dataclass(frozen=True)
class Alignment:
    """A direction fitted to a text encoder: one SlotAlignment for each prompt-dependent tensor of its output.

    Attributes:
        slots: by name (`cond`, `pooled_output`, ...).
    """

    slots: Mapping[str, SlotAlignment]

    @property
    def slot(self) -> SlotAlignment:
        """The only slot.

        Raises:
            ValueError: there are several.
        """
        if len(self.slots) != 1:
            raise ValueError(f"this alignment has the slots {', '.join(self.slots)}: say which")
        return next(iter(self.slots.values()))

    @property
    def direction(self) -> Mapping[str, Any]:
        """Name, source and fingerprint of the direction that was aligned."""
        return next(iter(self.slots.values())).direction

    @property
    def names(self) -> tuple[str, ...]:
        """`global`, then the categories."""
        return next(iter(self.slots.values())).names

    @property
    def categories(self) -> tuple[str, ...]:
        """The category names, without `global`."""
        return self.names[1:]

    @property
    def fit(self) -> Mapping[str, Any]:
        """Held-out figures of the only slot: method, r2, top1, and the same for each method tried."""
        return self.slot.fit

    @property
    def unread_languages(self) -> list[str]:
        """The languages, of those that anchors are in, that no slot reads better than chance: nothing is found in them."""
        by_slot = [set(unread(slot.fit.get("languages", {}))) for slot in self.slots.values()]
        return sorted(set.intersection(*by_slot))

    @property
    def places(self) -> dict[str, Place]:
        """Where each slot lies in the encoder's output."""
        return {name: slot.place for name, slot in self.slots.items() if slot.place is not None}

    @property
    def probes(self) -> dict[str, Tensor]:
        """The encoder's mean state on PROBE_PROMPT by slot, [W]."""
        return {name: slot.probe for name, slot in self.slots.items() if slot.probe is not None}

    @cached_property
    def calibrations(self) -> Calibrations:
        """Harmless prompts' scores for any of the slots together."""
        return Calibrations(self.slots)

    def score(self, states: Tensor, category: str | None = None) -> Tensor:
        """Score tokens of the only slot: [..., T, W] -> [..., T], in benign standard deviations; positive is unsafe."""
        return self.slot.score(states, category)

    def prompt_scores(self, states: States, masks: Masks = None) -> Tensor:
        """Score prompts by every name: -> [..., K], in standard deviations of everyday harmless prompts; positive is unsafe.

        The scores of the slots that are given are one: a prompt has one verdict. Each row of a batch is a prompt of its own.

        Args:
            states: [..., T, W] of the only slot, or those of several by name.
            masks: bool [..., T], the prompts' own tokens, in the same form; None is all.
        """
        rows, content = self._by_slot(states, masks)
        scores = [self.slots[name].prompt_scores(own, content.get(name)) for name, own in rows.items()]
        return self.calibrations.of(list(rows)).scores(scores)

    def prompt_score(self, states: States, category: str | None = None, mask: Masks = None) -> Tensor:
        """Score prompts: [..., T, W] -> [...]; see `prompt_scores`.

        Without a category (or for `global`) the global reading and the highest category's are added.
        """
        return self.prompt_scores(states, mask)[..., self._index(category or GLOBAL)]

    def threshold(self, budget: float, category: str | None = None) -> float:
        """The prompt score that a share `budget` of everyday harmless prompts exceeds; of all slots together."""
        name = category or GLOBAL
        self._index(name)
        return self.calibrations.of(list(self.slots)).threshold(budget, name)

    def flagged(
        self, states: States, budget: float, categories: Sequence[str] | None = None, mask: Masks = None
    ) -> Tensor:
        """Which prompts score above the threshold of any of `categories` (default: global): [..., T, W] -> bool [...].

        Several categories share the budget evenly, so that together they stay within it.
        """
        return self.verdict(states, budget, categories, mask).flagged

    def verdict(
        self, states: States, budget: float, categories: Sequence[str] | None = None, masks: Masks = None
    ) -> Verdict:
        """Which prompts are flagged, and how unsafe they are; see `Verdict`."""
        names = next(iter(self.slots.values())).chosen(categories)
        slots = list(states) if isinstance(states, Mapping) else list(self.slots)
        return self.calibrations.of(slots).verdict(self.prompt_scores(states, masks), budget, names)

    def steer(
        self,
        states: States,
        alpha: float = 5.0,
        mode: str = "add",
        categories: Sequence[str] | None = None,
        mask: Masks = None,
        budget: float = 0.01,
    ) -> Any:
        """Move states to the safe side; same form, shape, dtype and device.

        Args:
            states: [..., T, W] of the only slot, or those of several by name: a prompt is then steered in all or none.
            alpha: strength in pooled benign spreads; negative moves to the unsafe side ("add").
            mode: "add" (the paper), "project" (one-sided, to the benign level), "gate" (flagged prompts only, landing among
                benign states; everything else comes out bit-identical) or "graded" (strength grows with the prompt's score
                from nothing at a floor, and it lands above the threshold).
            categories: which directions; None is the global one.
            mask: bool [..., T], true on the tokens that may move, in the form of the states; None is all.
            budget: share of everyday harmless prompts that may be flagged, or of benign tokens ("project").

        Raises:
            ValueError: a width, mask, mode, category, budget or strength that doesn't fit; it says which.
        """
        chosen = next(iter(self.slots.values())).chosen(categories) if categories else None
        settings = SteeringSettings(mode, alpha, chosen, budget)
        settings.check()
        rows, content = self._by_slot(states, mask)
        verdict = self.verdict(states, budget, categories, mask) if settings.judges else None
        steered = {
            name: steer(self.slots[name], own, settings, content.get(name), verdict) for name, own in rows.items()
        }
        return steered if isinstance(states, Mapping) else next(iter(steered.values()))

    def _by_slot(self, states: States, masks: Masks) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        if not isinstance(states, Mapping):
            name = next(iter(self.slots))
            self.slot.check(states)
            return {name: states}, {} if masks is None else {name: masks}  # type: ignore[dict-item]
        if not states or not set(states) <= set(self.slots):
            raise ValueError(f"states of {', '.join(states) or 'no slot'}: this alignment has {', '.join(self.slots)}")
        if masks is not None and not isinstance(masks, Mapping):
            raise ValueError("masks of several slots are given by name, as their states are")
        return states, masks or {}

    def _index(self, name: str) -> int:
        return next(iter(self.slots.values())).index(name)

    def fits(self, probes: Mapping[str, Tensor]) -> bool:
        """Whether an encoder that gives `probes` is the one that this was made for.

        The same weights in another precision still fit; other weights, also changed by a LoRA, do not.
        """
        own = self.probes
        if set(probes) != set(own) or any(probes[s].shape != own[s].shape for s in probes):
            return False
        # From the benign centre: what all prompts share, often a few huge dimensions, would hide every difference.
        offsets = [(probes[s].float() - self.slots[s].center, own[s].float() - self.slots[s].center) for s in probes]
        return all(bool(torch.nn.functional.cosine_similarity(a, b, dim=0) > SAME_ENCODER) for a, b in offsets)

    def save(self, path: str | Path) -> Path:
        """Write the file, whole or not at all."""
        if list(self.slots) == [STATES] and not self.places:
            return files.write(path, "aligned", *pack(self.slot))
        tensors: dict[str, Tensor] = {}
        metadata: dict[str, Any] = {}
        for name, slot in self.slots.items():
            own, facts = pack(slot)
            if slot.place is not None and slot.probe is not None:
                own["probe"], facts["place"] = slot.probe.float(), slot.place.pack()
            if slot.padding is not None:
                own["padding"] = slot.padding.float()
            if slot.special_tokens is not None:
                own |= packed(EDGES[0], slot.special_tokens.prompts) | packed(EDGES[1], slot.special_tokens.states)
                facts["edge_roles"] = list(slot.special_tokens.roles)
            tensors |= {f"{name}.{part}": tensor for part, tensor in own.items()}
            metadata[name] = facts
        return files.write(path, "aligned-encoder", tensors, {"slots": metadata})


def load_aligned(path: str | Path) -> Alignment:
    """Read and check an alignment, for states or for an encoder.

    Raises:
        DirectionFormatError: what is wrong with the file, and where.
    """
    tensors, metadata = files.read(path, {"aligned": packed_fault, "aligned-encoder": encoder_fault})
    file = Path(path).name
    if metadata["kind"] == "aligned":
        return Alignment({STATES: unpack(tensors, metadata, file)})
    parts = by_slot(tensors)
    return Alignment({name: _unpack_slot(parts[name], facts, file) for name, facts in metadata["slots"].items()})


def load_aligned_encoder(path: str | Path) -> Alignment:
    """Read and check an alignment for an encoder.

    Raises:
        DirectionFormatError: what is wrong with the file, and where; also one that was made for states alone.
    """
    aligned = load_aligned(path)
    if set(aligned.places) != set(aligned.slots):
        raise files.DirectionFormatError(f"{Path(path).name}: it was made for states, not for an encoder")
    return aligned


def load_states(path: str | Path) -> Tensor:
    """Read a target's pooled states from a safetensors file with one tensor `states` [N, W].

    Raises:
        DirectionFormatError: not a safetensors file, or no such tensor.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as stream:
            return stream.get_tensor("states")
    except SafetensorError as error:
        raise files.DirectionFormatError(f"{Path(path).name}: {error}") from None


def _unpack_slot(own: dict[str, Tensor], facts: Mapping[str, Any], file: str) -> SlotAlignment:
    probe, padding, special = own.pop("probe", None), own.pop("padding", None), None
    if "edge_roles" in facts:
        prompts, states = (unpacked(own, name, file) for name in EDGES)
        special = SpecialTokenBank(prompts, states, tuple(facts["edge_roles"]))
    place = Place.unpack(facts["place"]) if "place" in facts else None
    return replace(unpack(own, facts, file), place=place, probe=probe, padding=padding, special_tokens=special)
