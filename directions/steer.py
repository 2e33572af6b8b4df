"""Steer: move text-conditioning states to the safe side. Pure functions; modes by name in MODES, one signature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Mapping, NamedTuple

import torch
from torch import Tensor

from .bank import land
from .slot import SlotAlignment, check_budget
from .verdict import Calibration, Verdict

TOKEN_MARGIN = 1.25
"""Token score above which the gate moves tokens. Of 1,573 flagged prompts none was flagged afterwards; moving more, until the
prompt scores lower, takes no more pictures and moves what is flagged wrongly further (docs/log.md)."""

FAR, FAR_BEHIND = 0.3, 0.7
"""A token that scores below this share of its prompt's highest is some other word; behind the highest one the bar is
higher, since
a causal encoder writes what came before into every token that follows. Chosen on pictures of two things (docs/log.md)."""

SURE = 3.0
"""A token that scores above it is unsafe by itself, whatever is beside it: one harmless token in 250 does (docs/log.md)."""

STRONGEST = 1000
"""Benign spreads; a strength beyond is a mistake, and overflows half precision."""


@dataclass(frozen=True)
class SteeringSettings:
    """How to steer.

    Attributes:
        mode: a name in MODES.
        alpha: strength in pooled benign spreads; negative moves to the unsafe side ("add").
        categories: which directions; None is the global one.
        budget: share of benign prompts that may be flagged ("gate"), or of benign tokens ("project").
    """

    mode: str = "gate"
    alpha: float = 5.0
    categories: tuple[str, ...] | None = None
    budget: float = 0.01

    @property
    def judges(self) -> bool:
        """Whether what happens to a prompt depends on its score."""
        return self.mode in JUDGING

    def check(self) -> None:
        """Raise ValueError where a mode, a strength or a budget is none; it says which."""
        if self.mode not in MODES:
            raise ValueError(f"unknown mode {self.mode!r}: choose from {', '.join(MODES)}")
        if not -STRONGEST <= self.alpha <= STRONGEST:
            raise ValueError(
                f"strength {self.alpha} is not a number of benign spreads between -{STRONGEST} and {STRONGEST}"
            )
        check_budget(self.budget)


class Moved(NamedTuple):
    """What became of states.

    Attributes:
        states: float32 [..., T, W].
        landed: bool [..., T], the tokens that were put in the place of harmless ones.
    """

    states: Tensor
    landed: Tensor


def steer(
    slot: SlotAlignment,
    states: Tensor,
    settings: SteeringSettings,
    mask: Tensor | None = None,
    verdict: Verdict | None = None,
) -> Tensor:
    """Move one slot's states to the safe side; same shape, dtype and device.

    Args:
        states: [..., T, W].
        mask: bool [..., T], true on the tokens that may move; None is all.
        verdict: of the prompts [...], where it comes from several slots; None judges by this one.

    Raises:
        ValueError: a width, mask, mode, category, budget or strength that doesn't fit; it says which.
    """
    return move(slot, states, settings, mask, verdict).states


def move(
    slot: SlotAlignment,
    states: Tensor,
    settings: SteeringSettings,
    mask: Tensor | None = None,
    verdict: Verdict | None = None,
) -> Moved:
    """`steer`, and which tokens landed."""
    settings.check()
    content = slot.content(states, mask)
    names = slot.chosen(settings.categories)
    if settings.alpha == 0 and settings.mode != "project":
        return Moved(states.clone(), torch.zeros_like(content))
    if verdict is None and settings.judges:
        verdict = Calibration.of([slot]).verdict(slot.prompt_scores(states, content), settings.budget, names)
    moved, landed = MODES[settings.mode](states.float(), slot, settings, content, verdict)
    changed = (moved != states.float()).any(-1, keepdim=True)
    limit = torch.finfo(states.dtype).max
    return Moved(torch.where(changed, moved.clamp(-limit, limit).to(states.dtype), states), landed)


def add(
    states: Tensor, slot: SlotAlignment, settings: SteeringSettings, content: Tensor, verdict: Verdict | None
) -> Moved:
    """h + alpha * v on every content token (arXiv 2606.05290, step 4)."""
    shift = settings.alpha * slot.vector(slot.chosen(settings.categories)).to(states)
    return Moved(torch.where(content.unsqueeze(-1), states + shift, states), torch.zeros_like(content))


def project(
    states: Tensor, slot: SlotAlignment, settings: SteeringSettings, content: Tensor, verdict: Verdict | None
) -> Moved:
    """Raise each token's component along the direction to its benign mean, if it lies below the benign `budget` quantile."""
    for name in slot.chosen(settings.categories):
        unit = torch.nn.functional.normalize(slot.vector((name,)), dim=0).to(states)
        component = (states - slot.center.to(states)) @ unit
        low = content & (component < slot.token_level(name, settings.budget))
        states = torch.where(low.unsqueeze(-1), states - component.unsqueeze(-1) * unit, states)
    return Moved(states, torch.zeros_like(content))


