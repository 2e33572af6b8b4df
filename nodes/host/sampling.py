"""Let only what host mode steered into a sampler."""

from __future__ import annotations

from typing import Any, Iterable

import torch

from ..encoders.entry import Entry
from ..encoders.flag import act_on
from ..encoders.guard import as_cond, as_entry, lowest_cfg, weighs_otherwise
from ..encoders.marks import Sealed, carried, carrying, marks, sha_of
from ..encoders.picture_notes import note
from ..encoders.steering import Steering
from .encoding import NODE, silent, unread
from .log import say
from .server import Host


class Unread(ValueError):
    """Conditioning whose text this process never read."""


def guarded(guider: Any, host: Host) -> dict[str, list]:
    """A guider's conds by side, each steered; a negative prompt with its force where nothing can turn that into what is drawn.

    Raises:
        Refused: a prompt is flagged and the policy says so.
        Unread: it wasn't encoded by a CLIP of this process, or can't be read.
    """
    if host.reports:
        _report(guider)
        return guider.original_conds
    avoiding = lowest_cfg(guider) >= 1 and not weighs_otherwise(guider)
    found: dict[str, list] = {}
    for name, conds in guider.original_conds.items():
        avoided = avoiding and name == "negative"
        entries = [_guard(as_entry(cond), host, avoided) for cond in conds]
        for record in (record for entry in entries if not avoided for record in marks(entry)[:1]):
            note(NODE, record)
        host.passed.update((states, host.settings) for states, _ in entries if torch.is_tensor(states))
        found[name] = [as_cond(entry) for entry in entries]
    return found


def check_batch(conds: Iterable[list | None], host: Host) -> None:
    """Let a model be asked only with what its sampler was let have; a patch on it may hold conditioning of its own (PerpNeg).

    Raises:
        Unread: there is other conditioning, and it isn't as host mode steered it.
    """
    for cond in (cond for side in conds for cond in side or ()):
        entry = as_entry(cond)
        if not torch.is_tensor(entry[0]) or host.passed.get(entry[0]) == host.settings:
            continue
        if not silent(entry) and not any(record.host and record.settings == host.settings for record in marks(entry)):
            if not host.reports:
                raise Unread(
                    f"{NODE}: a patch on the model holds conditioning that this server hasn't read as it is, so that nothing is "
                    "sampled. Give it what a text encode node gives, unchanged"
                )
            say(f"{NODE}: a patch on the model holds a text that this server hasn't read", event="unread", action="reported")
        host.passed[entry[0]] = host.settings


def _guard(entry: Entry, host: Host, avoided: bool) -> Entry:
    mine = [record for record in carried(entry) if record.host and sha_of(record.aligned) == host.fingerprint]
    if not mine and silent(entry):
        return entry
    if not mine:
        raise Unread(
            f"{NODE}: a conditioning reaches the sampler whose text this server hasn't read, so that nothing is sampled. "
            "Use the loader's CLIP output and a text encode node; conditioning from a file, or that a node makes by itself, "
            "can't be used here"
        )
    held = next((record for record in marks(entry) if record.host and record.settings == host.settings), None)
    if avoided and held is not None:
        return _given_back(entry, held) if held.flag is None or host.policy.negatives == "keep" else entry
    on_flag = "steer" if avoided else host.policy.on_flag
    for record in mine:  # also where the states have changed since
        act_on(record.flag, NODE, on_flag, host.settings.mode)
    past = [name for place in mine[-1].aligned.places.values() for name, *_ in place.past if name in entry[1]]
    if held is not None or (silent(entry) and not past):
        return entry
    if silent(entry) or unread(entry, mine[-1].aligned, {}):
        raise Unread(f"{NODE}: nothing of the prompt is found in a conditioning that other nodes have changed")
    return Steering(NODE, mine[-1].aligned, host.settings, on_flag, host=True)(entry)


def _report(guider: Any) -> None:
    """Log what would have been refused; what is flagged was logged when it was encoded."""
    for entry in (as_entry(cond) for conds in guider.original_conds.values() for cond in conds):
        if not silent(entry) and not any(record.host for record in carried(entry)):
            say(f"{NODE}: a text that this server hasn't read", event="unread", action="reported")


def _given_back(entry: Entry, record: Sealed) -> Entry:
    """A negative prompt as it was encoded."""
    cond, extras = record.before
    return cond, {**entry[1], **{name: extras[name] for name in carrying(record.aligned) if name in extras}}
