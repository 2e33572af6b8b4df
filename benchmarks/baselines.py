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
    groups = [list(shipped.anchor_prompts), [p.safe for p in pairs], [p.unsafe for p in pairs]]
    states = target_states(target, [prompt for group in groups for prompt in group])
    anchors, safe, unsafe = states[: len(groups[0])], states[len(groups[0]) : -len(pairs)], states[-len(pairs) :]
    changed = [changed_tokens(a, b) for a, b in zip(target_ids(target, groups[1]), target_ids(target, groups[2]))]
    names = (GLOBAL, *shipped.categories)
    picks = {name: torch.tensor([name in (GLOBAL, p.category) for p in pairs]) for name in names}
    # The shipped file has its mentions last, as `score_tokens` gives them.
    own, named = anchors[: int((~shipped.mentioned).sum())], anchors[int((~shipped.mentioned).sum()) :]
    tokens = score_tokens(own, [rows[mask] for rows, mask in zip(unsafe, changed)], picks, quiet, named)
    benign, good, bad = pool(own), pool(safe), pool(unsafe)
    return replace(
        shipped,
        vectors={name: (good[pick] - bad[pick]).mean(0) for name, pick in picks.items()},
        readers={name: fit_reader(torch.cat([benign, good, pool(named)]), bad[pick]) for name, pick in picks.items()},
        anchor_states=pool(anchors).half(),
        token_scores=tokens.half(),
        token_counts=torch.tensor([len(rows) for rows in anchors]),
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
    states = target_states(target, shipped.anchor_prompts)
    benign, rows = pool(states), torch.cat(states)
    generator = torch.Generator().manual_seed(seed)
    spread = benign.std(0)
    names = (GLOBAL, *shipped.categories)
    readers = torch.randn(len(names), len(spread), generator=generator) / spread.clamp_min(1e-6)
    vectors = torch.randn(len(names), len(spread), generator=generator) * spread
    scores = rows @ readers.T
    return replace(
        shipped,
        vectors=dict(zip(names, vectors)),
        readers=dict(zip(names, readers)),
        anchor_states=benign.half(),
        token_scores=((scores - scores.mean(0)) / scores.std(0)).half(),
        token_counts=torch.tensor([len(part) for part in states]),
        source={
            "model": f"{target} (random)",
            "layers": [-1],
            "pooling": "mean over prompt tokens",
            "template": "{prompt}",
        },
        name="random",
    )
