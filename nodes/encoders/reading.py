"""Score conditioning without changing it."""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple

import torch

from ...directions.alignment import Alignment
from ...directions.direction_format import GLOBAL
from ...directions.slot import SlotAlignment
from ..words import Word, words_of
from .entry import Entry, Own, check_entry, own_states, slot_content
from .marks import before_steering
from .templates import find_templates, streams, tokenizer_of

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
    """What a conditioning scores.

    Attributes:
        head: `global`, or of several joined directions what the one that is furthest over its threshold is called.
    """

    names: dict[str, Scores]
    flagged: bool
    budget: float
    head: str = GLOBAL

    @property
    def score(self) -> float:
        """Of the whole prompt."""
        return self.names[self.head].prompt

    @property
    def threshold(self) -> float:
        """Above it the prompt is flagged."""
        return self.names[self.head].threshold

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
    """Score a conditioning as it is, and as it was before this direction steered it (None where it wasn't).

    The prompt's score is one, of all the encoder's slots. Of several entries the first steered one counts, or the first. Tokens
    are those of the slot whose words score highest: of those in `cond`, or where the prompt isn't in it, as when only some of a
    model's encoders are loaded, of the others.
    """
    entries: list[Entry] = [(cond, extras) for cond, extras in conditioning]
    if not entries:
        raise ValueError("this conditioning list is empty")
    origins = [before_steering(entry, aligned) for entry in entries]
    entry, before = next(((e, o) for e, o in zip(entries, origins) if o is not None), (entries[0], None))
    original = before or entry
    for one in (entry, original):
        check_entry(one, aligned)
    # Where the prompt's own tokens stand is read from what came in: steered states may look like padding.
    masks = {name: mask[0] for name in aligned.slots if (mask := slot_content(original, aligned, name)) is not None}
    own = own_states(_first(original), aligned, masks)
    shown = max(_shown(aligned, own), key=lambda name: _highest(aligned.slots[name], own[name])) if own else ""
    reading = _read(own, shown, aligned, budget)
    return (_read(own_states(_first(entry), aligned, masks), shown, aligned, budget), reading) if before else (reading, None)


def _first(entry: Entry) -> Entry:
    """The first row of a batch."""
    extras = {name: value[:1] if torch.is_tensor(value) and value.dim() > 1 else value for name, value in entry[1].items()}
    return entry[0][:1], extras


def _shown(aligned: Alignment, own: Mapping[str, Own]) -> list[str]:
    """The slots whose tokens may be shown: those in `cond`, else those with tokens, else all that there are."""
    in_cond = [name for name in own if aligned.places[name].tensor == "cond"]
    return in_cond or [name for name in own if aligned.places[name].length] or list(own)


def _highest(slot: SlotAlignment, own: Own) -> float:
    return slot.score(own.states)[own.mask].max().item()


def _read(own: Mapping[str, Own], shown: str, aligned: Alignment, budget: float) -> Reading:
    """An empty prompt has no tokens and scores 0."""
    calibration = aligned.calibrations.of(list(own or aligned.slots))
    of_slots = [aligned.slots[name].prompt_scores(one.states, one.mask) for name, one in own.items()]
    scores = calibration.scores(of_slots)[0].tolist() if own else [0.0] * len(aligned.names)
    heads = next(iter(aligned.slots.values())).chosen(None)  # they share the budget
    names = {
        name: Scores(
            tokens=aligned.slots[shown].score(own[shown].states, name)[own[shown].mask].tolist() if own else [],
            prompt=score,
            threshold=calibration.threshold(budget / len(heads), name),
            band=(calibration.threshold((1 + BAND) / 2, name), calibration.threshold((1 - BAND) / 2, name)),
        )
        for name, score in zip(aligned.names, scores)
    }
    head = max(heads, key=lambda name: names[name].prompt - names[name].threshold)
    return Reading(names, names[head].prompt > names[head].threshold, budget, head)


def prompt_words(clip: Any, prompt: str, count: int) -> list[Word] | None:
    """A prompt's words, from the tokenizer that splits it into `count` content tokens; None where there is none."""
    try:
        templates = find_templates(clip)
        for key, sections in streams(clip.tokenize(prompt)).items():
            ids = [section[i][0] for section in sections for i in templates[key].content(section)]
            if len(ids) == count:
                return words_of(ids, tokenizer_of(clip, key).tokenizer.decode)
    except (AttributeError, TypeError, KeyError):
        pass
    return None
