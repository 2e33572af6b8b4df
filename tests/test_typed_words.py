"""Typed words, on a made-up encoder: a token's state is its word's vector and some of its prompt's mean."""

import hashlib
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import directions
from directions.direction_format import is_name
from directions.frames import frames, singular, word_rows
from directions.words import COMMON, fingerprint, names_it, names_of

WIDTH = 32
NOUNS = "apple boat cart door elm fern goat hill iron jar kite lamp moss nest oven pear quilt rope sand tree".split()
PLACES = "a field,a harbour,an old town,the kitchen,a long road,the forest,a quiet room,the market".split(",")


def vector(word):
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


UNREAD = {"gloop"}
"""Words that this encoder passes over."""


def encode(prompts):
    """chalk looks much like cigarettes."""
    out = []
    for prompt in prompts:
        own = []
        for word in prompt.lower().replace(",", " , ").replace(".", " ").split():
            if word not in UNREAD:
                near = 0.5 * vector("cigarettes") if word == "chalk" else 0
                own.append(vector("cigarettes" if word == "cigarette" else word) + near)
        rows = torch.stack(own or [vector(".")])
        out.append(rows + 0.3 * rows.mean(0))
    return out


def harmless(count, seed=0):
    draw = random.Random(seed)
    found = {}
    while len(found) < count:
        things = " and ".join(draw.sample(NOUNS, draw.randint(1, 3)))
        found[f"{things} in {draw.choice(PLACES)}, {draw.choice(NOUNS)}"] = None
    return list(found)


HARMLESS = harmless(500)
UNSEEN = [
    "a sailor lights a cigarette by the lamp",
    "cigarettes under a tree",
    "nest, hill, cigarettes, old photograph",
]


@pytest.fixture(scope="module")
def typed():
    return directions.from_words(["cigarettes"], encode, HARMLESS)


def found(aligned, prompts, category=None):
    return [bool(aligned.flagged(rows, 0.01, [category] if category else None)) for rows in encode(prompts)]


def test_unseen_prompts_with_the_word_are_found_and_others_stay_within_the_budget(typed):
    assert typed.categories == ("cigarettes",) and typed.direction["name"] == "no cigarettes"
    assert typed.direction["sha256"] == fingerprint(["cigarettes"], HARMLESS)
    assert all(found(typed, UNSEEN))
    assert sum(found(typed, harmless(1000, seed=1))) / 1000 < 0.03


def test_the_gate_takes_it_away_and_leaves_everything_else_as_it_is(typed):
    for prompt, rows in zip(UNSEEN, encode(UNSEEN)):
        steered = typed.steer(rows, mode="gate")
        assert not typed.flagged(steered, 0.01), prompt
    for rows in encode(harmless(50, seed=2)):
        if not typed.flagged(rows, 0.01):
            assert torch.equal(typed.steer(rows, mode="gate"), rows)


def test_the_highest_token_is_the_word(typed):
    assert typed.score(encode(["a lamp , cigarettes , a tree"])[0]).argmax() == 3


def test_a_neighbour_is_left_alone_where_it_is_typed_as_contrast(typed):
    chalk = ["chalk on a hill", "a lamp and chalk", "chalk, fern, moss"]
    apart = directions.from_words(["cigarettes"], encode, HARMLESS, contrast=["chalk"])
    score = lambda one, prompts: torch.stack([one.prompt_score(rows) for rows in encode(prompts)]).mean()
    assert score(apart, UNSEEN) - score(apart, chalk) > score(typed, UNSEEN) - score(typed, chalk)
    assert all(found(apart, UNSEEN)) and sum(found(apart, chalk)) < sum(found(typed, chalk))


def test_what_is_put_instead_stands_where_the_word_stood(typed):
    rows = encode(["a lamp, cigarettes, a tree"])[0]
    other = encode(["a lamp, flower, a tree"])[0]
    aligned = directions.from_words(["cigarettes"], encode, HARMLESS, instead="flower")
    away = [(one.steer(rows, mode="gate") - other)[3].norm() for one in (aligned, typed)]
    assert away[0] < away[1] / 2
    assert not aligned.flagged(aligned.steer(rows, mode="gate"), 0.01)
    with pytest.raises(directions.UnclearWords, match="'cigarette' can't stand in its place"):
        directions.from_words(["cigarettes"], encode, HARMLESS, instead="cigarette")


