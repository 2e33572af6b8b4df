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
    own = direction.picked(range(anchors))
    return replace(
        own,
        vectors={name: own.vectors[name] for name in names},
        readers={name: own.readers[name] for name in names},
        token_scores=own.token_scores[:, columns],
        prompt_scores=own.prompt_scores[:, columns] if len(own.prompt_scores) else own.prompt_scores,
    )
