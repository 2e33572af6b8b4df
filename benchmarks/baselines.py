"""Directions to hold a transferred one against: learned on the target itself, and random."""

from __future__ import annotations

from dataclasses import replace
from typing import Sequence

import torch
from torch import Tensor

from directions.direction import GLOBAL, Direction
from directions.estimate import changed_tokens, fit_reader, score_tokens
from directions.prompts import read_pairs
from directions.sources import quiet

from .models import target_ids, target_states


def pool(states: Sequence[Tensor]) -> Tensor:
    """Mean over tokens: [prompts, W]."""
    return torch.stack([rows.mean(0) for rows in states])


def native(target: str, shipped: Direction) -> Direction:
    """Learned on the target's own states from the training pairs, on the anchors of `shipped`: `estimate` without the
    language model."""
    pairs = read_pairs(split="train")
    rows = _own(shipped)
    groups = [[shipped.anchor_prompts[i] for i in rows], [p.safe for p in pairs], [p.unsafe for p in pairs]]
    states = target_states(target, [prompt for group in groups for prompt in group])
    anchors, safe, unsafe = states[: len(rows)], states[len(rows) : -len(pairs)], states[-len(pairs) :]
    changed = [changed_tokens(a, b) for a, b in zip(target_ids(target, groups[1]), target_ids(target, groups[2]))]
    names = (GLOBAL, *shipped.categories)
    picks = {name: torch.tensor([name in (GLOBAL, p.category) for p in pairs]) for name in names}
    mentioned = shipped.mentioned[rows]
    order = torch.argsort(mentioned.int(), stable=True).tolist()
    benign = len(rows) - int(mentioned.sum())
    own, named = [anchors[i] for i in order[:benign]], [anchors[i] for i in order[benign:]]
    of_tokens = score_tokens(own, [part[mask] for part, mask in zip(unsafe, changed)], picks, quiet, named)
    scores: list[Tensor] = [torch.empty(0)] * len(rows)
    for i, part in zip(order, of_tokens.split([len(anchors[i]) for i in order])):
        scores[i] = part
    good, bad = pool(safe), pool(unsafe)
    against = torch.cat([pool(own), good, pool(named)])
    return replace(
        _with_anchors(shipped, anchors, torch.cat(scores)),
        vectors={name: (good[pick] - bad[pick]).mean(0) for name, pick in picks.items()},
        readers={name: fit_reader(against, bad[pick]) for name, pick in picks.items()},
        source={
            "model": f"{target} (native)",
            "layers": [-1],
            "pooling": "mean over prompt tokens",
            "template": "{prompt}",
        },
        name="native",
    )


def noise(target: str, shipped: Direction, seed: int = 0) -> Direction:
    """Random vectors and readers, drawn with the spread that the target's benign states have in each dimension."""
    states = target_states(target, [shipped.anchor_prompts[i] for i in _own(shipped)])
    benign, rows = pool(states), torch.cat(states)
    generator = torch.Generator().manual_seed(seed)
    spread = benign.std(0)
    names = (GLOBAL, *shipped.categories)
    readers = torch.randn(len(names), len(spread), generator=generator) / spread.clamp_min(1e-6)
    vectors = torch.randn(len(names), len(spread), generator=generator) * spread
    scores = rows @ readers.T
    return replace(
        _with_anchors(shipped, states, (scores - scores.mean(0)) / scores.std(0)),
        vectors=dict(zip(names, vectors)),
        readers=dict(zip(names, readers)),
        source={
            "model": f"{target} (random)",
            "layers": [-1],
            "pooling": "mean over prompt tokens",
            "template": "{prompt}",
        },
        name="random",
    )


def _own(shipped: Direction) -> list[int]:
    """The anchors that translate no other."""
    return (shipped.groups == torch.arange(len(shipped.anchor_prompts))).nonzero().flatten().tolist()


def _with_anchors(shipped: Direction, states: Sequence[Tensor], of_tokens: Tensor) -> Direction:
    """With what a target makes of the anchors that translate no other; prompts are scored by the readers."""
    own = _own(shipped)
    counts = torch.zeros(len(shipped.anchor_prompts), dtype=torch.long)
    counts[own] = torch.tensor([len(rows) for rows in states])
    place = {index: i for i, index in enumerate(own)}
    return replace(
        shipped,
        anchor_states=pool(states).half()[[place[i] for i in shipped.groups.tolist()]],
        token_scores=of_tokens.half(),
        token_counts=counts,
        prompt_scores=torch.empty(0),
    )
