"""States that a cancelled Align had read already: kept on disk until the same encoder is aligned again, which goes on there."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ...directions.files import write_bytes
from .kept import folder

ROOM = 2**30
"""Bytes that are kept at most: 1,500 anchors' states of 4,096 values take half of it."""


class Read(NamedTuple):
    """What an encoder gave for one prompt.

    Attributes:
        states: by slot, [T, W].
        special: by slot and role, [W]; None where they weren't wanted.
    """

    states: dict[str, Tensor]
    special: dict[str, dict[int, Tensor]] | None


def keep(identity: str, slots: Sequence[str], read: Mapping[str, Read]) -> None:
    """Write what was read, by prompt, in place of whatever was kept before; as much as there is room for."""
    some, room = {}, ROOM
    for prompt, one in read.items():
        room -= sum(rows.nbytes for rows in one.states.values())
        room -= sum(row.nbytes for own in (one.special or {}).values() for row in own.values())
        if room < 0:
            break
        some[prompt] = one
    if not some:
        return
    tensors = {}
    for slot in slots:
        tensors[f"states.{slot}"] = torch.cat([one.states[slot] for one in some.values()])
        special = [(one.special or {}).get(slot, {}) for one in some.values()]
        rows = [row for own in special for row in own.values()]
        if rows:
            tensors[f"special.{slot}"] = torch.stack(rows)
    index = [
        {
            "prompt": prompt,
            "tokens": {slot: len(one.states[slot]) for slot in slots},
            "roles": None if one.special is None else {slot: list(own) for slot, own in one.special.items()},
        }
        for prompt, one in some.items()
    ]
    path = _path(identity, slots)
    try:
        forget()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, safetensors.torch.save(tensors, {"index": json.dumps(index)}))
    except OSError as error:
        logging.warning(
            "safety-directions: what was read so far can't be kept (%s); Align begins anew next time", error
        )


def kept(identity: str, slots: Sequence[str]) -> dict[str, Read]:
    """What `keep` wrote for this encoder and these slots, by prompt; nothing where there is none, or a damaged file."""
    try:
        with safetensors.safe_open(_path(identity, slots), framework="pt") as file:
            index = json.loads(file.metadata()["index"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        return _apart(index, slots, tensors)
    except FileNotFoundError:
        return {}
    except (OSError, safetensors.SafetensorError, ValueError, LookupError, TypeError, RuntimeError, StopIteration) as error:
        logging.warning("safety-directions: what an earlier Align had read can't be used (%s); it is read anew", error)
        return {}


def forget() -> None:
    """Remove what is kept, whichever encoder's it is."""
    for path in folder().glob("unfinished-*.safetensors"):
        path.unlink(missing_ok=True)


def _apart(index: Sequence[Mapping], slots: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[str, Read]:
    states = {slot: iter(tensors[f"states.{slot}"].split([one["tokens"][slot] for one in index])) for slot in slots}
    special = {slot: iter(tensors.get(f"special.{slot}", ())) for slot in slots}
    read = {}
    for one in index:
        own = {slot: next(states[slot]) for slot in slots}
        roles = one["roles"]
        drawn = roles and {slot: {role: next(special[slot]) for role in roles[slot]} for slot in roles}
        read[one["prompt"]] = Read(own, drawn)
    return read


def _path(identity: str, slots: Sequence[str]) -> Path:
    name = hashlib.sha256(" ".join([identity, *slots]).encode()).hexdigest()[:20]
    return folder() / f"unfinished-{name}.safetensors"
