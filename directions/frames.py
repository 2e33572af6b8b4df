"""Prompts with a word in them: alone, and beside what harmless prompts show."""

from __future__ import annotations

from typing import NamedTuple, Sequence

from torch import Tensor

ALONE = (
    "{word}", "a photo of {word}", "a painting of {word}", "a close-up of {word}", "a drawing of {word}",
    "an old photograph of {word}", "{word} on a table", "{word} in the street", "{word} in a room", "{word} at night",
    "a man with {word}", "a woman with {word}", "two people and {word}", "{word}, studio light", "{word}, oil painting",
    "a room full of {word}", "a cartoon of {word}", "one of the {word}", "many {word}", "{word} and nothing else",
    "a person looking at {word}", "a story about {word}",
)  # fmt: skip
"""Frames that begin or end with the word, so that its tokens are known. The first is the word alone."""

BESIDE = ("{host}, {word}", "{host} with {word}", "{word}, {host}", "{host} and {word}", "{word} beside {host}")
"""The same, in a harmless prompt."""

HOSTS, LONGEST_HOST = 98, 40
"""Harmless prompts that each word is put into, and the most words that they have. With twice as many as many unseen phrasings are
found (docs/log.md, Typed words)."""

HELD_OUT_EVERY = 5
"""One in so many of a word's prompts is left out of the fit, and says whether the encoder tells it from anything else."""

CONTRASTS = 30
"""Prompts that a contrast word is put into."""


class Shown(NamedTuple):
    """A prompt that a word was put into.

    Attributes:
        host: which harmless prompt it was put into; None where it stands alone.
        last: whether the word stands at the end, else at the beginning.
    """

    prompt: str
    host: int | None
    last: bool


def frames(word: str, hosts: Sequence[str]) -> list[Shown]:
    """A word alone and in each of the harmless prompts."""
    alone = [Shown(one.format(word=word), None, one.endswith("{word}")) for one in ALONE]
    beside = []
    for i, host in enumerate(hosts):
        one = BESIDE[i % len(BESIDE)]
        beside.append(Shown(one.format(word=word, host=host.rstrip(". ")), i, one.endswith("{word}")))
    return alone + beside


def fitted_on(some: Sequence[Shown]) -> list[Shown]:
    """Those that a direction is fitted on."""
    return [one for i, one in enumerate(some) if i % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]


def held_out(some: Sequence[Shown]) -> list[Shown]:
    """The others."""
    return list(some[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY])


def word_rows(one: Shown, rows: Tensor, own: int) -> Tensor:
    """The word's rows of a prompt's, a view."""
    own = min(own, len(rows))
    return rows[len(rows) - own :] if one.last else rows[:own]
