"""An element of ComfyUI's conditioning lists: its tensors, and whether an alignment fits them."""

from __future__ import annotations

from typing import Any, Mapping

import torch
from torch import Tensor

from ...directions.alignment import Alignment
from ...directions.place import Place
from .content import content_of_states

Entry = tuple[Any, Mapping[str, Any]]
"""States [B, T, W], and what belongs to them."""

_CONNECT = "connect Align Safety Direction to the CLIP that encoded the prompt"


class StaleAlignment(ValueError):
    """An alignment that was made for another encoder; the message says what to connect."""


def tensor_of(entry: Entry, name: str) -> Tensor | None:
    """A tensor of an entry by its name in an encoder's output, or None."""
    value = entry[0] if name == "cond" else entry[1].get(name)
    return value if torch.is_tensor(value) else None


def check_entry(entry: Entry, aligned: Alignment) -> None:
    """Raise ValueError when an alignment doesn't fit a conditioning entry; says what was expected and found."""
    cond = entry[0]
    if not torch.is_tensor(cond) or cond.dim() != 3:
        raise ValueError(
            "this conditioning holds no text states [batch, tokens, width]; connect the output of a text encode node"
        )
    if cond.shape[1] == 0:
        raise ValueError("this conditioning has no tokens")
    width = next((place.columns for place in aligned.places.values() if place.tensor == "cond"), 0)
    if cond.shape[-1] != width:
        raise StaleAlignment(
            f"this conditioning is {cond.shape[-1]} wide and the alignment is for an encoder {width} wide: {_CONNECT}"
        )


def select(tensor: Tensor, place: Place) -> Tensor:
    """A slot's states as a view of its tensor, [B, T, W]; T is 1 for a pooled slot."""
    if tensor.shape[-1] != place.columns or tensor.dim() != (
        2 if not place.length else 3 if place.layer is None else 4
    ):
        raise ValueError(
            f"this conditioning's {place.tensor} has shape {list(tensor.shape)} and the alignment is for one "
            f"{place.columns} wide: {_CONNECT}"
        )
    if not place.length:
        return tensor.unsqueeze(1)
    return (tensor if place.layer is None else tensor[:, place.layer])[..., : place.width]


def slot_content(entry: Entry, aligned: Alignment, name: str) -> Tensor | None:
    """The content of a slot, bool [B, T], from its states; None (all) for a pooled slot."""
    place = aligned.places[name]
    tensor = tensor_of(entry, place.tensor)
    if not place.length or tensor is None:
        return None
    return content_of_states(tensor, place, entry[1], aligned.slots[name].padding)
