"""An alignment for a whole text encoder: one aligned direction per slot, and how to recognise the encoder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Mapping

import torch
from torch import Tensor

from . import files
from .aligned import AlignedDirection, check_packed, unpack
from .edges import MAX_ROLES, EdgeBank

PROBE_PROMPT = 'a red bicycle leaning on a wall that says "open" in spring'
SAME_ENCODER = 0.99


@dataclass(frozen=True)
class Place:
    """Where a slot lies in an encoder's output, and where the prompt is in it.

    Attributes:
        tensor: its name in the output: `cond`, `pooled_output`, `conditioning_llama3`, ...
        keys: the tokenizers whose prompt it holds.
        columns: the tensor's last dimension.
        width: how many of them, from the first, this slot uses.
        layer: which of the stacked layers of a tensor [B, L, T, W].
        part, parts: which of the segments that are joined along the tokens.
        start, length: where the segment lay, and how long it was, for the probe prompt.
        narrower: the width of the other segments, if less.
        shift: tokens that the encoder drops at the front.
        trimmed: padding on the left is dropped too.
        before, after: attended states around the content, in each chunk.
        chunk: tokens per chunk, where long prompts are cut into several; else 0.
        unmasked: it is padded, and neither a mask nor zeros tell where.
    """

    tensor: str
    keys: tuple[str, ...]
    columns: int
    width: int
    layer: int | None = None
    part: int = 0
    parts: int = 1
    start: int = 0
    length: int = 0
    narrower: int = 0
    shift: int = 0
    trimmed: bool = False
    before: int = 0
    after: int = 0
    chunk: int = 0
    unmasked: bool = False

    @property
    def name(self) -> str:
        """The slot's name."""
        part = f":{'+'.join(self.keys)}" if self.parts > 1 else ""
        return f"{self.tensor}{part}" + ("" if self.layer is None else f"[{self.layer}]")


@dataclass(frozen=True)
class AlignedEncoder:
    """Aligned directions by slot (`cond`, `pooled_output`, ...).

    Attributes:
        slots: one AlignedDirection for each prompt-dependent tensor of the encoder's output.
        places: where each slot lies in the encoder's output.
        probes: the encoder's mean state on PROBE_PROMPT by slot, [W]: its fingerprint.
        padding: [W + 1] by slot, a linear reader that is positive on content, where a place is `unmasked`.
        edges: edge states of harmless prompts by slot, for those that have any which depend on the prompt.
    """

    slots: Mapping[str, AlignedDirection]
    places: Mapping[str, Place]
    probes: Mapping[str, Tensor]
    padding: Mapping[str, Tensor] = field(default_factory=dict)
    edges: Mapping[str, EdgeBank] = field(default_factory=dict)

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
        # From the benign centre: what all prompts share, often a few huge dimensions, would hide every difference.
        offsets = [(probes[s].float() - self.slots[s].center, self.probes[s].float() - self.slots[s].center) for s in probes]
        return all(bool(torch.nn.functional.cosine_similarity(found, own, dim=0) > SAME_ENCODER) for found, own in offsets)

    def save(self, path: str | Path) -> Path:
        """Write the file, whole or not at all."""
        tensors: dict[str, Tensor] = {}
        metadata: dict[str, Any] = {}
        for slot, aligned in self.slots.items():
            packed, facts = aligned.pack()
            tensors |= {f"{slot}.{name}": tensor for name, tensor in packed.items()}
            tensors[f"{slot}.probe"] = self.probes[slot].float()
            if slot in self.padding:
                tensors[f"{slot}.padding"] = self.padding[slot].float()
            if slot in self.edges:
                bank = self.edges[slot]
                tensors |= {f"{slot}.edge_prompts": bank.prompts, f"{slot}.edge_states": bank.states}
                facts = {**facts, "edge_roles": list(bank.roles)}
            metadata[slot] = {**facts, "place": {**asdict(self.places[slot]), "keys": list(self.places[slot].keys)}}
        return files.write(path, "aligned-encoder", tensors, {"slots": metadata})


