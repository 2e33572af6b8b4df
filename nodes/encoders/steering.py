"""Steer conditioning entries. One mechanism for three places: a list (here), a CLIP (clip.py) and a MODEL (guard.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping

import torch
from torch import Tensor

from ...directions.alignment import Alignment
from ...directions.direction_format import GLOBAL
from ...directions.slot import SlotAlignment
from ...directions.steer import SteeringSettings, steer
from .content import attended, special_positions
from .entry import Entry, check_entry, select, slot_content, tensor_of
from .flag import Flag, act_on
from .marks import MARK, Mark, carried, mark_of, seal_of

APPLY = "Apply Safety Direction"


@dataclass(frozen=True)
class Steering:
    """One node's steering.

    Attributes:
        node: its name, for messages.
        aligned: the direction, fitted to the encoder.
        on_flag: "steer" or "refuse".
    """

    node: str
    aligned: Alignment
    settings: SteeringSettings
    on_flag: str = "steer"

    def __call__(self, entry: Entry, masks: Mapping[str, Tensor] | None = None, give_back: bool = False) -> Entry:
        """The entry, steered and marked.

        Args:
            masks: the content of the slots, bool [T], where the tokens are known; else it is read from the states.

        Raises:
            Refused: it is flagged and `on_flag` says so.
            ValueError: it doesn't fit the alignment; says what was expected and found.
        """
        check_entry(entry, self.aligned)
        flag = None
        changed: dict[str, Tensor] = {}
        for name, slot in self.aligned.slots.items():
            tensor = self.aligned.places[name].tensor
            before = tensor_of(entry, tensor)
            if before is None:
                continue
            # Two slots may share a tensor: the second goes on from the first.
            after = changed.setdefault(tensor, before.clone())
            mask = slot_content(entry, self.aligned, name) if masks is None or name not in masks else masks[name]
            found = self._steer_slot(name, slot, entry, after, mask)
            flag = flag or found
        act_on(flag, self.node, self.on_flag, self.settings.mode)
        steered = (changed.pop("cond", entry[0]), {**entry[1], **changed})
        mark = Mark(self.aligned, self.settings, flag, seal_of(steered, self.aligned, self.settings), entry, give_back)
        steered[1][MARK] = (*carried(entry), mark)
        return steered

    def _steer_slot(
        self, name: str, slot: SlotAlignment, entry: Entry, tensor: Tensor, mask: Tensor | None
    ) -> Flag | None:
        """Steer one slot of a tensor in place; returns why it is flagged, or None."""
        states = select(tensor, self.aligned.places[name])
        # Only the prompt's own tokens are read and moved; a padded tensor has ten times as many.
        if mask is None:
            content = torch.arange(states.shape[1])
        else:
            content = mask.reshape(-1, states.shape[1]).any(0).nonzero().flatten()
        if not len(content):
            return None
        content = content.to(states.device)
        own_mask = None if mask is None else mask.to(states.device)[..., content]
        own = states[:, content]
        if not torch.isfinite(own.float().sum()):  # a sum is quicker, and no sum of states overflows
            raise ValueError(
                f"this conditioning's {name} has NaN or infinite values: its text encoder overflowed; load it in "
                f"another precision"
            )
        flag = self._flag(name, slot, own, own_mask)
        moved = steer(slot, own, self.settings, own_mask)
        states[:, content] = moved
        if slot.special_tokens is not None and self.settings.mode == "gate" and mask is not None:
            which = (moved != own).flatten(1).any(1)
            self._land_special_tokens(name, slot, entry, states, mask.expand(len(states), -1).cpu(), which)
        return flag

    def _land_special_tokens(
        self, name: str, slot: SlotAlignment, entry: Entry, states: Tensor, content: Tensor, steered: Tensor
    ) -> None:
        """Start, end and padding of the prompts that were steered, in place: states [B, T, W], content [B, T], steered [B]."""
        place = self.aligned.places[name]
        tensor = tensor_of(entry, place.tensor)
        if tensor is None or slot.special_tokens is None or not steered.any():
            return
        seen = attended(tensor, place, entry[1])
        for row in steered.nonzero().flatten().tolist():
            positions = special_positions(content[row], seen[row], place)
            states[row] = slot.special_tokens.land(states[row], content[row].to(states.device), positions)

    def _flag(self, name: str, slot: SlotAlignment, states: Tensor, mask: Tensor | None) -> Flag | None:
        budget = self.settings.budget
        names = self.settings.categories or (GLOBAL,)
        if not bool(slot.flagged(states, budget, names, mask).any()):
            return None
        scores = slot.prompt_scores(states, names, mask).flatten(0, -2).amax(0).tolist()
        flags = [
            Flag(n, name, score, slot.threshold(budget / len(names), n), budget) for n, score in zip(names, scores)
        ]
        return max(flags, key=lambda flag: flag.score - flag.threshold)


def steer_conditioning(
    conditioning: list,
    aligned: Alignment,
    settings: SteeringSettings,
    start: float = 0.0,
    end: float = 1.0,
    on_flag: str = "steer",
) -> list:
    """Steer every entry of a conditioning list; what this direction already steered passes as it is.

    With a range inside [0, 1] each entry is split in time: steered within, as it was outside.

    Raises:
        Refused: an entry is flagged and `on_flag` is "refuse".
        ValueError: the conditioning doesn't fit the alignment; says what was expected and found.
    """
    if start >= end:
        raise ValueError(f"start_percent {start} is not before end_percent {end}")
    steering = Steering(APPLY, aligned, settings, on_flag)
    out = []
    for cond, extras in conditioning:
        entry: Entry = (cond, extras)
        before = mark_of(entry, aligned)
        if before:
            act_on(before.flag, APPLY, on_flag, settings.mode)
            out.append([cond, extras])
            continue
        steered = steering(entry)
        low, high = extras.get("start_percent", 0.0), extras.get("end_percent", 1.0)
        parts = (low, min(start, high), entry), (max(low, start), min(end, high), steered), (max(end, low), high, entry)
        for begin, stop, (states, info) in parts:
            if begin < stop or (low, high) == (begin, stop):
                ranged = {} if (begin, stop) == (0.0, 1.0) else {"start_percent": begin, "end_percent": stop}
                out.append([states, {**info, **ranged}])
    return out
