"""Languages: each has its own benign levels, and one that an encoder doesn't read is named."""

from dataclasses import replace

import pytest
import torch

import directions
from directions.languages import FEWEST, Languages, moments_by_language, names_of, separation, unread

LENGTH = 5
"""Tokens of a planted prompt."""


@pytest.fixture(scope="module")
def spoken(planted):
    """The planted direction with its first 200 anchors translated: into `xx`, whose states lie elsewhere and hold the concept,
    and into `yy`, whose states hold nothing of it. Every fifth anchor is a mention, with much of the concept."""
    draw = torch.Generator().manual_seed(11)
    count, width = len(planted.states), planted.states[0].shape[1]
    mentioned = torch.arange(count) % 5 == 0
    prompts = [f"prompt {i}" for i in range(count)]
    states = [rows - 2 * planted.truth["global"] * bool(named) for rows, named in zip(planted.states, mentioned)]
    source = planted.direction.anchor_states.float()
    source[mentioned] -= 2 * planted.direction.vectors["global"]
    there = 4 * torch.randn(2, width, generator=draw)
    translated = {
        "xx": [rows + there[0] for rows in states[:200]],
        "yy": [there[1] + torch.randn(LENGTH, width, generator=draw) for _ in range(200)],
    }
    originals = [*range(count), *range(200), *range(200)]
    direction = replace(
        planted.direction,
        anchor_prompts=(*prompts, *(f"{language} {i}" for language in translated for i in range(200))),
        anchor_states=source.half()[originals],
        mentions=tuple(prompt for prompt, named in zip(prompts, mentioned) if named),
        languages=(*["en"] * count, *["xx"] * 200, *["yy"] * 200),
        originals=torch.tensor(originals),
    )
    return direction, [*states, *translated["xx"], *translated["yy"]], there


def test_a_language_that_the_encoder_does_not_read_is_named(spoken):
    direction, states, _ = spoken
    aligned = directions.align(direction, states)
    areas = aligned.slot.fit["languages"]
    assert areas["en"] > 0.9 and areas["xx"] > 0.9 and 0.3 < areas["yy"] < 0.7
    assert aligned.unread_languages == ["yy"]


def test_the_budget_holds_in_each_language(spoken):
    direction, states, _ = spoken
    aligned = directions.align(direction, states)
    flagged = torch.tensor([bool(aligned.flagged(rows, 0.05)) for rows in states])
    for language in ("en", "xx", "yy"):
        own = torch.tensor([one == language for one in direction.languages]) & ~direction.mentioned
        assert flagged[own].float().mean() < 0.12, language


def test_an_unsafe_prompt_is_found_in_a_language_that_the_source_never_met(planted, spoken):
    direction, states, there = spoken
    aligned = directions.align(direction, states)
    assert aligned.flagged(planted.unsafe, 0.01) and aligned.flagged(planted.unsafe + there[0], 0.01)


def test_a_prompt_is_scored_as_its_languages_prompts_score():
    languages = Languages(torch.eye(2), torch.zeros(2), torch.tensor([[[0.0, 1.0]], [[3.0, 2.0]]]))
    scores = languages(torch.tensor([[5.0], [5.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert scores.flatten().tolist() == [5.0, 1.0]


def test_few_prompts_hardly_move_a_languages_levels():
    scores = torch.full((3, 1), 5.0)
    moments = moments_by_language(scores, torch.tensor([1, 1, 1]), torch.ones(3, dtype=torch.bool), 2)
    assert moments[0].tolist() == [[0.0, 1.0]] and 0 < moments[1, 0, 0] < 2


def test_too_few_mentions_say_nothing():
    highest, language = torch.arange(50.0), torch.zeros(50, dtype=torch.long)
    named = torch.arange(50) >= 50 - FEWEST + 1
    assert separation(highest, language, ~named, named, 1) == [None]
    assert unread({"en": None, "de": 0.9, "ko": 0.5}) == ["ko"]


def test_without_languages_there_is_english():
    assert names_of(()) == ("en",) and names_of(("en", "de", "en")) == ("en", "de")
