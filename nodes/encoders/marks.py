"""Marks and seals: how an entry that was steered is known, so that it isn't steered twice, and can't be made to look steered.

A mark is a key without content; what it stands for is kept here, and goes when the mark goes.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, MutableMapping
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

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


@dataclass(frozen=True, eq=False)
class Sealed:
    """What was done to an entry.

    Attributes:
        flag: why it was flagged, or None.
        score: of the prompt, in benign standard deviations; None where it had no states.
        seal: of its tensors; see `seal_of`.
        before: the entry as it came.
        give_back: whether a Guard may give that back to a negative prompt.
        host: whether host mode did it, and no node of a graph.
    """

    aligned: Alignment
    settings: SteeringSettings
    flag: Flag | None
    score: float | None
    seal: bytes
    before: Entry
    give_back: bool
    host: bool = False

    def holds(self, entry: Entry) -> bool:
        """Whether it stands for these very tensors."""
        return hmac.compare_digest(self.seal, seal_of(entry, self.aligned, self.settings))


class Mark:
    """What a steered entry carries: a key to its record, with nothing to read in it."""

    __slots__ = ("__weakref__",)

    def __deepcopy__(self, memo: Any) -> "Mark":
        return self

    def __reduce__(self) -> tuple:
        """Nothing is pickled: it means something in this process alone, and nodes that save conditioning read it back
        without classes."""
        return OrderedDict, ()


_RECORDS: MutableMapping[Mark, Sealed] = WeakKeyDictionary()

_BY_STATES: MutableMapping[Tensor, Sealed] = WeakIdKeyDictionary()
"""Host mode's records by the states themselves: packs take them out of what an encoder gives and leave the mark behind."""


def marked(entry: Entry, record: Sealed) -> Entry:
    """The entry with a mark more; its extras are changed in place."""
    mark = Mark()
    _RECORDS[mark] = record
    entry[1][MARK] = (*_marks_on(entry), mark)  # type: ignore[index]
    return entry


def remember(states: Any, record: Sealed) -> None:
    """Know states again whose mark is left behind."""
    if torch.is_tensor(states):
        _BY_STATES[states] = record


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


def _marks_on(entry: Entry) -> tuple[Mark, ...]:
    found = entry[1].get(MARK, ())
    return tuple(mark for mark in found if type(mark) is Mark) if type(found) is tuple else ()


def carried(entry: Entry) -> list[Sealed]:
    """What the entry's marks stand for, whether they hold or not, in the order in which they were made."""
    records = [_RECORDS[mark] for mark in _marks_on(entry) if mark in _RECORDS]
    if torch.is_tensor(entry[0]) and entry[0] in _BY_STATES:
        record = _BY_STATES[entry[0]]
        records += [record] if all(record is not other for other in records) else []
    return records


def marks(entry: Entry) -> list[Sealed]:
    """The entry's records that hold, latest first."""
    return [record for record in reversed(carried(entry)) if record.holds(entry)]


def mark_of(entry: Entry, aligned: Alignment) -> Sealed | None:
    """The latest record of the direction of `aligned` that holds."""
    return next((record for record in marks(entry) if sha_of(record.aligned) == sha_of(aligned)), None)


def before_steering(entry: Entry, aligned: Alignment) -> Entry | None:
    """The entry as it was before it was steered by the direction of `aligned`; None where it wasn't, or where host mode
    steered it: no node of a client gets that."""
    record = mark_of(entry, aligned)
    return record.before if record and not record.host else None


def flag_of(conditioning: list, aligned: Alignment) -> Flag | None:
    """Why the direction of `aligned` flagged an entry of a conditioning list that it steered; None where it flagged none."""
    found = [mark_of((cond, extras), aligned) for cond, extras in conditioning]
    return next((mark.flag for mark in found if mark and mark.flag), None)


def is_steered(conditioning: list, aligned: Alignment) -> bool:
    """Whether the direction of `aligned` already steered an entry of a conditioning list."""
    return any(mark_of((cond, extras), aligned) is not None for cond, extras in conditioning)
