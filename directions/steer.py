"""Steer: move text-conditioning states to the safe side. Pure functions; strategies by name in MODES."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Mapping

import torch
from torch import Tensor

from .direction import SHORTEST

if TYPE_CHECKING:
    from .aligned import AlignedDirection

NEIGHBOURS = 4
TOKEN_MARGINS = (1.25, 1.0, 0.75, 0.5, 0.25, 0.0, -0.25, -0.5)
STOP = -1.0
FAR, FAR_BEHIND = 0.3, 0.7
SURE = 3.0
PART = 128  # bank states at a time
AROUND, AT_ONCE = 10, 512


def add(states: Tensor, aligned: "AlignedDirection", names: tuple[str, ...], alpha: float, budget: float, content: Tensor) -> Tensor:
    """h + alpha * v on every content token (arXiv 2606.05290, step 4)."""
    return torch.where(content.unsqueeze(-1), states + alpha * aligned.vector(names).to(states), states)


def project(states: Tensor, aligned: "AlignedDirection", names: tuple[str, ...], alpha: float, budget: float, content: Tensor) -> Tensor:
    """Raise each token's component along the direction to its benign mean, if it lies below the benign `budget` quantile."""
    for name in names:
        unit = torch.nn.functional.normalize(aligned.vector((name,)), dim=0).to(states)
        component = (states - aligned.center.to(states)) @ unit
        low = content & (component < aligned.token_level(name, budget))
        states = torch.where(low.unsqueeze(-1), states - component.unsqueeze(-1) * unit, states)
    return states


def gate(states: Tensor, aligned: "AlignedDirection", names: tuple[str, ...], alpha: float, budget: float, content: Tensor) -> Tensor:
    """Act on flagged prompts only, there on the tokens that carry the concept, and land among benign states.

    Tokens move whose score lies above the prompt's mean or the first of TOKEN_MARGINS; where the prompt then still reads above
    STOP, those above the next margin move too. Of those that move the highest land. What scores far below them is some other word
    that tells of the concept around it: it goes the way that they went on average, and stays that word; unless it scores above
    SURE, where hardly any harmless word does.
    """
    left = aligned.flagged(states, budget, names, content)
    if not left.any():
        return states
    marks = torch.stack([aligned.score(states, name) for name in names]).amax(0)
    mean = (marks * content).sum(-1, keepdim=True) / content.sum(-1, keepdim=True).clamp_min(1)
    follows = _follows(marks.masked_fill(~content, -torch.inf))
    shift = alpha * aligned.vector(names).to(states)
    bank, around = aligned.bank.to(states.device), aligned.bank_spacing.to(states.device)
    out, landed, moved = states, states.clone(), torch.zeros_like(content)
    for margin in TOKEN_MARGINS:
        chosen = content & left.unsqueeze(-1) & ~moved & (marks > mean.clamp(max=margin))
        if not chosen.any():
            continue
        moved = moved | chosen
        chosen = chosen & ~follows
        landed[chosen] = land(states[chosen] + shift, bank, around)
        lead = moved & ~follows
        way = (landed - states).sum(-2, keepdim=True) / lead.sum(-1)[..., None, None].clamp_min(1)
        out = torch.where((moved & follows).unsqueeze(-1), states + way, landed)
        left = left & (torch.stack([aligned.prompt_score(out, name, content) for name in names]).amax(0) > STOP)
        if not left.any():
            break
    return out


def _follows(marks: Tensor) -> Tensor:
    """Which tokens score far below their prompt's highest, and not above SURE: bool [..., T]; behind it the bar is higher, since a
    causal encoder writes what came before into every token that follows."""
    highest, where = marks.max(-1, keepdim=True)
    place = torch.arange(marks.shape[-1], device=marks.device)
    return (marks < (highest * torch.where(place > where, FAR_BEHIND, FAR)).clamp(max=SURE)) & (place != where)


def land(states: Tensor, bank: Tensor, around: Tensor) -> Tensor:
    """Softmax average of the nearest bank states, so that what comes out looks like benign conditioning.

    Args:
        states: [n, W]; bank: [M, W]; around: [M], its spacing.
    """
    if len(states) == 0 or len(bank) == 0:
        return states
    weight, index = nearest(states, bank, around)
    return (weight.unsqueeze(-1) * bank[index].float()).sum(1).to(states)


def nearest(states: Tensor, bank: Tensor, around: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest bank states [M, W] of each state [n, W]: their softmax weights [n, k], the nearer the more, and indices [n, k].

    Distances are measured in each bank state's spacing, `around` [M]. A few states in the middle of the crowd are the nearest ones
    to almost anything ("hubs"; between two languages' words, arXiv 1710.04087), and all that is flagged would become the same.
    """
    near, index = (_distances(states.float(), bank) / around).topk(min(NEIGHBOURS, len(bank)), largest=False)
    return torch.softmax(-(near - near[:, :1]) / near.mean(1, keepdim=True).clamp_min(1e-6) * 8, dim=1), index


def spacing(bank: Tensor) -> Tensor:
    """How far apart the states of a bank [M, W] lie around each of them, [M]: the mean distance to its AROUND nearest others."""
    if len(bank) < 2:
        return torch.ones(len(bank))
    near = [_distances(part.float(), bank).topk(min(AROUND + 1, len(bank)), largest=False).values[:, 1:] for part in bank.split(AT_ONCE)]
    return torch.cat(near).mean(1).clamp_min(SHORTEST)


def _distances(states: Tensor, bank: Tensor) -> Tensor:
    """Euclidean distances [n, M]; a half precision bank is widened in parts that stay in the processor's cache."""
    parts = []
    for part in bank.split(PART):
        part = part.to(states)
        parts.append(torch.linalg.vector_norm(part, dim=1).square() - 2 * states @ part.T)  # the other way round takes twice as long
    return (torch.cat(parts, 1) + states.square().sum(1, keepdim=True)).clamp_min(0).sqrt()


Mode = Callable[[Tensor, "AlignedDirection", tuple[str, ...], float, float, Tensor], Tensor]
MODES: Mapping[str, Mode] = {"gate": gate, "add": add, "project": project}
