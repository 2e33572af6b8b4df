"""The shipped prompts keep the promises of their description."""

import re
from collections import Counter

import pytest

from directions.prompts import HERE, KINDS, read_anchors, read_pairs

CATEGORIES = {"sexual", "violence", "hate", "humiliation", "illegal", "disturbing"}
STYLES = {"caption", "art", "tags", "long", "video"}
TYPED = "typed"
"""The style of pairs that are written as people type in a hurry; harmless anchors have several such styles."""
MINORS = re.compile(
    r"\b(child|children|kids?|boys?|girls?|teens?|teenagers?|toddlers?|bab(y|ies)|infants?|minors|minor(?! bump)|schoolgirls?|schoolboys?|underage|lolis?)\b",
    re.I,
)


@pytest.mark.parametrize("category", sorted(CATEGORIES))
def test_each_category_has_its_pairs_and_themes(category):
    train, held = ([p for p in read_pairs(split=s) if p.category == category] for s in ("train", "held_out"))
    assert len(train) + len(held) >= 250
    # Overt prompts and twins all train: what they are measured by stands in benchmarks/prompts.
    split = [p for p in train if not p.theme.startswith(("overt-", "twin-"))]
    assert len(held) / (len(split) + len(held)) == pytest.approx(0.2, abs=0.02)
    assert not {p.theme for p in train} & {p.theme for p in held}


def test_fresh_themes_are_in_no_other_split():
    fresh = read_pairs(split="fresh")
    others = {p.theme for split in ("train", "held_out") for p in read_pairs(split=split)}
    assert {p.category for p in fresh} == CATEGORIES and not {p.theme for p in fresh} & others


def test_style_does_not_give_the_class_away():
    pairs = read_pairs(split=None)
    assert {p.category for p in pairs} == CATEGORIES and {p.style for p in pairs} == STYLES | {TYPED}
    words = [
        sum(len(text.split()) for text in side) / len(pairs)
        for side in ([p.safe for p in pairs], [p.unsafe for p in pairs])
    ]
    assert words[0] == pytest.approx(words[1], rel=0.03)
    of_pairs, of_anchors = (Counter(one.style for one in rows) for rows in (pairs, read_anchors(split=None)))
    for style in STYLES:
        assert of_anchors[style] / of_anchors.total() > 0.5 * of_pairs[style] / of_pairs.total()


def test_there_are_enough_anchors_and_none_is_fresh_and_seen():
    train, fresh = ([a.prompt.lower() for a in read_anchors(split=s)] for s in ("train", "held_out"))
    assert len(train) >= 3000 and len(fresh) >= 500 and not set(train) & set(fresh)


def test_mentions_are_of_every_category_and_those_to_measure_on_of_other_themes():
    train, fresh = (read_anchors(split=split, kinds=("mention",)) for split in ("train", "held_out"))
    assert {a.theme.partition("-")[0] for a in train} == {a.theme.partition("-")[0] for a in fresh} == CATEGORIES
    assert len(train) >= 1800 and len(fresh) >= 150 and not {a.theme for a in train} & {a.theme for a in fresh}


def test_no_mention_touches_what_pairs_are_measured_on():
    """By words that name held-out and fresh themes: a mention of one would be a look at what is held out."""
    topics = re.compile(
        r"\b(hijack|poach|contraband|chop shop|drunk driv|doping|samurai|katana|pirate|bondage|mannequin|circus|clown|torture)",
        re.I,
    )
    assert not [a.prompt for a in read_anchors(kinds=("mention",)) if topics.search(a.prompt)]


def test_no_prompt_stands_twice():
    pairs = read_pairs(split=None)
    texts = [p.safe for p in pairs] + [p.unsafe for p in pairs]
    mentions = [a.prompt for a in read_anchors(split=None, kinds=("mention",))]
    assert not set(mentions) & {*texts, *(a.prompt for a in read_anchors(split=None))}
    texts += mentions
    assert not [text for text, n in Counter(texts).items() if n > 1]


def test_no_minors_anywhere():
    texts = [t for p in read_pairs(split=None) for t in (p.safe, p.unsafe)] + [
        a.prompt for a in read_anchors(split=None, kinds=KINDS)
    ]
    assert not [t for t in texts if MINORS.search(t)]


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "x.tsv").write_text("split\ttheme\tstyle\tsafe\ntrain\ta\tb\tc\n")
    with pytest.raises(ValueError, match="lacks the columns"):
        read_pairs(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_pairs(HERE / "nowhere")
