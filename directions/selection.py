"""Which anchors say most: an order of which every beginning is a good choice."""

from __future__ import annotations

from dataclasses import replace
from typing import Collection, Sequence

import torch
from torch import Tensor

from .direction import Direction
from .prompts import Translation

COMPONENTS = 128
"""Principal components in which anchors are compared; of SmolLM2's 576 dimensions they hold nine tenths of the variance."""

RIDGE = 1.0
"""Mean variances that are taken as known beforehand, so that the first choices aren't outliers alone."""


def chosen(direction: Direction, most: int | None, needed: Collection[str] = ()) -> Direction:
    """The direction with its anchors in an order of which every beginning is a good choice, and no more than `most`.

    Everyday anchors all stay: thresholds are read off them. So do mentions: each names something that no other harmless prompt
    does. Of those near the line those stay that a fit learns most from, and those that are `needed`.

    Raises:
        ValueError: the everyday anchors and the mentions alone are more than `most`.
    """
    everyday, mentioned = direction.everyday, direction.mentioned
    near = ~everyday & ~mentioned
    always = int((~near).sum())
    if most is not None and always > most:
        raise ValueError(f"{always} everyday anchors and mentions are more than the {most} that the file is to carry")
    states, prompts = direction.anchor_states.float(), direction.anchor_prompts
    lists = [_spread_out(everyday.nonzero().flatten().tolist())]
    for kind, room in ((near, None if most is None else most - always), (mentioned, None)):
        index = kind.nonzero().flatten().tolist()
        held = [i for i in index if prompts[i] in needed]
        free = [i for i in index if prompts[i] not in needed]
        known = torch.cat([states[everyday], states[held]])
        more = by_influence(states[free], known, None if room is None else max(0, room - len(held)))
        lists.append(held + [free[i] for i in more])
    return direction.picked(interleaved(*lists))


def _spread_out(index: list[int]) -> list[int]:
    """Themes stand together in a list; drawn evenly, every beginning has its share of each."""
    draw = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))
    return [index[i] for i in draw.tolist()]


def translated(direction: Direction, translations: Sequence[Translation]) -> Direction:
    """The direction with translations of its anchors behind them."""
    place = {prompt: i for i, prompt in enumerate(direction.anchor_prompts)}
    known = [one for one in translations if one.english in place and one.prompt not in place]
    if not known:
        return direction
    own = len(direction.anchor_prompts)
    originals = torch.tensor([*range(own), *(place[one.english] for one in known)])
    return replace(
        direction,
        anchor_prompts=(*direction.anchor_prompts, *(one.prompt for one in known)),
        anchor_states=direction.anchor_states[originals],
        prompt_scores=direction.prompt_scores[originals] if len(direction.prompt_scores) else direction.prompt_scores,
        token_counts=torch.cat([direction.token_counts, torch.zeros(len(known), dtype=torch.long)]),
        languages=(*["en"] * own, *(one.language for one in known)),
        originals=originals,
    )


def by_influence(states: Tensor, known: Tensor, count: int | None = None) -> list[int]:
    """The rows of `states` [N, D] in the order in which a linear fit learns most from them, after it has seen `known` [M, D].

    Greedy D-optimal design: the next row is the one whose value is least certain, x' (RIDGE I + sum of what was seen)^-1 x.

    Args:
        count: how many; None is all.
    """
    everything = torch.cat([known, states]).double()
    mean, spread = everything.mean(0), everything.std(0).clamp_min(1e-6)
    features = (everything - mean) / spread
    rank = min(COMPONENTS, *features.shape)
    _, _, basis = torch.linalg.svd(features, full_matrices=False) if len(features) < 512 else _leading(features, rank)
    features = features @ basis[:rank].T
    features /= features.square().mean().sqrt()
    seen, rows = features[: len(known)], features[len(known) :]
    inverse = torch.linalg.inv(RIDGE * torch.eye(rank, dtype=features.dtype) + seen.T @ seen)
    uncertain = ((rows @ inverse) * rows).sum(1)
    order: list[int] = []
    for _ in range(len(rows) if count is None else min(count, len(rows))):
        best = int(uncertain.argmax())
        order.append(best)
        direction = inverse @ rows[best]
        gain = 1 + uncertain[best]
        inverse -= direction.outer(direction) / gain
        uncertain -= (rows @ direction).square() / gain
        uncertain[order] = -torch.inf
    return order


def _leading(features: Tensor, rank: int) -> tuple[None, None, Tensor]:
    values, vectors = torch.linalg.eigh(features.T @ features)
    return None, None, vectors[:, values.argsort(descending=True)[:rank]].T


def interleaved(*lists: list[int]) -> list[int]:
    """Several lists as one in which every beginning has its share of each."""
    places = [((i + 1) / len(one), number, item) for number, one in enumerate(lists) for i, item in enumerate(one)]
    return [item for _, _, item in sorted(places)]