def _by_slot(entries: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    slots: dict[str, dict[str, Any]] = {}
    for name, entry in entries.items():
        slot, _, part = name.rpartition(".")
        slots.setdefault(slot, {})[part] = entry
    return slots


def _is_place(value: Any, slot: str, width: int) -> bool:
    if not isinstance(value, dict) or set(value) != {f.name for f in fields(Place)} or not isinstance(value["tensor"], str):
        return False
    keys, layer = value["keys"], value["layer"]
    flags = all(isinstance(value[name], bool) for name in ("trimmed", "unmasked"))
    numbers = set(value) - {"tensor", "keys", "layer", "trimmed", "unmasked"}
    sizes = all(type(value[name]) is int and (-100_000 if name == "shift" else 0) <= value[name] < 1_000_000 for name in numbers)
    texts = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not (flags and sizes and texts and (layer is None or (type(layer) is int and 0 <= layer < 1000))):
        return False
    return value["width"] == width <= value["columns"] and value["part"] < value["parts"] and Place(**{**value, "keys": tuple(keys)}).name == slot


def _is_edge_bank(prompts: tuple | None, states: tuple | None, roles: Any, width: int) -> bool:
    if prompts is None or states is None or roles is None:
        return (prompts, states, roles) == (None, None, None)
    if not isinstance(roles, list) or not roles or not all(type(role) is int and abs(role) <= MAX_ROLES for role in roles) or len(set(roles)) < len(roles):
        return False
    rows = prompts[1][0] if prompts[1] else 0
    return rows > 0 and prompts == ("F16", (rows, width)) and states == ("F16", (rows, len(roles), width))


def _fault(entries: Mapping[str, tuple], metadata: Mapping[str, Any]) -> str | None:
    slots = metadata.get("slots")
    if not isinstance(slots, dict) or not slots or not all(isinstance(f, dict) and s and "." not in s for s, f in slots.items()):
        return "the metadata's slots are not an object of named objects"
    if {name.rpartition(".")[0] for name in entries} != set(slots):
        return f"the tensors are not those of the slots {str(sorted(slots))[:400]}"
    parts = _by_slot(entries)
    for slot, facts in slots.items():
        own = parts[slot]
        probe, padding = own.pop("probe", ("F32", ())), own.pop("padding", ("F32", ()))
        prompts, states = own.pop("edge_prompts", None), own.pop("edge_states", None)
        fault = check_packed(own, facts)
        if fault:
            return f"slot {slot[:40]!r}: {fault}"
        width = own["center"][1][0]
        if probe != ("F32", (width,)):
            return f"slot {slot[:40]!r}: the probe is {probe[0]} {list(probe[1])}, not F32 {[width]}"
        if padding not in (("F32", ()), ("F32", (width + 1,))):
            return f"slot {slot[:40]!r}: the padding reader is {padding[0]} {list(padding[1])}, not F32 {[width + 1]}"
        if not _is_edge_bank(prompts, states, facts.get("edge_roles"), width):
            found = f"{prompts} and {states} with roles {str(facts.get('edge_roles'))[:80]}"
            return f"slot {slot[:40]!r}: the edge states {found} are not F16 [M, {width}] and [M, roles, {width}]"
        if not _is_place(facts.get("place"), slot, width):
            return f"slot {slot[:40]!r}: the metadata's place is not what one is made of"
    return None


def load_aligned_encoder(path: str | Path) -> AlignedEncoder:
    """Read and check an alignment for a whole encoder.

    Raises:
        DirectionFormatError: what is wrong with the file, and where.
    """
    tensors, metadata = files.read(path, "aligned-encoder", _fault)
    slots, places, probes, padding, edges = {}, {}, {}, {}, {}
    parts = _by_slot(tensors)
    for slot, facts in metadata["slots"].items():
        own = parts[slot]
        probes[slot] = own.pop("probe")
        if "padding" in own:
            padding[slot] = own.pop("padding")
        if "edge_roles" in facts:
            edges[slot] = EdgeBank(own.pop("edge_prompts"), own.pop("edge_states"), tuple(facts["edge_roles"]))
        slots[slot] = unpack(own, facts, Path(path).name)
        places[slot] = Place(**{**facts["place"], "keys": tuple(facts["place"]["keys"])})
    return AlignedEncoder(slots=slots, places=places, probes=probes, padding=padding, edges=edges)
