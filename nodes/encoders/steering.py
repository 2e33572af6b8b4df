"""Steer conditioning entries. One mechanism for three places: a list (here), a CLIP (clip.py) and a MODEL (guard.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Mapping

import torch
from torch import Tensor

from ...directions.alignment import Alignment
from ...directions.place import Place
from ...directions.steer import SteeringSettings, move
from ...directions.verdict import Verdict
from .content import attended, special_positions
from .entry import Entry, Own, check_entry, own_states, select, tensor_of
from .flag import act_on, judge
from .marks import Sealed, carried, mark_of, marked, seal_of
from .past import hold_back
from .picture_notes import note

APPLY = "Apply Safety Direction"


@dataclass(frozen=True)
class Steering:
    """One node's steering.

    Attributes:
        node: its name, for messages.
        aligned: the direction, fitted to the encoder.
        on_flag: "steer" or "refuse".
        host: whether it is host mode's, and no node's.
    """

    node: str
    aligned: Alignment
    settings: SteeringSettings
    on_flag: str = "steer"
    host: bool = False

    def __call__(
        self,
        entry: Entry,
        masks: Mapping[str, Tensor] | None = None,
        give_back: bool = False,
        same_text: Callable[[str], list[list[int]] | None] = lambda slot: None,
    ) -> Entry:
        """The entry, steered and marked.

        Args:
            masks: the content of the slots, bool [T], where the tokens are known; else it is read from the states.
            same_text: of a slot's own tokens the ids beside its states with the same text, where the tokens are known.

        Raises:
            Refused: it is flagged and `on_flag` says so.
            ValueError: it doesn't fit the alignment; says what was expected and found.
        """
        check_entry(entry, self.aligned)
        own = own_states(entry, self.aligned, masks)
        verdict, flag, score = judge(own, self.aligned, self.settings)
        act_on(flag, self.node, self.on_flag, self.settings.mode)
        changed: dict[str, Tensor] = {}
        left_out: set[str] = set()
        for name, one in own.items():
            place = self.aligned.places[name]
            before = tensor_of(entry, place.tensor)
            assert before is not None
            # Two slots may share a tensor: the second goes on from the first.
            states = select(changed.setdefault(place.tensor, before.clone()), place)
            moved = move(self.aligned.slots[name], one.states, self.settings, one.mask, verdict)
            states[:, one.content] = moved.states
            if verdict is not None and self.settings.judges and flag:
                self._land_special_tokens(name, entry, states, one, verdict)
            if place.past and moved.landed.any():
                held, out = _held_back(entry, place, one, moved.landed, same_text(name))
                changed, left_out = changed | held, left_out | out
        kept = {name: value for name, value in entry[1].items() if name not in left_out}
        steered = (changed.pop("cond", entry[0]), {**kept, **changed})
        seal = seal_of(steered, self.aligned, self.settings)
        record = Sealed(self.aligned, self.settings, flag, score, seal, entry, give_back, self.host)
        return marked(steered, record)

    def _land_special_tokens(self, name: str, entry: Entry, states: Tensor, own: Own, verdict: Verdict) -> None:
        """Start, end and padding of the prompts that land, in place: states [B, T, W]."""
        place, bank = self.aligned.places[name], self.aligned.slots[name].special_tokens
        tensor = tensor_of(entry, place.tensor)
        if tensor is None or bank is None or self.settings.alpha == 0:
            return
        content, seen = own.in_slot(own.mask, states.shape[1]), attended(tensor, place, entry[1])
        shares = (verdict.landing if self.settings.mode == "graded" else verdict.flagged.float()).tolist()
        for row, share in enumerate(shares):
            if share:
                positions = special_positions(content[row], seen[row], place)
                landed = bank.land(states[row], content[row].to(states.device), positions)
                states[row] = landed if share == 1 else torch.lerp(states[row].float(), landed.float(), share).to(states)


def _held_back(
    entry: Entry, place: Place, own: Own, landed: Tensor, same_text: list[list[int]] | None
) -> tuple[dict[str, Tensor], set[str]]:
    """What of the prompt goes past a slot's states: what to put in the place of it, and what to leave out."""
    lands = landed.any(0).nonzero().flatten().tolist()
    count = len(own.content)
    same = same_text if same_text and len(same_text) == count else None
    return hold_back(entry[1], place.past, lands, count, same)


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
        note(APPLY, carried(steered)[-1])
        low, high = extras.get("start_percent", 0.0), extras.get("end_percent", 1.0)
        parts = (low, min(start, high), entry), (max(low, start), min(end, high), steered), (max(end, low), high, entry)
        for begin, stop, (states, info) in parts:
            if begin < stop or (low, high) == (begin, stop):
                ranged = {} if (begin, stop) == (0.0, 1.0) else {"start_percent": begin, "end_percent": stop}
                out.append([states, {**info, **ranged}])
    return out
