"""Make a direction of typed words for a loaded text encoder, once."""

from __future__ import annotations

import logging
from typing import Any, Mapping, NamedTuple, Sequence

from torch import Tensor

from ...directions.alignment import Alignment
from ...directions.direction import Direction
from ...directions.joining import joined
from ...directions.words import fingerprint, from_words, harmless_prompts
from .alignment import anchor_states, attached, check_encoder, probes_of
from .clip import unsteered
from .identity import identify
from .kept import folder, hash_of, kept_for, kind_of_words
from .layout import Layout
from .padding import with_padding
from .places import Unsteerable


class Typed(NamedTuple):
    """What was typed; arguments for `from_words`."""

    words: tuple[str, ...]
    instead: str = ""
    contrast: tuple[str, ...] = ()

    def fingerprint(self, direction: Direction) -> str:
        """What the direction is known by, told from the harmless prompts of `direction`."""
        return fingerprint(self.words, harmless_prompts(direction), self.instead, self.contrast)


def type_direction(clip: Any, typed: Typed, direction: Direction) -> Alignment:
    """The words as a direction for `clip`: from the cache if it was made before, else made and kept.

    Args:
        direction: whose harmless prompts the words are told from.

    Raises:
        UnclearWords: the encoder doesn't tell a word from anything else, or it would flag everything.
        Unsteerable: the CLIP gives no states that depend on its prompt.
    """
    clip = unsteered(clip)
    own = typed.fingerprint(direction)
    kind, identity = kind_of_words(own), identify(clip)
    kept = kept_for(kind, identity, own)
    if kept is not None:
        return kept
    layout = Layout.discover(clip)
    if not layout.places:
        raise Unsteerable("what this CLIP gives doesn't depend on the prompt: there is nothing to steer")
    harmless = harmless_prompts(direction)
    read: dict[str, Any] = {}

    def encode(prompts: Sequence[str]) -> Mapping[str, Sequence[Tensor]]:
        # The harmless prompts come first; the special tokens of these alone are landed on.
        states, read["special"] = anchor_states(clip, prompts, layout, range(min(len(harmless), len(prompts))))
        read["states"] = states
        return states  # type: ignore[return-value]

    made = from_words(typed.words, encode, harmless, instead=typed.instead, contrast=typed.contrast)
    probes = probes_of(clip, layout)
    slots = {
        name: attached(slot, layout.places[name], probes[name], read["states"][name], read["special"][name])
        for name, slot in made.slots.items()
    }
    aligned = Alignment(with_padding(clip, harmless, layout, slots))
    try:
        aligned.save(folder() / f"{kind}-{identity or hash_of(probes)}.safetensors")
    except OSError as error:
        logging.warning("safety-directions: the typed direction works but can't be kept (%s)", error)
    return aligned


def add_typed(clip: Any, aligned: Alignment, typed: Typed, direction: Direction) -> Alignment:
    """An alignment of this encoder with the words added.

    Raises:
        StaleAlignment: `aligned` was made for another encoder.
        ValueError: it has a category of a word's name already.
    """
    check_encoder(clip, aligned)
    return joined(aligned, type_direction(clip, typed, direction))
