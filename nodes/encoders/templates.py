"""What each of a CLIP's tokenizers puts around every prompt, learned from what a few prompts have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Sequence

import torch

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

PICTURE, NUMBER = "picture", "number"
"""What stands in a template for any picture, and for any token with a digit: a date is another one tomorrow."""


@dataclass(frozen=True)
class Template:
    """What one tokenizer puts around a prompt.

    Attributes:
        pad: its padding token.
        opening, closing: tokens of start or template before the prompt, and of end behind it.
        pictured, pictured_closing: both where a picture goes with the prompt; empty where none can.
        chunk: tokens per chunk where long prompts are cut into several; else 0.
        inner: whether the padding stands between the prompt and the closing.
        numbers: tokens with a digit in them.
    """

    pad: int | None
    opening: tuple = ()
    closing: tuple = ()
    pictured: tuple = ()
    pictured_closing: tuple = ()
    chunk: int = 0
    inner: bool = False
    numbers: frozenset[int] = frozenset()

    def content(self, section: Sequence[tuple]) -> list[int]:
        """The prompt's own tokens in one section: whatever isn't the template's.

        A prompt can bring a template of its own. Of that as much is left out as is also the tokenizer's.
        """
        kinds = self.kinds(section)
        start, stop = self._bounds(kinds)
        around = {at + side for at, kind in enumerate(kinds) if kind == PICTURE for side in (-1, 0, 1)}
        brackets = self._brackets()
        return [i for i in range(start, stop) if i not in around or kinds[i] not in brackets]

    def pads(self, section: Sequence[tuple]) -> bool:
        """Whether padding stands behind the prompt."""
        return self._bounds(self.kinds(section))[1] + len(self.closing) < len(section)

    def opens(self, section: Sequence[tuple]) -> bool:
        """Whether a section is written as the tokenizer writes them, and not in a template of the prompt's own."""
        kinds = self.kinds(section)
        kinds = kinds[slice(*unpadded(kinds, None if self.inner else self.pad))]
        return PICTURE in kinds or kinds[: len(self.opening)] == list(self.opening)

    def kinds(self, section: Sequence[tuple]) -> list:
        """A section's tokens as they are compared."""
        return [kind_of(token[0], self.numbers) for token in section]

    def _bounds(self, kinds: Sequence[Any]) -> tuple[int, int]:
        start, stop = unpadded(kinds, None if self.inner else self.pad)
        body = kinds[start:stop]
        first = max(_shared(body, self.opening), _shared(body, self.pictured))
        rest = body[first:][::-1]
        last = stop - max(_shared(rest, self.closing[::-1]), _shared(rest, self.pictured_closing[::-1]))
        if self.inner:
            last = max(start + first, unpadded(kinds[:last], self.pad)[1])
        return start + first, last

    def _brackets(self) -> set:
        """A picture, and the tokens that the tokenizer puts around one."""
        at = [i for i, kind in enumerate(self.pictured) if kind == PICTURE]
        return {PICTURE, *(kind for i in at for kind in self.pictured[max(0, i - 1) : i + 2])}


def kind_of(token: Any, numbers: frozenset[int] = frozenset()) -> Any:
    """A token as it is compared with another: its id, PICTURE, NUMBER, or None for a textual inversion's vector."""
    if isinstance(token, int):
        return NUMBER if token in numbers else token
    return PICTURE if isinstance(token, dict) else None


def unpadded(kinds: Sequence[Any], pad: int | None) -> tuple[int, int]:
    """A section without its padding, which may be on the left: start, stop."""
    start, stop = 0, len(kinds)
    while pad is not None and stop > 0 and kinds[stop - 1] == pad:
        stop -= 1
    while pad is not None and start < stop and kinds[start] == pad:
        start += 1
    return start, stop


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


def quiet(tokens: Any) -> Any:
    """What a tokenizer gives, with every switch that stands beside the tokens off: a language model may write a song for
    each prompt, and an alignment reads thousands."""
    if not isinstance(tokens, Mapping):
        return tokens
    off = {
        key: {name: False if flag is True else flag for name, flag in value.items()}
        for key, value in tokens.items()
        if isinstance(value, Mapping) and key not in streams(tokens) and any(flag is True for flag in value.values())
    }
    return {**tokens, **off} if off else tokens


