"""An encoder's alignment: its slots together, how to recognise the encoder, and the file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Mapping, Sequence

import torch
from torch import Tensor

from . import files
from .direction import GLOBAL
from .place import Place, is_packed_place
from .slot import SlotAlignment, pack, packed_fault, unpack
from .special_tokens import MAX_ROLES, SpecialTokenBank
from .steer import SteeringSettings, steer

PROBE_PROMPT = 'a red bicycle leaning on a wall that says "open" in spring'
"""Its states tell encoders apart. The quotes are for encoders that fill a slot from lettering alone."""

SAME_ENCODER = 0.99
"""Cosine of two probes, from the benign centre, above which they are the same encoder's: 8 bit roundings of its weights lie
above, a LoRA of a tenth of their size and 4 bits below (tests/test_alignment.py)."""

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
    def places(self) -> dict[str, Place]:
        """Where each slot lies in the encoder's output."""
        return {name: slot.place for name, slot in self.slots.items() if slot.place is not None}

    @property
    def probes(self) -> dict[str, Tensor]:
        """The encoder's mean state on PROBE_PROMPT by slot, [W]."""
        return {name: slot.probe for name, slot in self.slots.items() if slot.probe is not None}

    def score(self, states: Tensor, category: str | None = None) -> Tensor:
        """Score tokens: [..., T, W] -> [..., T], in benign standard deviations; positive is unsafe."""
        return self.slot.score(states, category)

    def prompt_score(self, states: Tensor, category: str | None = None, mask: Tensor | None = None) -> Tensor:
        """Score prompts: [..., T, W] -> [...], in benign standard deviations; positive is unsafe.

        Without a category (or for `global`) the global reading and the highest category's are added.
        """
        return self.slot.prompt_scores(states, (category or GLOBAL,), mask)[..., 0]

    def threshold(self, budget: float, category: str | None = None) -> float:
        """The prompt score that a share `budget` of benign anchors exceeds."""
        return self.slot.threshold(budget, category)

    def flagged(
        self, states: Tensor, budget: float, categories: Sequence[str] | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Which prompts score above the threshold of any of `categories` (default: global): [..., T, W] -> bool [...].

        Several categories share the budget evenly, so that together they stay within it.
        """
        return self.slot.flagged(states, budget, self.slot.chosen(categories), mask)

    def steer(
        self,
        states: Tensor,
        alpha: float = 5.0,
        mode: str = "add",
        categories: Sequence[str] | None = None,
        mask: Tensor | None = None,
        budget: float = 0.01,
    ) -> Tensor:
        """Move states to the safe side; same shape, dtype and device.

        Args:
            states: [..., T, W].
            alpha: strength in pooled benign spreads; negative moves to the unsafe side ("add").
            mode: "add" (the paper), "project" (one-sided, to the benign level) or "gate" (flagged
                prompts only, landing among benign states; everything else comes out bit-identical).
            categories: which directions; None is the global one.
            mask: bool [..., T], true on the tokens that may move; None is all.
            budget: share of benign prompts that may be flagged ("gate"), or of benign tokens ("project").

        Raises:
            ValueError: a width, mask, mode, category, budget or strength that doesn't fit; it says which.
        """
        chosen = self.slot.chosen(categories) if categories else None
        return steer(self.slot, states, SteeringSettings(mode, alpha, chosen, budget), mask)

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
        if not self.places:
            return files.write(path, "aligned", *pack(self.slot))
        tensors: dict[str, Tensor] = {}
        metadata: dict[str, Any] = {}
        for name, slot in self.slots.items():
            own, facts = pack(slot)
            assert slot.place is not None and slot.probe is not None
            own["probe"] = slot.probe.float()
            if slot.padding is not None:
                own["padding"] = slot.padding.float()
            if slot.special_tokens is not None:
                own |= {"edge_prompts": slot.special_tokens.prompts, "edge_states": slot.special_tokens.states}
                facts["edge_roles"] = list(slot.special_tokens.roles)
            tensors |= {f"{name}.{part}": tensor for part, tensor in own.items()}
            metadata[name] = {**facts, "place": slot.place.pack()}
        return files.write(path, "aligned-encoder", tensors, {"slots": metadata})


def load_aligned(path: str | Path) -> Alignment:
    """Read and check an alignment, for states or for an encoder.

    Raises:
        DirectionFormatError: what is wrong with the file, and where.
    """
    tensors, metadata = files.read(path, {"aligned": packed_fault, "aligned-encoder": _fault})
    file = Path(path).name
    if metadata["kind"] == "aligned":
        return Alignment({STATES: unpack(tensors, metadata, file)})
    parts = _by_slot(tensors)
    return Alignment({name: _unpack_slot(parts[name], facts, file) for name, facts in metadata["slots"].items()})


def load_aligned_encoder(path: str | Path) -> Alignment:
    """Read and check an alignment for an encoder.

    Raises:
        DirectionFormatError: what is wrong with the file, and where; also one that was made for states alone.
    """
    tensors, metadata = files.read(path, {"aligned-encoder": _fault})
    parts = _by_slot(tensors)
    return Alignment(
        {name: _unpack_slot(parts[name], facts, Path(path).name) for name, facts in metadata["slots"].items()}
    )


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
    probe, padding, special = own.pop("probe"), own.pop("padding", None), None
    if "edge_roles" in facts:
        special = SpecialTokenBank(own.pop("edge_prompts"), own.pop("edge_states"), tuple(facts["edge_roles"]))
    place = Place.unpack(facts["place"])
    return replace(unpack(own, facts, file), place=place, probe=probe, padding=padding, special_tokens=special)


def _by_slot(entries: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    slots: dict[str, dict[str, Any]] = {}
    for name, entry in entries.items():
        slot, _, part = name.rpartition(".")
        slots.setdefault(slot, {})[part] = entry
    return slots


def _fault(entries: Mapping[str, tuple], metadata: Mapping[str, Any]) -> str | None:
    slots = metadata.get("slots")
    if (
        not isinstance(slots, dict)
        or not slots
        or not all(isinstance(f, dict) and s and "." not in s for s, f in slots.items())
    ):
        return "the metadata's slots are not an object of named objects"
    if {name.rpartition(".")[0] for name in entries} != set(slots):
        return f"the tensors are not those of the slots {str(sorted(slots))[:400]}"
    parts = _by_slot(entries)
    return next((fault for slot, facts in slots.items() if (fault := _slot_fault(slot, parts[slot], facts))), None)


def _slot_fault(slot: str, own: dict[str, tuple], facts: Mapping[str, Any]) -> str | None:
    where = f"slot {slot[:40]!r}"
    probe, padding = own.pop("probe", ("F32", ())), own.pop("padding", ("F32", ()))
    prompts, states = own.pop("edge_prompts", None), own.pop("edge_states", None)
    fault = packed_fault(own, facts)
    if fault:
        return f"{where}: {fault}"
    width = own["center"][1][0]
    if probe != ("F32", (width,)):
        return f"{where}: the probe is {probe[0]} {list(probe[1])}, not F32 {[width]}"
    if padding not in (("F32", ()), ("F32", (width + 1,))):
        return f"{where}: the padding reader is {padding[0]} {list(padding[1])}, not F32 {[width + 1]}"
    if not _is_special_token_bank(prompts, states, facts.get("edge_roles"), width):
        found = f"{prompts} and {states} with roles {str(facts.get('edge_roles'))[:80]}"
        return f"{where}: the edge states {found} are not F16 [M, {width}] and [M, roles, {width}]"
    if not is_packed_place(facts.get("place"), slot, width):
        return f"{where}: the metadata's place is not what one is made of"
    return None


def _is_special_token_bank(prompts: tuple | None, states: tuple | None, roles: Any, width: int) -> bool:
    if prompts is None or states is None or roles is None:
        return (prompts, states, roles) == (None, None, None)
    if not isinstance(roles, list) or not roles or len(set(map(str, roles))) < len(roles):
        return False
    if not all(type(role) is int and abs(role) <= MAX_ROLES for role in roles):
        return False
    rows = prompts[1][0] if prompts[1] else 0
    return rows > 0 and prompts == ("F16", (rows, width)) and states == ("F16", (rows, len(roles), width))