def test_each_of_several_words_is_a_category_and_global_is_any_of_them():
    aligned = directions.from_words(["cigarettes", "Big Spiders"], encode, HARMLESS)
    assert aligned.categories == ("cigarettes", "big-spiders")
    spiders = ["two big spiders in the kitchen", "big spiders, lamp"]
    assert all(found(aligned, UNSEEN + spiders))
    assert all(found(aligned, spiders, "big-spiders"))
    for prompts, own, other in ((spiders, "big-spiders", "cigarettes"), (UNSEEN, "cigarettes", "big-spiders")):
        for rows in encode(prompts):
            assert aligned.prompt_score(rows, own) > aligned.prompt_score(rows, other) + 2


def test_several_slots_have_one_verdict():
    aligned = directions.from_words(
        ["cigarettes"], lambda p: {"a": encode(p), "b": [2 * rows for rows in encode(p)]}, HARMLESS
    )
    rows = encode(UNSEEN)[0]
    assert aligned.flagged({"a": rows, "b": 2 * rows}, 0.01)


def test_it_is_saved_and_read_like_any_other(typed, tmp_path):
    again = directions.load_aligned(typed.save(tmp_path / "no-cigarettes.safetensors"))
    rows = encode(UNSEEN)[0]
    assert torch.equal(again.prompt_scores(rows), typed.prompt_scores(rows))
    assert again.direction == typed.direction


def test_words_that_the_encoder_does_not_tell_are_refused_by_name():
    with pytest.raises(directions.UnclearWords, match="'gloop': this encoder doesn't tell it from anything else"):
        directions.from_words(["cigarettes", "gloop"], encode, HARMLESS)


def test_a_word_that_would_flag_everything_is_refused_by_name():
    share = sum(names_it(prompt, "lamp") for prompt in HARMLESS) / len(HARMLESS)
    assert share > COMMON
    with pytest.raises(directions.UnclearWords, match="'lamp' would flag everything"):
        directions.from_words(["cigarettes", "lamp"], encode, HARMLESS)


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        ([], {}, "1 to 32 words"),
        ("cigarettes", {}, "1 to 32 words"),
        (["x"] * 33, {}, "1 to 32 words"),
        ([" "], {}, "empty"),
        (["big spiders", "Big-Spiders"], {}, "leave it out"),
        (["global"], {}, "leave it out"),
        (["cigarettes"], {"contrast": ["cigarettes"]}, "can't be a contrast"),
    ],
)
def test_bad_words_are_refused(words, options, message):
    with pytest.raises(ValueError, match=message):
        directions.from_words(words, encode, HARMLESS, **options)


@pytest.mark.parametrize(
    ("harmed", "message"),
    [
        (lambda states: states[:-1], "states for"),
        (lambda states: [*states[:-1], states[-1][:, :5]], "was expected"),
        (lambda states: [*states[:-1], states[-1] * torch.nan], "was expected"),
        (lambda states: [rows.repeat(1, 400) for rows in states], "12800 wide"),
    ],
)
def test_bad_states_are_refused(harmed, message):
    with pytest.raises(ValueError, match=message):
        directions.from_words(["cigarettes"], lambda prompts: harmed(encode(prompts)), HARMLESS)


def test_too_few_harmless_prompts_are_refused():
    with pytest.raises(ValueError, match="at least 200"):
        directions.from_words(["cigarettes"], encode, HARMLESS[:150])


@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=5))
@settings(max_examples=200, deadline=None)
def test_any_text_has_a_name_that_a_file_can_hold_or_is_refused(words):
    try:
        names = names_of(words)
    except ValueError:
        return
    assert len(set(names)) == len(words) and all(map(is_name, names)) and "global" not in names


@given(
    st.lists(st.sampled_from([noun for noun in NOUNS if noun != "moss"]), min_size=1, max_size=3),
    st.booleans(),
    st.lists(st.sampled_from(HARMLESS), max_size=12),
)
@settings(max_examples=100, deadline=None)
def test_the_word_stands_where_a_frame_says(parts, plural, hosts):
    word = " ".join(parts) + "s" * plural
    every = frames(word, hosts)
    assert {one.form for one in every} == {word, " ".join(parts)} and {word, " ".join(parts)} <= {
        one.prompt for one in every
    }
    for one in every:
        tokens = one.prompt.replace(",", " ,").split()
        rows = word_rows(one, torch.arange(len(tokens)), len(parts)).tolist()
        assert [tokens[i] for i in rows] == one.form.split(), one


