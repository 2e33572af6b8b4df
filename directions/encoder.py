"""An alignment for a whole text encoder: one aligned direction per slot, and how to recognise the encoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

import torch
from torch import Tensor

from . import files
from .aligned import AlignedDirection, check_packed, unpack

PROBE_PROMPT = "a red bicycle leaning on a stone wall"
SAME_ENCODER = 0.99


@dataclass(frozen=True)
class AlignedEncoder:
    """Aligned directions by slot (`cond`, `pooled_output`, ...).

    Attributes:
        slots: one AlignedDirection for each prompt-dependent tensor of the encoder's output.
        margins: tokens before and after the content of a sequence slot (start token, template), by slot.
        probes: the encoder's mean state on PROBE_PROMPT by slot, [W]: its fingerprint.
    """

    slots: Mapping[str, AlignedDirection]
    margins: Mapping[str, tuple[int, int]]
    probes: Mapping[str, Tensor]

    @property
    def direction(self) -> Mapping[str, Any]:
        """Name, source and fingerprint of the direction that was aligned."""
        return next(iter(self.slots.values())).direction

    @property
    def categories(self) -> tuple[str, ...]:
        """The category names, without `global`."""
        return next(iter(self.slots.values())).categories

    def fits(self, probes: Mapping[str, Tensor]) -> bool:
        """Whether an encoder that gives `probes` is the one that this was made for.

        The same weights in another precision still fit; other weights, also changed by a LoRA, do not.
        """
        if set(probes) != set(self.probes) or any(probes[s].shape != self.probes[s].shape for s in probes):
            return False
        similar = [torch.nn.functional.cosine_similarity(probes[s].float(), self.probes[s].float(), dim=0) for s in probes]
        return all(bool(value > SAME_ENCODER) for value in similar)

    def save(self, path: str | Path) -> Path:
        """Write the file, whole or not at all."""
        tensors: dict[str, Tensor] = {}
        metadata: dict[str, Any] = {}
        for slot, aligned in self.slots.items():
            packed, facts = aligned.pack()
            tensors |= {f"{slot}.{name}": tensor for name, tensor in packed.items()}
            tensors[f"{slot}.probe"] = self.probes[slot].float()
            metadata[slot] = {**facts, "margins": list(self.margins[slot])}
        return files.write(path, "aligned-encoder", tensors, {"slots": metadata})


def _by_slot(entries: Mapping[str, Any], slot: str) -> dict[str, Any]:
    return {name.removeprefix(f"{slot}."): entry for name, entry in entries.items() if name.startswith(f"{slot}.")}


def _fault(entries: Mapping[str, tuple], metadata: Mapping[str, Any]) -> str | None:
    slots = metadata.get("slots")
    if not isinstance(slots, dict) or not slots or not all(isinstance(f, dict) and s and "." not in s for s, f in slots.items()):
        return "the metadata's slots are not an object of named objects"
    if {name.rpartition(".")[0] for name in entries} != set(slots):
        return f"the tensors are not those of the slots {sorted(slots)}"
    for slot, facts in slots.items():
        own = _by_slot(entries, slot)
        probe = own.pop("probe", (None, ()))
        fault = check_packed(own, facts)
        if fault:
            return f"slot {slot[:40]!r}: {fault}"
        if probe[1] != own["center"][1]:
            return f"slot {slot[:40]!r}: the probe has shape {list(probe[1])}, not {list(own['center'][1])}"
        margins = facts.get("margins")
        if not isinstance(margins, list) or len(margins) != 2 or not all(type(n) is int and 0 <= n < 10000 for n in margins):
            return f"slot {slot[:40]!r}: the margins are not two small whole numbers"
    return None


def load_aligned_encoder(path: str | Path) -> AlignedEncoder:
    """Read and check an alignment for a whole encoder.

    Raises:
        DirectionFormatError: what is wrong with the file, and where.
    """
    tensors, metadata = files.read(path, "aligned-encoder", _fault)
    slots, probes = {}, {}
    for slot, facts in metadata["slots"].items():
        own = _by_slot(tensors, slot)
        probes[slot] = own.pop("probe")
        slots[slot] = unpack(own, facts)
    margins = {slot: (facts["margins"][0], facts["margins"][1]) for slot, facts in metadata["slots"].items()}
    return AlignedEncoder(slots=slots, margins=margins, probes=probes)
