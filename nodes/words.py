"""A prompt's tokens as words."""

from __future__ import annotations

import unicodedata
from typing import Any, Callable, NamedTuple, Sequence

_UNSPACED = (
    (0xE00, 0xEFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x2E80, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x20000, 0x3FFFF),
)


class Word(NamedTuple):
    """A word of the prompt and the content tokens, from `start` to `stop`, that it was split into."""

    text: str
    start: int
    stop: int


def words_of(ids: Sequence[Any], decode: Callable[[list], str]) -> list[Word]:
    """Token ids as words: cut where the decoded text has a space, and between the letters of scripts without spaces.

    A textual inversion's vectors, which are no ids, are one word.
    """
    words: list[Word] = []
    start = 0
    while start < len(ids):
        stop = start + 1
        vector = not isinstance(ids[start], int)
        while stop < len(ids) and vector != isinstance(ids[stop], int):
            if not vector and _splits(decode(list(ids[start:stop])), decode(list(ids[start : stop + 1]))):
                break
            stop += 1
        text = "(embedding)" if vector else decode(list(ids[start:stop])).strip().removeprefix("##")
        words.append(Word(text or "␣", start, stop))
        start = stop
    return words


def _splits(text: str, longer: str) -> bool:
    """Whether the token that makes `longer` of `text` starts a new word."""
    if text.endswith("\N{REPLACEMENT CHARACTER}"):
        return False  # a letter whose bytes are not all there yet
    rest = longer[len(text.rstrip()) :]
    if not text.strip() or not rest.strip() or unicodedata.combining(rest[0]) or unicodedata.category(rest[0]) == "Mn":
        return False
    return rest[0].isspace() or _unspaced(rest.lstrip()[0]) or _unspaced(text.rstrip()[-1])


def _unspaced(letter: str) -> bool:
    """Of a script that writes no spaces: Chinese, Japanese, Thai, Lao, Burmese, Khmer."""
    code = ord(letter)
    return any(low <= code <= high for low, high in _UNSPACED)
