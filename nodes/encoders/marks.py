"""Marks and seals: how an entry that was steered is known, so that it isn't steered twice, and can't be made to look steered."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...directions.alignment import Alignment
from ...directions.steer import SteeringSettings
from .entry import Entry, tensor_of
from .flag import Flag

MARK = "safety_direction"

SAMPLED = 64
"""Secret columns of every token that a seal covers: whatever undoes steering changes nearly all, and reading all
takes longer than steering."""

# Marks are made and checked in one process; nobody outside can know this.
_SECRET = secrets.token_bytes(32)


class Mark(NamedTuple):
    """What a steered entry carries.

    Attributes:
        flag: why it was flagged, or None.
        seal: of its tensors; see `seal_of`.
        before: the entry as it came.
        give_back: whether a Guard may give that back to a negative prompt.
    """

    aligned: Alignment
    settings: SteeringSettings
    flag: Flag | None
    seal: bytes
    before: Entry
    give_back: bool

    def holds(self, entry: Entry) -> bool:
        """Whether this process made the mark, for these very tensors."""
        return isinstance(self.seal, bytes) and hmac.compare_digest(
            self.seal, seal_of(entry, self.aligned, self.settings)
        )

    def __deepcopy__(self, memo: Any) -> "Mark":
        return self

    def __reduce__(self) -> tuple:
        """Nothing is pickled: it means something in this process alone, and nodes that save conditioning read it back
        without classes."""
        return OrderedDict, ()


def sha_of(aligned: Alignment) -> str:
    """The fingerprint of the direction that was aligned."""
    return str(aligned.direction.get("sha256"))


def seal_of(entry: Entry, aligned: Alignment, settings: SteeringSettings) -> bytes:
    """A keyed hash of an entry's slots and of what steered them."""
    seal = hashlib.blake2b(repr((sha_of(aligned), settings)).encode(), key=_SECRET)
    for name in sorted(carrying(aligned)):
        states = tensor_of(entry, name)
        if states is not None:
            seal.update(f"{name} {states.dtype} {list(states.shape)}".encode())
            seal.update(_sample(states))
        elif name in entry[1]:
            seal.update(repr((name, entry[1][name])).encode())
    return seal.digest()


def carrying(aligned: Alignment) -> set[str]:
    """What of an entry holds the prompt: its slots' tensors, and what goes past them."""
    places = aligned.places.values()
    past = {name for place in places for carrier in place.past for name in carrier[:2] if name}
    return past | {place.tensor for place in places}


def _sample(states: Tensor) -> bytes:
    if states.dim() < 2:
        return states.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    draw = torch.Generator().manual_seed(int.from_bytes(_SECRET[:7], "little"))
    columns = torch.randint(states.shape[-1], (SAMPLED,), generator=draw).to(states.device)
    return states.detach().index_select(-1, columns).cpu().contiguous().view(torch.uint8).numpy().tobytes()


def carried(entry: Entry) -> list[Mark]:
    """The entry's marks, whether they hold or not, in the order in which they were made."""
    found = entry[1].get(MARK, ())
    return [mark for mark in found if isinstance(mark, Mark)] if isinstance(found, tuple) else []


def marks(entry: Entry) -> list[Mark]:
    """The entry's marks that hold, latest first."""
    return [mark for mark in reversed(carried(entry)) if mark.holds(entry)]


def mark_of(entry: Entry, aligned: Alignment) -> Mark | None:
    """The latest mark of the direction of `aligned` that holds."""
    return next((mark for mark in marks(entry) if sha_of(mark.aligned) == sha_of(aligned)), None)


def before_steering(entry: Entry, aligned: Alignment) -> Entry | None:
    """The entry as it was before it was steered by the direction of `aligned`; None where it wasn't."""
    mark = mark_of(entry, aligned)
    return mark.before if mark else None


def flag_of(conditioning: list, aligned: Alignment) -> Flag | None:
    """Why the direction of `aligned` flagged an entry of a conditioning list that it steered; None where it flagged none."""
    found = [mark_of((cond, extras), aligned) for cond, extras in conditioning]
    return next((mark.flag for mark in found if mark and mark.flag), None)


def is_steered(conditioning: list, aligned: Alignment) -> bool:
    """Whether the direction of `aligned` already steered an entry of a conditioning list."""
    return any(mark_of((cond, extras), aligned) is not None for cond, extras in conditioning)
