"""What each of a CLIP's tokenizers puts around every prompt, learned from what a few prompts have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Sequence

from ...directions.alignment import PROBE_PROMPT

# They share no first or last word, also between the quotes, which some encoders give to a second encoder for lettering.
PROBES = (
    PROBE_PROMPT,
    'two cats asleep below the word "late" on blue paper',
    'seven ships called "Ada" under heavy clouds',
)
LONG = " ".join(PROBES) * 12

Tokens = Mapping[str, list]
"""What a tokenizer gives: by stream, a list of sections of (token, weight, ...)."""


@dataclass(frozen=True)
class Template:
    """What one tokenizer puts around a prompt.

    Attributes:
        pad: its padding token.
        before, after: tokens of start or template before the prompt, and of end behind it.
        chunk: tokens per chunk where long prompts are cut into several; else 0.
    """

    pad: int | None
    before: int
    after: int
    chunk: int

    def content(self, section: Sequence[tuple]) -> range:
        """The prompt's own tokens in one section."""
        start, stop = unpadded(section, self.pad)
        return range(start + self.before, max(start + self.before, stop - self.after))


def unpadded(section: Sequence[tuple], pad: int | None) -> tuple[int, int]:
    """The section without its padding, which may be on the left: start, stop."""
    start, stop = 0, len(section)
    while pad is not None and stop > 0 and _is(section[stop - 1], pad):
        stop -= 1
    while pad is not None and start < stop and _is(section[start], pad):
        start += 1
    return start, stop


def _is(token: tuple, value: int | None) -> bool:
    return isinstance(token[0], int) and token[0] == value


def streams(tokens: Any) -> dict[str, list]:
    """The token streams among what a tokenizer gives: lists of sections of (token, weight, ...)."""
    if not isinstance(tokens, Mapping):
        return {}
    return {
        key: sections
        for key, sections in tokens.items()
        if isinstance(sections, list)
        and sections
        and all(isinstance(s, list) and all(isinstance(t, tuple) for t in s) for s in sections)
    }


def find_templates(clip: Any) -> dict[str, Template]:
    """The template of each of a CLIP's tokenizers."""
    probes = [streams(clip.tokenize(prompt)) for prompt in PROBES]
    long = streams(clip.tokenize(LONG))
    found = {}
    for key in probes[0]:
        sections = [probe[key][0] for probe in probes if key in probe]
        pad = _pad(sections)
        ids = [[t[0] for t in section[slice(*unpadded(section, pad))]] for section in sections]
        before = _common(ids)
        after = _common([row[before:][::-1] for row in ids])
        pieces = long.get(key, [[]])
        found[key] = Template(pad, before, after, len(pieces[0]) if len(pieces) > 1 else 0)
    return found


def _pad(sections: Sequence[Sequence[tuple]]) -> int | None:
    """The token that a section ends with twice, or begins with twice."""
    for outer, next_to in ((-1, -2), (0, 1)):
        for section in sections:
            if len(section) > 1 and isinstance(section[outer][0], int) and section[outer][0] == section[next_to][0]:
                return section[outer][0]
    return None


def _common(rows: Sequence[Sequence[Any]]) -> int:
    count = 0
    for column in zip(*rows):
        if not all(isinstance(t, int) and t == column[0] for t in column):
            break
        count += 1
    return count
