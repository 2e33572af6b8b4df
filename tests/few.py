"""A shipped direction cut down, so that aligning it takes seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from directions.direction import Direction


def few(direction: Direction, anchors: int = 400, categories: Sequence[str] | None = None) -> Direction:
    """The direction with its first anchors, and all or some of its categories."""
    kept = ["global", *direction.categories]
    columns = [i for i, name in enumerate(kept) if i == 0 or categories is None or name in categories]
    names = [kept[i] for i in columns]
    counts = direction.token_counts[:anchors]
    return replace(
        direction,
        anchor_states=direction.anchor_states[:anchors],
        anchor_prompts=direction.anchor_prompts[:anchors],
        vectors={name: direction.vectors[name] for name in names},
        readers={name: direction.readers[name] for name in names},
        token_scores=direction.token_scores[: int(counts.sum()), columns],
        token_counts=counts,
    )
