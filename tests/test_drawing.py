"""The pictures and the words in them, without a ComfyUI."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

CLIP_PIECES = {1: "a ", 2: "photo", 3: "realism ", 4: "nude ", 5: "woman, "}


def pieces(table):
    return lambda ids: "".join(table[i] for i in ids)


def reading(tokens, score=3.5, flagged=True):
    scores = SimpleNamespace(tokens=tokens, prompt=score, threshold=2.1, band=(-1.9, 1.9))
    return SimpleNamespace(
        names={"global": scores, "violence": scores}, score=score, threshold=2.1, flagged=flagged, budget=0.01
    )


def has(picture, wanted, close=40):
    return bool((np.abs(picture.astype(int) - wanted).sum(-1) < close).any())


def test_the_pieces_of_a_word_are_one_word(shell):
    found = shell("words").words_of([1, 2, 3, 4, 5], pieces(CLIP_PIECES))
    assert [word.text for word in found] == ["a", "photorealism", "nude", "woman,"]
    assert [(word.start, word.stop) for word in found] == [(0, 1), (1, 3), (3, 4), (4, 5)]


def test_scripts_without_spaces_are_cut_between_letters_and_half_letters_stay_together(shell):
    halves = {(1,): "\ufffd", (1, 2): "裸", (3,): "体", (1, 2, 3): "裸体", (4,): " sky", (3, 4): "体 sky"}
    found = shell("words").words_of([1, 2, 3, 4], lambda ids: halves[tuple(ids)])
    assert [word.text for word in found] == ["裸", "体", "sky"]


def test_the_vectors_of_a_textual_inversion_are_one_word(shell):
    found = shell("words").words_of([1, object(), object(), 4], pieces(CLIP_PIECES))
    assert [(word.text, word.start, word.stop) for word in found] == [
        ("a", 0, 1),
        ("(embedding)", 1, 3),
        ("nude", 3, 4),
    ]


def test_a_word_scores_what_its_most_unsafe_piece_scores(shell):
    word = shell("words").Word
    assert shell("drawing.heatmap").word_scores([0.5, 1.0, 4.0], [word("a", 0, 1), word("photorealism", 1, 3)]) == [
        0.5,
        4.0,
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_an_unsafe_word_is_red_before_and_not_after(shell, theme):
    heatmap, word = shell("drawing.heatmap"), shell("words").Word
    words = [word("nude", 0, 1), word("woman", 1, 2)]
    red = heatmap.THEMES[theme].unsafe
    before, after = reading([5.0, 5.0]), reading([0.1, 0.0], score=-0.5, flagged=False)
    both, alone = heatmap.draw(after, before, words, theme=theme), heatmap.draw(after, None, words, theme=theme)
    assert has(both[: len(both) // 2], red) and not has(alone[:-130], red)  # below is the legend, with red in it
    assert has(both, heatmap.THEMES[theme].band) and both.shape[0] > alone.shape[0] and both.shape[1] == alone.shape[1]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("score", [-5.0, 0.0, 1.5, 2.5, 3.0, 6.0])
def test_text_stands_out_from_every_word_colour(shell, theme, score):
    heatmap = shell("drawing.heatmap")

    def luminance(colour):
        linear = [(c / 255 / 12.92) if c / 255 <= 0.03928 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    look = heatmap.THEMES[theme]
    fill = heatmap.colour(score, look)
    light, dark = sorted((luminance(fill), luminance(heatmap.ink_on(fill, look))), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3.0  # WCAG 2 asks 3 of large text


def test_a_long_prompt_grows_down_and_stays_inside(shell):
    heatmap, word = shell("drawing.heatmap"), shell("words").Word
    words = [word(f"word{i}", i, i + 1) for i in range(300)] + [word("x" * 400, 300, 301)]
    chips, tall = heatmap.flow([w.text for w in words], 11, 24, numbers=False)
    assert all(chip.x + chip.width <= heatmap.WIDTH - 2 * heatmap.MARGIN for chip in chips)
    picture = heatmap.draw(reading([0.0] * 301), None, words)
    assert picture.shape[0] > tall * heatmap.SCALE


def test_letters_that_no_font_has_become_a_number(shell):
    heatmap, word = shell("drawing.heatmap"), shell("words").Word
    private = "\U000f1234"
    assert (
        shell("drawing.fonts").font_for(private, 20) is None
        and shell("drawing.fonts").font_for("plain", 20) is not None
    )
    assert heatmap.labels([word("plain", 0, 1), word(private, 1, 2)], 2) == ["plain", "no. 2"]


def test_an_empty_prompt_can_be_drawn(shell):
    assert shell("drawing.heatmap").draw(reading([], score=0.0, flagged=False), None, []).ndim == 3


def swept(mode, alpha, score):
    return SimpleNamespace(
        settings=SimpleNamespace(mode=mode, alpha=alpha), reading=reading([score, 0.0], score, score > 2.1)
    )


def test_the_plot_has_a_line_for_each_mode(shell):
    plots = shell("drawing.plots")
    runs = [
        swept(mode, alpha, 4.0 - alpha * slope)
        for mode, slope in (("gate", 1.0), ("add", 0.5))
        for alpha in (0.0, 1.0, 3.0)
    ]
    picture = plots.plot_strength(runs)
    assert all(has(picture, plots.MODE_COLOURS[mode]) for mode in ("gate", "add")) and not has(
        picture, plots.MODE_COLOURS["project"], close=12
    )
    assert plots.plot_strength(runs[:1]).shape == picture.shape  # a single setting too


def test_the_grid_gives_every_mode_a_row_and_keeps_small_pixels_crisp(shell):
    plots = shell("drawing.plots")
    red, blue = (np.full((8, 8, 3), colour, np.uint8) for colour in ((200, 0, 0), (0, 0, 200)))
    grid = plots.grid_of_pictures([red, blue, blue, red], ["gate 0", "gate 5", "add 0", "add 5"], 0, 64)
    one_row = plots.grid_of_pictures([red, blue, blue, red], ["gate 0", "gate 5", "add 0", "add 5"], 4, 64)
    assert grid.shape[0] > grid.shape[1] * 0.9 and one_row.shape[1] > one_row.shape[0] * 2
    pure = (grid == (200, 0, 0)).all(-1).sum()
    assert pure == 2 * 64 * 64  # enlarged by whole pixels: nothing in between