@pytest.mark.parametrize(
    ("word", "one"),
    [("spiders", "spider"), ("knives", "knife"), ("boxes", "box"), ("glass", "glass"), ("bus", "bus"), ("蛇", "蛇")],
)
def test_the_singular_of_an_english_plural(word, one):
    assert singular(word) == one


@given(st.permutations(["cigarettes", "a red car", "spiders"]))
@settings(max_examples=6, deadline=None)
def test_a_fingerprint_tells_what_was_typed(words):
    assert fingerprint(words, HARMLESS) == fingerprint(list(words), HARMLESS)
    assert fingerprint(words, HARMLESS) != fingerprint(words[:2], HARMLESS, contrast=words[2:])
    assert fingerprint(words, HARMLESS) != fingerprint(words, HARMLESS, instead="a flower")


@pytest.fixture(scope="module")
def spiders():
    return directions.from_words(["big spiders"], encode, HARMLESS[:450])


@pytest.fixture(scope="module")
def both(typed, spiders):
    return directions.joined(typed, spiders)


def test_joined_directions_read_what_each_reads_alone(typed, spiders, both):
    assert both.names == ("global", "cigarettes", "typed", "big-spiders")
    for rows in encode([*UNSEEN, "big spiders, lamp", *HARMLESS[:20]]):
        slot = both.slot
        alone = torch.cat([typed.slot.prompt_scores(rows), spiders.slot.prompt_scores(rows)], -1)
        assert torch.allclose(slot.prompt_scores(rows), alone, atol=1e-3)
        for name, own, of in (("global", None, typed), ("typed", None, spiders), ("cigarettes", "cigarettes", typed)):
            assert torch.allclose(slot.score(rows, name), of.slot.score(rows, own), atol=0.2), name


def test_either_flags_a_prompt_and_the_budget_is_shared(both):
    assert all(found(both, [*UNSEEN, "big spiders, lamp"]))
    assert both.slot.chosen(None) == ("global", "typed")
    assert sum(found(both, harmless(1000, seed=1))) / 1000 < 0.03
    for prompt in (UNSEEN[0], "big spiders in the kitchen"):
        assert not both.flagged(both.steer(encode([prompt])[0], mode="gate"), 0.01)


@given(st.floats(0.005, 0.5))
@settings(max_examples=50, deadline=None)
def test_each_keeps_its_own_threshold_to_a_rank(typed, spiders, both, budget):
    for name, own, of in (("cigarettes", "cigarettes", typed), ("typed", "global", spiders)):
        everyday = of.calibrations.of(["states"]).everyday[:, of.names.index(own)].contiguous()
        rank = torch.searchsorted(everyday, torch.tensor(of.threshold(budget, own)))
        low, high = everyday[max(rank - 2, 0)], everyday[min(rank + 2, len(everyday) - 1)]
        assert low - 0.05 <= both.threshold(budget, name) <= high + 0.05


def test_joined_directions_are_saved_and_a_third_is_joined(both, tmp_path):
    again = directions.load_aligned(both.save(tmp_path / "both.safetensors"))
    rows = encode(UNSEEN)[0]
    assert again.slot.added == both.slot.added and torch.equal(again.prompt_scores(rows), both.prompt_scores(rows))
    third = directions.joined(again, directions.from_words(["clowns"], encode, HARMLESS))
    assert third.names[-2:] == ("typed-2", "clowns") and found(third, ["two clowns by the sand"]) == [True]


def test_what_cannot_be_joined_is_refused(typed, both, spiders):
    with pytest.raises(ValueError, match="a category of"):
        directions.joined(both, typed)
    with pytest.raises(ValueError, match="one encoder"):
        directions.joined(typed, directions.Alignment({"other": spiders.slot}))
    with pytest.raises(ValueError, match="joined itself"):
        directions.joined(directions.from_words(["clowns"], encode, HARMLESS), both)


def test_states_that_are_fitted_in_single_precision_read_the_same(typed):
    onto, _ = torch.linalg.qr(torch.randn(1100, WIDTH, generator=torch.Generator().manual_seed(0)))
    aligned = directions.from_words(["cigarettes"], lambda p: [rows @ onto.T for rows in encode(p)], HARMLESS)
    for rows in encode([*UNSEEN, *HARMLESS[:20]]):
        wide = rows @ onto.T
        assert torch.isfinite(aligned.prompt_scores(wide)).all()
        assert aligned.flagged(wide, 0.01) == typed.flagged(rows, 0.01)
