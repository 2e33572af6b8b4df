"""One slot's alignment as a file has it: packed, checked before anything is allocated, and unpacked."""

from __future__ import annotations

import itertools
from typing import Any, Mapping

from torch import Tensor

from . import files
from .direction_format import GLOBAL, LONGEST, SHORTEST, is_language, is_name
from .eight_bits import bytes_fault, grid_of, packed, unpacked
from .scores import KNOTS
from .slot import QUANTILES, Added, SlotAlignment

STEEPEST = 100.0
"""Coefficients of a length model beyond it overflow."""

_SHAPES = {
    "vectors": "KW",
    "readers": "KW",
    "prompt_readers": "KW",
    "mention_reader": "W",
    "center": "W",
    "token_moments": "2",
    "reading_moments": "6K2",
    "score_moments": "K2",
    "length_model": "2KJ",
    "language_readers": "LW",
    "language_bias": "L",
    "language_moments": "LK2",
    "anchor_scores": "NK",
    "anchor_everyday": "N",
    "token_levels": "KQ",
    "bank": "MW",
    "bank_spacing": "M",
}
"""The tensors of a file; K names, J knots, Q quantiles, N anchors, L languages, M states of the bank."""


def pack(slot: SlotAlignment) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a slot, as a file has them; without what ties it to an encoder."""
    tensors = {name: getattr(slot, name) for name in _SHAPES if name != "bank"} | packed("bank", slot.bank)
    lists: dict[str, list] = {"names": list(slot.names), "languages": list(slot.languages)}
    if slot.added:
        lists["added"] = [list(one) for one in slot.added]
    return tensors, {**lists, "fit": dict(slot.fit), "direction": dict(slot.direction)}


def packed_fault(entries: Mapping[str, tuple], metadata: Mapping[str, Any]) -> str | None:
    """What is wrong with one packed slot, or None."""
    if set(entries) - {grid_of("bank")} != set(_SHAPES):
        odd = str(sorted(set(entries) ^ set(_SHAPES))[:5])[:400]
        return f"tensors {odd} are missing or unknown: another version may have made it, so align again"
    names = metadata.get("names")
    if (
        not isinstance(names, list)
        or not names
        or names[0] != GLOBAL
        or not all(map(is_name, names))
        or len(set(names)) != len(names)
    ):
        return "the metadata's names are not `global` and distinct short names"
    languages = metadata.get("languages")
    if not isinstance(languages, list) or not languages or not all(map(is_language, languages)):
        return "the metadata's languages are not codes such as en"
    if not isinstance(metadata.get("fit"), dict) or not isinstance(metadata.get("direction"), dict):
        return "the metadata's fit or direction is not an object"
    if not _are_added(metadata.get("added", []), len(names)):
        return "the metadata's added directions are not columns in order with a mean and a positive spread each"
    sizes = {"K": len(names), "J": len(KNOTS), "2": 2, "6": 6, "Q": len(QUANTILES), "L": len(languages)}
    sizes |= {"W": entries["center"][1][0], "N": entries["anchor_everyday"][1][0], "M": entries["bank_spacing"][1][0]}
    for name, letters in _SHAPES.items():
        shape = entries[name][1]
        if len(shape) != len(letters) or any(sizes.get(letter, n) != n for letter, n in zip(letters, shape)):
            return f"{name} has shape {list(shape)}, not [{', '.join(letters)}] with {sizes}"
        if name != "bank" and entries[name][0] != "F32":
            return f"{name} has dtype {entries[name][0]}"
    return bytes_fault(entries, "bank")


def _are_added(rows: Any, names: int) -> bool:
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 3 for row in rows):
        return False
    if not all(type(start) is int and type(m) is float and type(s) is float for start, m, s in rows):
        return False
    starts = [0, *(start for start, _, _ in rows), names]
    moments = all(abs(mean) < LONGEST and SHORTEST / 2 <= spread < LONGEST for _, mean, spread in rows)
    return moments and all(a < b for a, b in itertools.pairwise(starts))


def unpack(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], file: str) -> SlotAlignment:
    """The reverse of `pack`, after `packed_fault`.

    Raises:
        DirectionFormatError: numbers in `file` that would divide by zero or overflow.
    """
    named: dict[str, Any] = {name: tensors[name] for name in _SHAPES} | {"bank": unpacked(tensors, "bank", file)}
    spreads = (
        named["reading_moments"][..., 1],
        named["score_moments"][:, 1],
        named["token_moments"][1],
        named["language_moments"][..., 1],
        named["bank_spacing"],
    )
    if not min(spread.min() for spread in spreads) >= SHORTEST / 2:
        raise files.DirectionFormatError(f"{file}: a benign spread is not positive")
    if not (named["length_model"].abs().max() < STEEPEST and named["anchor_everyday"].sum() >= 2):
        raise files.DirectionFormatError(f"{file}: scores that no harmless prompts have")
    for name, tensor in named.items():
        if not tensor.abs().max() < LONGEST:
            raise files.DirectionFormatError(f"{file}: {name} has a value of {tensor.abs().max():.3g}")
    named |= {name: tuple(metadata[name]) for name in ("names", "languages")}
    added = tuple(Added(*row) for row in metadata.get("added", []))
    return SlotAlignment(fit=metadata["fit"], direction=metadata["direction"], added=added, **named)