def graded(
    states: Tensor, slot: SlotAlignment, settings: SteeringSettings, content: Tensor, verdict: Verdict | None
) -> Moved:
    """As strong as the prompt is unsafe: h + strength * alpha * v, and above the threshold landing as `gate` does.

    The strength, a power of the grade, grows from 0 at the floor to 1 at the threshold, and landing from 0 there to 1 at
    LANDED. Below the floor nothing changes; there is no jump anywhere.
    """
    assert verdict is not None
    names = slot.chosen(settings.categories)
    strength, shifted = verdict.strength.to(states).unsqueeze(-1), states
    own = content & (strength > 0)
    if own.any():
        shifted = states.clone()
        shifted[own] += strength.expand_as(content)[own].unsqueeze(-1) * (
            settings.alpha * slot.vector(names).to(states)
        )
    if not verdict.flagged.any():
        return Moved(shifted, torch.zeros_like(content))
    at_rest, landed = gate(states, slot, settings, content, verdict)
    landing = verdict.landing.to(states)[..., None, None]
    return Moved(torch.where(landing > 0, torch.lerp(shifted, at_rest, landing), shifted), landed)


def gate(
    states: Tensor, slot: SlotAlignment, settings: SteeringSettings, content: Tensor, verdict: Verdict | None
) -> Moved:
    """Act on flagged prompts only, there on the tokens that carry the concept, and land among benign states.

    Tokens move whose score lies above TOKEN_MARGIN or the prompt's mean. Of these the highest land. What scores far below them is
    some other word that tells of the concept around it: it goes the way that they went on average, and stays that word; unless it
    scores above SURE, where hardly any harmless word does.
    """
    assert verdict is not None
    flagged = verdict.flagged.to(content.device)
    if not flagged.any():
        return Moved(states, torch.zeros_like(content))
    names = slot.chosen(settings.categories)
    token_scores = torch.stack([slot.score(states, name) for name in names]).amax(0)
    mean = (token_scores * content).sum(-1, keepdim=True) / content.sum(-1, keepdim=True).clamp_min(1)
    context = _context(token_scores.masked_fill(~content, -torch.inf))
    moves = content & flagged.unsqueeze(-1) & (token_scores > mean.clamp(max=TOKEN_MARGIN))
    lands = moves & ~context
    bank, spacing = slot.bank.to(states.device), slot.bank_spacing.to(states.device)
    landed = states.clone()
    landed[lands] = land(states[lands] + settings.alpha * slot.vector(names).to(states), bank, spacing)
    mean_shift = (landed - states).sum(-2, keepdim=True) / lands.sum(-1)[..., None, None].clamp_min(1)
    return Moved(torch.where((moves & context).unsqueeze(-1), states + mean_shift, landed), lands)


def _context(token_scores: Tensor) -> Tensor:
    """Which tokens are other words beside the concept: far below their prompt's highest score, and not above SURE.
    bool [..., T]"""
    highest, where = token_scores.max(-1, keepdim=True)
    place = torch.arange(token_scores.shape[-1], device=token_scores.device)
    bar = (highest * torch.where(place > where, FAR_BEHIND, FAR)).clamp(max=SURE)
    return (token_scores < bar) & (place != where)


Mode = Callable[[Tensor, SlotAlignment, SteeringSettings, Tensor, "Verdict | None"], Moved]
"""(states float32 [..., T, W], slot, settings, content bool [..., T], verdict [...]) -> what became of them."""

MODES: Mapping[str, Mode] = {"gate": gate, "graded": graded, "add": add, "project": project}

JUDGING = frozenset({"gate", "graded"})
"""Modes that ask for a verdict."""
