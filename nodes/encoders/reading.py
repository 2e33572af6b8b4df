"""Score conditioning without changing it."""

from __future__ import annotations

from typing import Any, NamedTuple

from ...directions.encoder import AlignedEncoder
from .layout import find_edges, streams
from .steering import Entry, check_entry, select, slot_content


class Reading(NamedTuple):
    """What Inspect Conditioning found; scores in benign standard deviations."""

    tokens: list[float]
    score: float
    threshold: float
    flagged: bool
    budget: float
    categories: dict[str, float]

    @property
    def category(self) -> str:
        """The category that scores highest."""
        return max(self.categories, key=self.categories.__getitem__) if self.categories else "global"

    def text(self) -> str:
        """The reading in words."""
        parts = ", ".join(f"{name} {value:+.1f}" for name, value in sorted(self.categories.items(), key=lambda i: -i[1]))
        verdict = "flagged" if self.flagged else "not flagged"
        return f"{verdict}: score {self.score:+.2f}, threshold {self.threshold:+.2f} at a budget of {self.budget:.1%} ({parts})"


def inspect_conditioning(conditioning: list, aligned: AlignedEncoder, budget: float) -> Reading:
    """Score the first entry of a conditioning list on its `cond`; of several segments, the one that scores highest."""
    if not conditioning:
        raise ValueError("this conditioning list is empty")
    entry = (conditioning[0][0][:1], conditioning[0][1])
    check_entry(entry, aligned)
    found = [_read(entry, aligned, name, budget) for name, place in aligned.places.items() if place.tensor == "cond"]
    return max(found, key=lambda reading: reading.score - reading.threshold)


def _read(entry: Entry, aligned: AlignedEncoder, name: str, budget: float) -> Reading:
    slot, states, mask = aligned.slots[name], select(entry[0], aligned.places[name]), slot_content(entry, aligned, name)
    assert mask is not None
    return Reading(
        tokens=slot.score(states)[mask].tolist(),
        score=slot.prompt_score(states, mask=mask)[0].item(),
        threshold=slot.threshold(budget),
        flagged=bool(slot.flagged(states, budget, mask=mask)[0]),
        budget=budget,
        categories={category: slot.prompt_score(states, category, mask)[0].item() for category in slot.categories},
    )


def token_labels(clip: Any, prompt: str, count: int) -> list[str] | None:
    """The text of each content token, from the tokenizer whose number of them agrees; None when there is none."""
    try:
        edges = find_edges(clip)
        for key, sections in streams(clip.tokenize(prompt)).items():
            ids = [section[i][0] for section in sections for i in edges[key].content(section)]
            tokenizer = next(part for name, part in vars(clip.tokenizer).items() if name in (key, f"clip_{key}"))
            if len(ids) == count:
                return [tokenizer.tokenizer.decode([token]).strip() for token in ids]
    except (AttributeError, TypeError, KeyError, StopIteration):
        pass
    return None
