"""Score conditioning without changing it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ...directions.alignment import Alignment
from ...directions.direction_format import GLOBAL
from ...directions.slot import SlotAlignment
from ..words import Word, words_of
from .entry import Entry, check_entry, select, slot_content
from .marks import before_steering
from .templates import find_templates, streams

BAND = 0.95
"""Share of harmless prompts inside the band that pictures draw."""


class Scores(NamedTuple):
    """What one name (`global` or a category) reads, in benign standard deviations.

    Attributes:
        tokens: of each content token.
        prompt: of the whole prompt.
        threshold: what a share `budget` of harmless prompts exceeds.
        band: between these lie 95% of harmless prompts.
    """

    tokens: list[float]
    prompt: float
    threshold: float
    band: tuple[float, float]


class Reading(NamedTuple):
    """What a conditioning scores."""

    names: dict[str, Scores]
    flagged: bool
    budget: float

    @property
    def score(self) -> float:
        """Of the whole prompt."""
        return self.names[GLOBAL].prompt

    @property
    def threshold(self) -> float:
        """Above it the prompt is flagged."""
        return self.names[GLOBAL].threshold

    @property
    def categories(self) -> dict[str, float]:
        """Each category's score of the whole prompt."""
        return {name: scores.prompt for name, scores in self.names.items() if name != GLOBAL}

    def text(self) -> str:
        """The reading in words."""
        parts = ", ".join(
            f"{name} {value:+.1f}" for name, value in sorted(self.categories.items(), key=lambda i: -i[1])
        )
        verdict = "flagged" if self.flagged else "not flagged"
        return f"{verdict}: score {self.score:+.2f}, threshold {self.threshold:+.2f} at a budget of {self.budget:.1%} ({parts})"


def inspect_conditioning(conditioning: list, aligned: Alignment, budget: float) -> tuple[Reading, Reading | None]:
    """Score a conditioning list's `cond` as it is, and as it was before this direction steered it (None where it wasn't).

    Of several entries the first steered one counts, or the first; of several segments the one that scores highest.
    """
    entries: list[Entry] = [(cond, extras) for cond, extras in conditioning]
    if not entries:
        raise ValueError("this conditioning list is empty")
    origins = [before_steering(entry, aligned) for entry in entries]
    entry, before = next(((e, o) for e, o in zip(entries, origins) if o is not None), (entries[0], None))
    for one in (entry, before):
        if one is not None:
            check_entry(one, aligned)
    pairs = []
    for name, place in aligned.places.items():
        if place.tensor == "cond":
            mask = slot_content(_first(before or entry), aligned, name)
            pairs.append(
                (
                    _read(entry, aligned, name, budget, mask),
                    _read(before, aligned, name, budget, mask) if before else None,
                )
            )
    return max(pairs, key=lambda pair: (pair[0].flagged, (pair[1] or pair[0]).score - pair[0].threshold))


def _first(entry: Entry) -> Entry:
    return entry[0][:1], entry[1]


def _read(entry: Entry, aligned: Alignment, name: str, budget: float, mask: Tensor | None) -> Reading:
    assert mask is not None
    slot, states = aligned.slots[name], select(_first(entry)[0], aligned.places[name])
    names = {each: _scores(slot, states, mask, each, budget) for each in slot.names}
    return Reading(names, bool(slot.flagged(states, budget, (GLOBAL,), mask)[0]), budget)


def _scores(slot: SlotAlignment, states: Tensor, mask: Tensor, name: str, budget: float) -> Scores:
    band = slot.threshold((1 + BAND) / 2, name), slot.threshold((1 - BAND) / 2, name)
    return Scores(
        slot.score(states, name)[mask].tolist(),
        slot.prompt_scores(states, (name,), mask)[0, 0].item(),
        slot.threshold(budget, name),
        band,
    )


def prompt_words(clip: Any, prompt: str, count: int) -> list[Word] | None:
    """A prompt's words, from the tokenizer that splits it into `count` content tokens; None where there is none."""
    try:
        templates = find_templates(clip)
        for key, sections in streams(clip.tokenize(prompt)).items():
            ids = [section[i][0] for section in sections for i in templates[key].content(section)]
            tokenizer = next(part for name, part in vars(clip.tokenizer).items() if name in (key, f"clip_{key}"))
            if len(ids) == count:
                return words_of(ids, tokenizer.tokenizer.decode)
    except (AttributeError, TypeError, KeyError, StopIteration):
        pass
    return None
