"""Draw a prompt's words by score, before and after steering, and each category against the band of harmless prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Sequence

import numpy as np
from PIL import Image, ImageDraw

from .fonts import default_font, font_for

if TYPE_CHECKING:
    from ..encoders import Reading
    from ..words import Word

Colour = tuple[int, int, int]

SCALE = 2  # pixels per unit, so that text stays sharp when the picture is enlarged
WIDTH, MARGIN, GAP = 640, 20, 5
LONG = 48  # words; longer prompts are set smaller and without a number under each word
NEUTRAL_UPTO, FULL_AT = 1.0, 4.0  # benign standard deviations


class Theme(NamedTuple):
    """Colours of a picture."""

    paper: Colour
    ink: Colour
    faint: Colour
    neutral: Colour
    band: Colour
    unsafe: Colour
    safe: Colour


THEMES = {
    "light": Theme(
        (252, 252, 253), (28, 32, 38), (118, 126, 138), (233, 236, 240), (208, 232, 214), (214, 39, 40), (44, 130, 201)
    ),
    "dark": Theme(
        (24, 26, 31), (232, 234, 238), (142, 150, 162), (48, 52, 60), (40, 74, 54), (232, 76, 70), (74, 158, 226)
    ),
}


def blend(a: Colour, b: Colour, share: float) -> Colour:
    """`a` at 0, `b` at 1."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b))  # type: ignore[return-value]


def colour(score: float, theme: Theme) -> Colour:
    """Neutral within one benign standard deviation, then red as it gets unsafe and blue on the safe side; full at 4."""
    share = (abs(score) - NEUTRAL_UPTO) / (FULL_AT - NEUTRAL_UPTO)
    return blend(theme.neutral, theme.unsafe if score > 0 else theme.safe, min(max(share, 0.0), 1.0))


def ink_on(fill: Colour, theme: Theme) -> Colour:
    """Black or white, whichever reads better on `fill`."""
    light = 0.299 * fill[0] + 0.587 * fill[1] + 0.114 * fill[2] > 140
    return THEMES["light"].ink if light else (255, 255, 255)


class Sheet:
    """A picture that is drawn in units of `SCALE` pixels, and grows downwards."""

    def __init__(self, width: int, height: int, theme: Theme) -> None:
        self.theme = theme
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), theme.paper)
        self.pen = ImageDraw.Draw(self.image)

    def text(
        self, at: tuple[float, float], words: str, size: int, fill: Colour | None = None, anchor: str = "lm"
    ) -> None:
        """Text in the first font that has its letters; `anchor` as Pillow names them."""
        font = font_for(words, size * SCALE) or default_font(size * SCALE)
        self.pen.text((at[0] * SCALE, at[1] * SCALE), words, fill or self.theme.ink, font, anchor=anchor)

    def box(self, x: float, y: float, width: float, height: float, fill: Colour, radius: float = 0) -> None:
        """A filled rectangle, with round corners."""
        self.pen.rounded_rectangle(
            (x * SCALE, y * SCALE, (x + width) * SCALE, (y + height) * SCALE), radius * SCALE, fill
        )

    def line(self, points: Sequence[tuple[float, float]], fill: Colour, width: float = 1) -> None:
        """A line through points."""
        self.pen.line([(x * SCALE, y * SCALE) for x, y in points], fill, round(width * SCALE), joint="curve")

    def dot(self, x: float, y: float, radius: float, fill: Colour, rim: Colour | None = None) -> None:
        """A dot; with `rim` it is an outlined one."""
        box = tuple(v * SCALE for v in (x - radius, y - radius, x + radius, y + radius))
        self.pen.ellipse(box, fill, rim, round(1.5 * SCALE) if rim else 0)

    def pixels(self) -> np.ndarray:
        """uint8 [height, width, 3]"""
        return np.array(self.image)


def width_of(words: str, size: int) -> float:
    """In units."""
    return (font_for(words, size * SCALE) or default_font(size * SCALE)).getlength(words) / SCALE


def word_scores(tokens: Sequence[float], words: Sequence["Word"] | None) -> list[float]:
    """Each word's score: its most unsafe token's. Without words, the tokens' own."""
    return list(tokens) if words is None else [max(tokens[word.start : word.stop]) for word in words]