def tokenizer_of(clip: Any, key: str) -> Any:
    """The tokenizer of a stream, as transformers or tokenizers has it, inside ComfyUI's; None where it can't be told."""
    parts = {name: part for name, part in vars(clip.tokenizer).items() if hasattr(part, "inv_vocab")}
    return next(
        (parts[name] for name in (key, f"clip_{key}") if name in parts),
        next(iter(parts.values())) if len(parts) == 1 else None,
    )


def numbers_of(clip: Any, key: str, ids: Sequence[Any]) -> frozenset[int]:
    """Which of these tokens of a stream are text with a digit in it."""
    known = getattr(tokenizer_of(clip, key), "inv_vocab", {})
    texts = {i: str(known.get(i, "")) for i in ids if isinstance(i, int)}
    return frozenset(i for i, text in texts.items() if any(map(str.isdigit, text)) and not text.startswith("<"))


def find_templates(clip: Any) -> dict[str, Template]:
    """The template of each of a CLIP's tokenizers."""
    probes = [streams(clip.tokenize(prompt)) for prompt in PROBES]
    picturing = [_with_picture(clip, prompt) for prompt in PROBES]
    long = streams(clip.tokenize(LONG))
    found = {}
    for key in probes[0]:
        sections = [[token[0] for token in probe[key][0]] for probe in probes if key in probe]
        numbers = numbers_of(clip, key, [token for section in sections for token in section])
        rows = [[kind_of(token, numbers) for token in section] for section in sections]
        pad = _pad(rows)
        rows = [row[slice(*unpadded(row, pad))] for row in rows]
        opening = _common(rows)
        ends = [row[len(opening) :][::-1] for row in rows]
        closing = _common(ends)
        run = 0 if pad is not None else _inner_padding(ends, closing)
        if run:
            pad, closing = closing[-1], closing[:-run]
        with_picture = [[kind_of(t[0], numbers) for t in probe[key][0]] for probe in picturing if key in probe]
        with_picture = [row for row in with_picture if PICTURE in row]
        with_picture = [row[slice(*unpadded(row, None if run else pad))] for row in with_picture]
        pictured = _common(with_picture)
        pieces = long.get(key, [[]])
        found[key] = Template(
            pad,
            tuple(opening),
            tuple(closing[::-1]),
            tuple(pictured),
            tuple(_common([row[len(pictured) :][::-1] for row in with_picture])[::-1]),
            len(pieces[0]) if len(pieces) > 1 else 0,
            run > 0,
            numbers,
        )
    return found


def _with_picture(clip: Any, prompt: str) -> dict[str, list]:
    """The token streams of a prompt with a picture; none where the tokenizer takes no pictures."""
    picture = torch.zeros(1, 64, 64, 3)
    for way in ({"images": [picture]}, {"image": picture}):
        try:
            found = streams(clip.tokenize(prompt, **way))
        except (TypeError, ValueError, LookupError, AttributeError, RuntimeError):  # it takes no such argument
            continue
        if any(PICTURE == kind_of(token[0]) for sections in found.values() for s in sections for token in s):
            return found
    return {}


def _inner_padding(rows: Sequence[Sequence[Any]], shared: Sequence[Any]) -> int:
    """How many of the tokens that all prompts end with are padding between prompt and end: one token again and again, and
    more of it behind a shorter prompt. Rows and shared tokens are read from the end."""
    if not shared or len({len(row) for row in rows}) > 1:
        return 0
    run = next((count for count, token in enumerate(reversed(shared)) if token != shared[-1]), len(shared))
    more = any(row[len(shared)] == shared[-1] for row in rows if len(row) > len(shared))
    return run if run > 1 and more else 0


def _pad(rows: Sequence[Sequence[Any]]) -> int | None:
    """The token that a section ends with twice, or begins with twice."""
    for outer, next_to in ((-1, -2), (0, 1)):
        for row in rows:
            if len(row) > 1 and isinstance(row[outer], int) and row[outer] == row[next_to]:
                return row[outer]
    return None


def _common(rows: Sequence[Sequence[Any]]) -> list:
    """What all rows begin with."""
    count = 0
    for column in zip(*rows):
        if column[0] is None or any(kind != column[0] for kind in column):
            break
        count += 1
    return list(rows[0][:count]) if rows else []


def _shared(row: Sequence[Any], known: Sequence[Any]) -> int:
    """How many tokens a row begins with as `known` does."""
    return next((i for i, (a, b) in enumerate(zip(row, known)) if a != b), min(len(row), len(known)))
