"""Join two directions that are aligned to one encoder into one alignment: a prompt is flagged by either, within one budget."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .alignment import Alignment
from .direction_format import GLOBAL
from .eight_bits import eight_bits_or_half
from .slot import Added, SlotAlignment

TYPED = "typed"
"""What the second direction's own `global` is called."""

UNREACHED = 1e9
"""Spread of the mention reading for columns that it doesn't speak of: it then counts for nothing."""

HARMLESS_READING = 1.0
"""Token score by the second direction below which harmless states of the first stay to land on. Not tuned."""


def joined(first: Alignment, second: Alignment) -> Alignment:
    """One alignment that has the names of both; the second's `global` is called "typed" in it.

    What each reads of a prompt stays as it was; so does what is landed on, less what the second reads, and what the second was
    told to put instead. Asked for no category both count, and share the budget evenly.

    Raises:
        ValueError: other slots or widths, or a name that both have.
    """
    if set(first.slots) != set(second.slots):
        raise ValueError(
            f"directions of one encoder are joined; these have the slots {', '.join(first.slots)} and {', '.join(second.slots)}"
        )
    for name in second.categories:
        if name in first.names:
            raise ValueError(f"{name!r} is a category of {first.direction.get('name')!r} already: leave it out")
    return Alignment({name: _joined(slot, second.slots[name]) for name, slot in first.slots.items()})


def joined_fingerprint(first: str, second: str) -> str:
    """What the two are known by together."""
    return hashlib.sha256(f"{first} {second}".encode()).hexdigest()


def _joined(a: SlotAlignment, b: SlotAlignment) -> SlotAlignment:
    if a.width != b.width or b.added:
        raise ValueError(f"states {a.width} and {b.width} wide, or a second direction that is joined itself")
    taken = {*a.names, *b.names}
    head = next(name for i in range(1, len(taken) + 2) if (name := TYPED if i == 1 else f"{TYPED}-{i}") not in taken)
    start = len(a.names)
    # The second reads from another centre; what that adds to its readings goes into their means.
    offset = b.center - a.center
    token, prompt = b.readers @ offset, b.prompt_readers @ offset
    moments = b.reading_moments.clone()
    moments[0, :, 0] += token
    moments[1, :, 0] += prompt
    moments[4, :, 0] += prompt
    moments[5] = torch.tensor([0.0, UNREACHED])
    units = torch.nn.functional.normalize(b.vectors, dim=1)
    own: dict[str, Any] = {
        "anchor_scores": torch.cat([a.anchor_scores, _as_many(a, b)], 1),
        "language_moments": torch.cat([a.language_moments, b.language_moments[:1].expand(len(a.languages), -1, -1)], 1),
        "token_levels": torch.cat([a.token_levels, b.token_levels + (units @ offset).unsqueeze(1)]),
        "reading_moments": torch.cat([a.reading_moments, moments], 1),
        "length_model": torch.cat([a.length_model, b.length_model], 1),
    }
    for name in ("vectors", "readers", "prompt_readers", "score_moments"):
        own[name] = torch.cat([getattr(a, name), getattr(b, name)])
    bank, spacing = _bank(a, b)
    shift = token[0] + (token[1:].mean() if len(token) > 1 else 0)
    return replace(
        a,
        names=(*a.names, head, *b.names[1:]),
        bank=bank,
        bank_spacing=spacing,
        direction={
            **a.direction,
            "name": f"{a.direction.get('name')}, {b.direction.get('name')}",
            "sha256": joined_fingerprint(str(a.direction.get("sha256")), str(b.direction.get("sha256"))),
        },
        added=(*a.added, Added(start, float(b.token_moments[0] + shift), float(b.token_moments[1]))),
        **own,
    )


def _as_many(a: SlotAlignment, b: SlotAlignment) -> Tensor:
    """The second's harmless scores drawn evenly to as many rows as the first has: everyday for everyday, near for near."""
    everyday = b.anchor_everyday > 0
    near = ~everyday if (~everyday).any() else everyday
    out = b.anchor_scores.new_empty(len(a.anchor_scores), b.anchor_scores.shape[1])
    for rows, of in ((a.anchor_everyday > 0, everyday), (a.anchor_everyday == 0, near)):
        scores = b.anchor_scores[of]
        out[rows] = scores[torch.linspace(0, len(scores) - 1, int(rows.sum())).round().long()]
    return out


def _bank(a: SlotAlignment, b: SlotAlignment) -> tuple[Tensor, Tensor]:
    kept = b.score(a.bank.float().unsqueeze(0), GLOBAL)[0] < HARMLESS_READING
    kept = kept if kept.any() else ~kept
    if not b.fit.get("instead"):
        return eight_bits_or_half(a.bank[kept]), a.bank_spacing[kept]
    return eight_bits_or_half(torch.cat([a.bank[kept], b.bank])), torch.cat([a.bank_spacing[kept], b.bank_spacing])