def labels(words: Sequence["Word"] | None, count: int) -> list[str]:
    """What is written on each word: itself, or its number where no font here has its letters."""
    if words is None:
        return [str(i + 1) for i in range(count)]
    return [word.text if font_for(word.text, 24) else f"no. {i + 1}" for i, word in enumerate(words)]


class Chip(NamedTuple):
    """Where a word goes."""

    x: float
    y: float
    width: float
    label: str


def flow(texts: Sequence[str], size: int, line: float, numbers: bool) -> tuple[list[Chip], float]:
    """Set words in lines like text; returns them and the height they take, both in units."""
    chips, x, y, room = [], 0.0, 0.0, WIDTH - 2 * MARGIN
    for text in texts:
        while len(text) > 1 and width_of(text, size) > room - 14:
            text = text[: len(text) // 2 - 1] + "..."
        width = max(width_of(text, size) + 12, 34 if numbers else 0)
        if x and x + width > room:
            x, y = 0.0, y + line
        chips.append(Chip(x, y, width, text))
        x += width + GAP
    return chips, y + line


def draw(
    after: "Reading",
    before: "Reading | None" = None,
    words: Sequence["Word"] | None = None,
    name: str = "global",
    theme: str = "light",
) -> np.ndarray:
    """The picture of a reading: the verdict, the words as they were and as they are, and every category.

    Args:
        before: the reading before steering; None where nothing was steered.
        words: the prompt's words; None numbers the tokens.
        name: which category's scores colour the words.
        theme: "light" or "dark".

    Returns:
        uint8 [height, width, 3]
    """
    look = THEMES[theme]
    if before is None:
        states = [("", after)]
    elif before.names[name].tokens == after.names[name].tokens:
        states = [("steering left these words as they were", after)]
    else:
        states = [("before steering", before), ("after steering", after)]
    texts = labels(words, len(after.names[name].tokens))
    long = len(texts) > LONG
    size, line = (11, 24.0) if long else (14, 42.0)
    chips, tall = flow(texts or ["(empty prompt)"], size, line, numbers=not long)
    head, foot = 74, 30
    chart = 24 * len(after.names) + 26
    sheet = Sheet(WIDTH, int(head + len(states) * (tall + 26) + chart + foot + MARGIN), look)
    _head(sheet, after, before)
    y = float(head)
    for title, reading in states:
        if title:
            sheet.text((MARGIN, y + 8), title, 11, look.faint)
            y += 20
        _words(sheet, y, chips, word_scores(reading.names[name].tokens, words), size, line, long)
        y += tall + 6
    _categories(sheet, y + 4, after, before, name)
    _legend(sheet, y + chart + 8, name, numbered=words is not None and any(t != w.text for t, w in zip(texts, words)))
    return sheet.pixels()


def _head(sheet: Sheet, after: "Reading", before: "Reading | None") -> None:
    look = sheet.theme
    verdict, fill = ("flagged", look.unsafe) if after.flagged else ("not flagged", blend(look.band, look.ink, 0.15))
    width = width_of(verdict, 14) + 20
    sheet.box(MARGIN, 18, width, 26, fill, 13)
    sheet.text((MARGIN + 10, 31), verdict, 14, ink_on(fill, look))
    x = MARGIN + width + 14
    if before:
        score = f"{before.score:+.2f}"
        sheet.text((x, 31), score, 20, look.unsafe if before.flagged else look.faint)
        x += width_of(score, 20) + 10
        sheet.line([(x, 31), (x + 22, 31)], look.faint, 1.5)
        sheet.line([(x + 16, 26), (x + 22, 31), (x + 16, 36)], look.faint, 1.5)
        x += 32
    sheet.text((x, 31), f"{after.score:+.2f}", 20)
    sheet.text(
        (MARGIN, 58),
        f"threshold {after.threshold:+.2f}: a budget of {after.budget:.1%} of harmless prompts. All numbers are "
        f"benign standard deviations.",
        11,
        look.faint,
    )


def _words(
    sheet: Sheet, top: float, chips: Sequence[Chip], scores: Sequence[float], size: int, line: float, long: bool
) -> None:
    for chip, score in zip(chips, scores):
        fill = colour(score, sheet.theme)
        ink = ink_on(fill, sheet.theme)
        x, y, height = MARGIN + chip.x, top + chip.y, line - GAP
        sheet.box(x, y, chip.width, height, fill, 5)
        middle = x + chip.width / 2
        sheet.text((middle, y + (height / 2 if long else 13)), chip.label, size, ink, "mm")
        if not long:
            sheet.text((middle, y + 28), f"{score:+.1f}", 10, ink, "mm")
    if not scores:
        sheet.text((MARGIN, top + line / 2), "(empty prompt)", size, sheet.theme.faint)


def _categories(sheet: Sheet, top: float, after: "Reading", before: "Reading | None", chosen: str) -> None:
    look, left, right = sheet.theme, MARGIN + 112, WIDTH - MARGIN - 96
    seen = [
        s
        for one in (after, before)
        if one
        for scores in one.names.values()
        for s in (scores.prompt, scores.threshold, *scores.band)
    ]
    low, high = min(-3.0, *seen) - 0.5, max(4.0, *seen) + 0.5
    at = lambda value: left + (value - low) / (high - low) * (right - left)
    for row, (name, scores) in enumerate(after.names.items()):
        y = top + 24 * row + 12
        sheet.text(
            (MARGIN, y), "all together" if name == "global" else name, 12, look.ink if name == chosen else look.faint
        )
        sheet.box(left, y - 1, right - left, 2, look.neutral)
        sheet.box(at(scores.band[0]), y - 8, at(scores.band[1]) - at(scores.band[0]), 16, look.band, 3)
        sheet.line([(at(scores.threshold), y - 9), (at(scores.threshold), y + 9)], look.ink, 1.5)
        over = look.unsafe if scores.prompt > scores.threshold else look.ink
        was = before.names[name].prompt if before else None
        if was is not None:
            sheet.line([(at(was), y), (at(scores.prompt), y)], look.faint, 2)
            sheet.dot(at(was), y, 5, look.paper, look.unsafe if was > scores.threshold else look.faint)
        sheet.dot(at(scores.prompt), y, 5, over)
        sheet.text(
            (WIDTH - MARGIN, y),
            f"{scores.prompt:+.1f}" if was is None else f"{was:+.1f} to {scores.prompt:+.1f}",
            12,
            over,
            "rm",
        )
    y = top + 24 * len(after.names) + 14
    x = float(left)
    dots = (("ring", "before"), ("dot", "after")) if before else (("dot", "this prompt"),)
    for kind, label in (("band", "where 95% of harmless prompts lie"), ("line", "threshold"), *dots):
        if kind == "band":
            sheet.box(x, y - 5, 14, 10, look.band, 2)
        elif kind == "line":
            sheet.line([(x + 10, y - 6), (x + 10, y + 6)], look.ink, 1.5)
        else:
            sheet.dot(x + 9, y, 4, look.paper if kind == "ring" else look.ink, look.faint if kind == "ring" else None)
        sheet.text((x + 20, y), label, 10, look.faint)
        x += 32 + width_of(label, 10)


def _legend(sheet: Sheet, y: float, name: str, numbered: bool) -> None:
    look, steps = sheet.theme, 81
    width = 180
    for step in range(steps):
        score = (step / (steps - 1) * 2 - 1) * FULL_AT
        sheet.box(MARGIN + width * step / steps, y, width / steps + 0.5, 8, colour(score, look))
    for score in (-4, -2, 0, 2, 4):
        sheet.text(
            (MARGIN + width * (score / FULL_AT + 1) / 2, y + 16), f"{score:+d}" if score else "0", 9, look.faint, "mm"
        )
    note = (
        "words: unsafe is red"
        + ("" if name == "global" else f", by {name} alone")
        + "; most harmless words lie within 2"
    )
    if numbered:
        sheet.text(
            (MARGIN + width + 20, y + 17),
            "no font here has the letters of the numbered words; the text output names them",
            10,
            look.faint,
        )
    sheet.text((MARGIN + width + 20, y + 5), note, 10, look.faint)
