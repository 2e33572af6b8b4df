"""An element of ComfyUI's conditioning lists: its tensors, and whether an alignment fits them."""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple

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
    width = next((place.columns for place in aligned.places.values() if place.tensor == "cond"), cond.shape[-1])
    if cond.shape[-1] != width:
        raise StaleAlignment(
            f"this conditioning is {cond.shape[-1]} wide and the alignment is for an encoder {width} wide: {_CONNECT}"
        )
    if all(tensor_of(entry, place.tensor) is None for place in aligned.places.values()):
        names = sorted({place.tensor for place in aligned.places.values()})
        raise StaleAlignment(
            f"this conditioning has no {' and no '.join(names)}, which the alignment is for: {_CONNECT}"
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


class Own(NamedTuple):
    """A prompt's own tokens in one slot; a padded tensor has ten times as many.

    Attributes:
        states: [B, n, W], a copy.
        mask: bool [B, n]; only where the rows of a batch differ are some false.
        content: [n], where they stand in the slot.
    """

    states: Tensor
    mask: Tensor
    content: Tensor

    def in_slot(self, mask: Tensor, length: int) -> Tensor:
        """A mask of the own tokens [B, n] as one of all of the slot's [B, length]."""
        out = torch.zeros(len(mask), length, dtype=torch.bool)
        out[:, self.content.cpu()] = mask.cpu()
        return out


def own_states(entry: Entry, aligned: Alignment, masks: Mapping[str, Tensor] | None = None) -> dict[str, Own]:
    """What the prompt is in each slot; slots that this entry lacks, or that hold none of it, are left out.

    Args:
        masks: the content of the slots, bool [T], where the tokens are known; else it is read from the states.

    Raises:
        ValueError: states that aren't finite.
    """
    found = {}
    for name, place in aligned.places.items():
        tensor = tensor_of(entry, place.tensor)
        if tensor is None:
            continue
        states = select(tensor, place)
        mask = slot_content(entry, aligned, name) if masks is None or name not in masks else masks[name]
        mask = torch.ones(states.shape[:2], dtype=torch.bool) if mask is None else torch.atleast_2d(mask)
        content = mask.any(0).nonzero().flatten().to(states.device)
        if not len(content):
            continue
        own = states[:, content]
        if not torch.isfinite(own.float().sum()):  # a sum is quicker, and no sum of states overflows
            raise ValueError(
                f"this conditioning's {name} has NaN or infinite values: its text encoder overflowed; "
                "load it in another precision"
            )
        found[name] = Own(own, mask.to(states.device)[:, content].expand(own.shape[:2]), content)
    return found
