"""What an alignment file for an encoder must hold: the check of its header, before anything is allocated."""

from __future__ import annotations

from typing import Any, Mapping

from .eight_bits import bytes_fault, grid_of
from .place import is_packed_place
from .slot_format import packed_fault
from .special_tokens import MAX_ROLES

EDGES = ("edge_prompts", "edge_states")
"""Harmless prompts' mean states, and those of their special tokens."""


def by_slot(entries: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Entries named `<slot>.<part>` as {slot: {part: entry}}."""
    slots: dict[str, dict[str, Any]] = {}
    for name, entry in entries.items():
        slot, _, part = name.rpartition(".")
        slots.setdefault(slot, {})[part] = entry
    return slots


def encoder_fault(entries: Mapping[str, tuple], metadata: Mapping[str, Any]) -> str | None:
    """What is wrong with the file, or None."""
    slots = metadata.get("slots")
    if (
        not isinstance(slots, dict)
        or not slots
        or not all(isinstance(f, dict) and s and "." not in s for s, f in slots.items())
    ):
        return "the metadata's slots are not an object of named objects"
    if {name.rpartition(".")[0] for name in entries} != set(slots):
        return f"the tensors are not those of the slots {str(sorted(slots))[:400]}"
    parts = by_slot(entries)
    fault = next((fault for slot, facts in slots.items() if (fault := _slot_fault(slot, parts[slot], facts))), None)
    if fault:
        return fault
    if len({tuple(facts["names"]) for facts in slots.values()}) > 1:
        return "the slots have different names"
    if len({entries[f"{slot}.anchor_scores"][1] for slot in slots}) > 1:
        return "the slots were scored on different numbers of harmless prompts"
    return None


def _slot_fault(slot: str, own: dict[str, tuple], facts: Mapping[str, Any]) -> str | None:
    where = f"slot {slot[:40]!r}"
    own = dict(own)
    probe, padding = own.pop("probe", None), own.pop("padding", None)
    edges = {name: own.pop(name) for name in sorted(own) if name.startswith("edge_")}
    fault = packed_fault(own, facts)
    if fault:
        return f"{where}: {fault}"
    width = own["center"][1][0]
    if "place" not in facts and probe is not None:
        return f"{where}: the metadata lacks its place"
    if "place" in facts and (probe is None or tuple(probe) != ("F32", (width,))):
        return f"{where}: the probe is {probe}, not F32 {[width]}"
    if padding is not None and tuple(padding) != ("F32", (width + 1,)):
        return f"{where}: the padding reader is {padding}, not F32 {[width + 1]}"
    if (edges or "edge_roles" in facts) and (fault := _edges_fault(edges, facts.get("edge_roles"), width)):
        return f"{where}: {fault}"
    if "place" in facts and not is_packed_place(facts["place"], slot, width):
        return f"{where}: the metadata's place is not what one is made of"
    return None


def _edges_fault(edges: Mapping[str, tuple], roles: Any, width: int) -> str | None:
    """What is wrong with a bank of special tokens, or None."""
    if set(edges) - {grid_of(name) for name in EDGES} != set(EDGES):
        return f"the edge states are {str(sorted(edges))[:400]}, and there should be {' and '.join(EDGES)}"
    if not isinstance(roles, list) or not roles or len(set(map(str, roles))) < len(roles):
        return f"the edge states' roles are {str(roles)[:80]}, not a list of distinct numbers"
    if not all(type(role) is int and abs(role) <= MAX_ROLES for role in roles):
        return f"the edge states' roles {str(roles)[:80]} are not numbers of at most {MAX_ROLES}"
    prompts, states = (tuple(edges[name][1]) for name in EDGES)
    rows = prompts[0]
    if (prompts, states) != ((rows, width), (rows, len(roles), width)):
        return f"the edge states have shapes {list(prompts)} and {list(states)}, not [M, {width}] and [M, {len(roles)}, {width}]"
    return next((fault for name in EDGES if (fault := bytes_fault(edges, name))), None)
