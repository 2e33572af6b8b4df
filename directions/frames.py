"""Prompts with a word in them: alone, and beside what harmless prompts show."""

from __future__ import annotations

from typing import NamedTuple, Sequence

from torch import Tensor

ALONE = (
    "{word}", "{word}", "a photo of {word}", "a painting of {word}", "a close-up of {word}", "a drawing of {word}",
    "{word} on a table", "{word} in the street", "{word} at night", "a man holding {word}", "a woman holding {word}",
    "{word} in the rain", "{word}, studio light", "an old man looking at {word}", "in the corner, {word}", "a woman in {word}",
    "a man with {word}", "a bird and {word}", "{word} behind a house",
)  # fmt: skip
"""Frames that begin or end with the word, so that its tokens are known. The first two are the word alone, as it was typed and in
the singular: every other frame has the one and the other."""

BESIDE = ("{host}, {word}", "{host} with {word}", "{word}, {host}", "{host} and {word}", "{word} beside {host}")
"""The same, in a harmless prompt."""

HOSTS, LONGEST_HOST = 102, 40
"""Harmless prompts that each word is put into, and the most words that they have. With twice as many as many unseen phrasings are
found (docs/log.md, Typed words)."""

HELD_OUT_EVERY = 5
"""One in so many of a word's prompts is left out of the fit, and says whether the encoder tells it from anything else."""

CONTRASTS = 30
"""Prompts that a contrast word is put into."""


class Shown(NamedTuple):
    """A prompt that a word was put into.

    Attributes:
        form: the word as it stands there, a prompt of its own as well.
        host: which harmless prompt it was put into; None where it stands alone.
        last: whether the word stands at the end, else at the beginning.
    """

    prompt: str
    form: str
    host: int | None
    last: bool


def singular(word: str) -> str:
    """An English plural's singular, by its ending; anything else as it is."""
    for ending, one in (("ies", "y"), ("ves", "fe"), ("xes", "x"), ("ches", "ch"), ("shes", "sh"), ("sses", "ss")):
        if word.endswith(ending):
            return word.removesuffix(ending) + one
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def frames(word: str, hosts: Sequence[str]) -> list[Shown]:
    """A word alone and in each of the harmless prompts."""
    forms = (word, singular(word))

    def shown(frame: str, form: str, host: int | None) -> Shown:
        last = frame.endswith("{word}")
        article = "" if form == word or not last or frame == "{word}" else "an " if form[0] in "aeiou" else "a "
        text = "" if host is None else hosts[host].rstrip(". ")
        return Shown(frame.format(word=article + form, host=text), form, host, last)

    alone = [shown(frame, forms[i % 2], None) for i, frame in enumerate(ALONE)]
    return alone + [shown(BESIDE[i % len(BESIDE)], forms[i // len(BESIDE) % 2], i) for i in range(len(hosts))]


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
