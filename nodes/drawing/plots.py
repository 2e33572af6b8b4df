"""Draw what a sweep found: score against strength, the words of every setting, and a labelled grid of pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

import numpy as np
from PIL import Image

from .heatmap import (
    GAP,
    MARGIN,
    SCALE,
    THEMES,
    WIDTH,
    Sheet,
    blend,
    colour,
    flow,
    ink_on,
    labels,
    width_of,
    word_scores,
)

if TYPE_CHECKING:
    from ...directions.steer import SteeringSettings
    from ..encoders import Swept
    from ..words import Word

MODE_COLOURS = {"gate": (34, 150, 94), "add": (222, 120, 24), "project": (140, 92, 206)}


def label(settings: "SteeringSettings") -> str:
    """Settings in a few letters."""
    return f"{settings.mode} {settings.alpha:g}"


def plot_strength(swept: Sequence["Swept"], theme: str = "light") -> np.ndarray:
    """Score of the prompt against strength, a line per mode, over the band of harmless prompts; uint8 [height, width, 3]."""
    look, height = THEMES[theme], 360
    sheet = Sheet(WIDTH, height, look)
    left, right, top, bottom = 58.0, WIDTH - MARGIN - 4.0, 52.0, height - 46.0
    marks = swept[0].reading.names["global"]
    alphas, scores = [s.settings.alpha for s in swept], [s.reading.score for s in swept]
    low_a, high_a = min(alphas), max(alphas) if max(alphas) > min(alphas) else min(alphas) + 1
    low, high = min(*scores, *marks.band, marks.threshold) - 0.6, max(*scores, *marks.band, marks.threshold) + 0.6
    x = lambda alpha: left + 14 + (alpha - low_a) / (high_a - low_a) * (right - left - 28)
    y = lambda score: bottom - (score - low) / (high - low) * (bottom - top)
    sheet.box(left, y(marks.band[1]), right - left, y(marks.band[0]) - y(marks.band[1]), look.band)
    step = next(s for s in (0.5, 1, 2, 5, 10, 20, 50, 100, 1000) if (high - low) / s <= 9)
    for i in range(int(low // step) + 1, int(high // step) + 1):
        sheet.line([(left, y(i * step)), (right, y(i * step))], blend(look.paper, look.ink, 0.1), 0.5)
        sheet.text((left - 8, y(i * step)), f"{i * step:+g}" if i else "0", 11, look.faint, "rm")
    for x0 in range(int(left), int(right), 10):
        sheet.line([(x0, y(marks.threshold)), (min(x0 + 6, right), y(marks.threshold))], look.unsafe, 1)
    sheet.text((right - 4, y(marks.threshold) - 9), f"threshold {marks.threshold:+.1f}", 11, look.unsafe, "rm")
    sheet.text((right - 4, y(marks.band[0]) - 9), "95% of harmless prompts", 11, look.faint, "rm")
    for alpha in sorted(set(alphas)):
        sheet.text((x(alpha), bottom + 14), f"{alpha:g}", 11, look.faint, "mm")
    at = float(left)
    for mode in dict.fromkeys(s.settings.mode for s in swept):
        points = sorted((s.settings.alpha, s.reading.score) for s in swept if s.settings.mode == mode)
        fill = MODE_COLOURS.get(mode, look.ink)
        sheet.line([(x(a), y(s)) for a, s in points], fill, 2.5)
        for a, s in points:
            sheet.dot(x(a), y(s), 4.5, fill)
        sheet.dot(at + 6, 30, 5, fill)
        sheet.text((at + 16, 30), mode, 13)
        at += 34 + width_of(mode, 13)
    sheet.text((right, 30), "score of the prompt, in benign standard deviations", 11, look.faint, "rm")
    sheet.text(((left + right) / 2, bottom + 32), "strength alpha, in benign spreads", 11, look.faint, "mm")
    return sheet.pixels()


def grid_of_words(swept: Sequence["Swept"], words: "Sequence[Word] | None", theme: str = "light") -> np.ndarray:
    """A row per setting: its name, the prompt's score, and the words coloured by score; uint8 [height, width, 3]."""
    look, side, size, line = THEMES[theme], 112, 12, 26.0
    texts = labels(words, len(swept[0].reading.names["global"].tokens)) or ["(empty prompt)"]
    chips, tall = flow(texts, size, line, numbers=False)
    sheet = Sheet(WIDTH + side, int(MARGIN * 2 + len(swept) * (tall + 12)), look)
    for row, setting in enumerate(swept):
        top = MARGIN + row * (tall + 12)
        over = look.unsafe if setting.reading.flagged else look.ink
        sheet.dot(MARGIN + 4, top + 10, 4, MODE_COLOURS.get(setting.settings.mode, look.ink))
        sheet.text((MARGIN + 14, top + 10), label(setting.settings), 12)
        sheet.text((MARGIN + side - 8, top + 10), f"{setting.reading.score:+.1f}", 12, over, "rm")
        for chip, score in zip(chips, word_scores(setting.reading.names["global"].tokens, words)):
            fill = colour(score, look)
            sheet.box(MARGIN + side + chip.x, top + chip.y, chip.width, line - GAP, fill, 4)
            sheet.text(
                (MARGIN + side + chip.x + chip.width / 2, top + chip.y + (line - GAP) / 2),
                chip.label,
                size,
                ink_on(fill, look),
                "mm",
            )
    return sheet.pixels()


def grid_of_pictures(
    pictures: Sequence[np.ndarray], names: Sequence[str], columns: int, cell: int, theme: str = "light"
) -> np.ndarray:
    """Pictures in rows with a name over each.

    Args:
        pictures: uint8 [height, width, 3], of any sizes.
        columns: how many to a row; 0 for as many as there are names with the first name's first word.
        cell: the longer side of a picture in the grid, in pixels.

    Returns:
        uint8 [height, width, 3]
    """
    look = THEMES[theme]
    columns = columns or max(1, sum(name.split()[:1] == names[0].split()[:1] for name in names))
    small = [_fit(picture, cell) for picture in pictures]
    width, height = max(p.width for p in small), max(p.height for p in small)
    rows, strip, gap = -(-len(small) // columns), 30, 10
    sheet = Sheet(1, 1, look)
    sheet.image = Image.new("RGB", (gap + columns * (width + gap), gap + rows * (height + strip + gap)), look.paper)
    sheet.pen = type(sheet.pen)(sheet.image)
    for index, (picture, name) in enumerate(zip(small, names)):
        x, y = gap + index % columns * (width + gap), gap + index // columns * (height + strip + gap)
        sheet.text(((x + 2) / SCALE, (y + strip / 2 - 2) / SCALE), _short(name, width / SCALE), 9 if width > 90 else 7)
        sheet.image.paste(picture, (x + (width - picture.width) // 2, y + strip))
    return sheet.pixels()


def _fit(picture: np.ndarray, cell: int) -> Image.Image:
    image = Image.fromarray(picture)
    share = cell / max(image.size)
    # Enlarged by whole pixels, so that small pictures stay crisp.
    how = Image.Resampling.NEAREST if share >= 2 else Image.Resampling.LANCZOS
    return image.resize((max(1, round(image.width * share)), max(1, round(image.height * share))), how)


def _short(name: str, room: float) -> str:
    while len(name) > 4 and width_of(name, 9) > room:
        name = name[:-4] + "..."
    return name
