"""Draw token scores as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from .encoders import Reading

CELL = (84, 58)
COLUMNS = 8
NEUTRAL, UNSAFE, SAFE = (238, 240, 243), (214, 39, 40), (44, 130, 201)
INK, PAPER = (28, 32, 38), (252, 252, 253)
FULL_COLOUR_AT = 4.0


def colour(score: float) -> tuple[int, int, int]:
    """White at a benign score, red as it gets unsafe, blue on the safe side; full at 4 benign deviations."""
    end = UNSAFE if score > 0 else SAFE
    share = min(abs(score) / FULL_COLOUR_AT, 1.0)
    return tuple(round(a + (b - a) * share) for a, b in zip(NEUTRAL, end))  # type: ignore[return-value]


def draw(reading: "Reading", labels: Sequence[str] | None = None) -> np.ndarray:
    """One cell per content token with its word (or number) and score; uint8 [height, width, 3]."""
    words = labels or [str(i) for i in range(len(reading.tokens))]
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    rows = max(1, -(-len(reading.tokens) // COLUMNS))
    image = Image.new("RGB", (COLUMNS * CELL[0] + 16, rows * CELL[1] + 52), PAPER)
    pen = ImageDraw.Draw(image)
    verdict = "flagged" if reading.flagged else "not flagged"
    pen.text((8, 6), f"score {reading.score:+.2f}   threshold {reading.threshold:+.2f}   {verdict}", INK, font)
    pen.text((8, 27), f"benign standard deviations; budget {reading.budget:.1%}; most like: {reading.category}", INK, small)
    for index, (score, word) in enumerate(zip(reading.tokens, words)):
        x, y = 8 + index % COLUMNS * CELL[0], 48 + index // COLUMNS * CELL[1]
        fill = colour(score)
        ink = PAPER if sum(fill) < 380 else INK
        pen.rectangle((x, y, x + CELL[0] - 4, y + CELL[1] - 6), fill)
        pen.text((x + 4, y + 6), word[:9], ink, font)
        pen.text((x + 4, y + 30), f"{score:+.1f}", ink, small)
    return np.asarray(image)
