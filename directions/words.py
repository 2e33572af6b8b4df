"""Type a direction: any concept, from an encoder's own states of prompts with and without its words. No language model."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import torch
from torch import Tensor

from .align import assembled, separated
from .alignment import STATES, Alignment
from .direction import Direction
from .direction_format import GLOBAL, is_name
from .frames import ALONE, CONTRASTS, HOSTS, LONGEST_HOST, Shown, fitted_on, frames, held_out, word_rows
from .readers import Anchors, fit_readers, precision
from .slot import SlotAlignment
from .wide import WIDEST

Encode = Callable[[Sequence[str]], "Sequence[Tensor] | Mapping[str, Sequence[Tensor]]"]
"""Prompts to the states of each one's own tokens, [T_i, W] each, in order; or those of several slots of one encoder, by name."""

FEWEST = 200
"""Everyday harmless prompts; with fewer a budget of 1% is read off one of them."""

HARMLESS = 1000
"""Everyday harmless prompts that words are told from, if nobody says otherwise. With 400 up to 0.04 fewer unseen phrasings are
found; with 3,900 up to 0.04 more, and up to 0.05 more of the neighbours are flagged (docs/log.md, Typed words)."""

LENIENT, LEAST_FOUND = 0.05, 0.5
"""Of a word that the encoder doesn't tell from anything else fewer than half of the held-out prompts are found at a budget of 5%.
On MiniLM all words that were
tried lie above 0.9 (docs/log.md, Typed words)."""

COMMON = 0.1
"""Share of harmless prompts that name a word which would flag everything."""

MOST = 32
"""Words at a time: each takes HOSTS short passes through the encoder."""

VERSION = 1
"""Of what is made of the same words; another number makes it anew."""


class UnclearWords(ValueError):
    """Words that no direction can be made of; says which, and why."""


def from_words(
    words: Sequence[str],
    encode: Encode,
    harmless: Sequence[str],
    *,
    instead: str = "",
    contrast: Sequence[str] = (),
) -> Alignment:
    """A direction for what the words name, fitted to the encoder; each word is a category, and `global` is any of them.

    The encoder reads the harmless prompts, and each word alone and in some of these: `Encode` is called once, with all. What
    comes out is an ordinary alignment. Harmless prompts that name a word are left out; the others, its neighbours among them,
    are what it is told from.

    Args:
        words: words or phrases, as in a prompt: "cigarettes", "a red car".
        harmless: everyday harmless prompts, such as a direction's everyday anchors: budgets are shares of these.
        instead: what tokens that are flagged land on; empty is harmless prompts' tokens near by.
        contrast: words for what must not be taken for the concept ("chalk").

    Raises:
        UnclearWords: a word that the encoder doesn't tell from anything else, or that would flag everything.
        ValueError: no words, too many, two of one name, too few harmless prompts, or states that don't fit.
    """
    names = names_of(words)
    for word in {*words} & {*contrast, instead}:
        raise ValueError(f"{word!r} is what is to be found; it can't be a contrast or stand in its own place")
    plain = _harmless(words, harmless)
    hosts = [prompt for prompt in plain if len(prompt.split()) <= LONGEST_HOST][:HOSTS]
    shown = {word: frames(word, hosts) for word in dict.fromkeys([*words, *contrast, *filter(None, [instead])])}
    for word in set(shown) - {*words, instead}:
        shown[word] = shown[word][:: -(-len(shown[word]) // CONTRASTS)]
    prompts = dict.fromkeys([*plain, *(one.prompt for some in shown.values() for one in some)])
    slots = _by_slot(encode(list(prompts)), list(prompts))
    typed = Typed(
        tuple(words),
        names,
        plain,
        hosts,
        shown,
        instead,
        tuple(contrast),
        fingerprint(words, harmless, instead, contrast),
    )
    aligned = Alignment({slot: _fitted(typed, states) for slot, states in slots.items()})
    _check_found(aligned, typed, slots)
    return aligned


class Typed(NamedTuple):
    """What was typed, and the prompts that it was put into."""

    words: tuple[str, ...]
    names: tuple[str, ...]
    harmless: list[str]
    hosts: list[str]
    shown: dict[str, list[Shown]]
    instead: str
    contrast: tuple[str, ...]
    sha256: str


def names_of(words: Sequence[str]) -> tuple[str, ...]:
    """The category that each word becomes: lower case with hyphens; a hash for scripts that names can't have.

    Raises:
        ValueError: no words, too many, an empty one, or two of one name.
    """
    if isinstance(words, str) or not words or len(words) > MOST:
        raise ValueError(f"words is a list of 1 to {MOST} words or phrases")
    names = []
    for word in words:
        if not word.strip():
            raise ValueError("one of the words is empty")
        plain = unicodedata.normalize("NFKD", word.lower()).encode("ascii", "ignore").decode()
        name = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:64]
        names.append(name if is_name(name) else f"word-{hashlib.sha256(word.encode()).hexdigest()[:8]}")
    for i, name in enumerate(names):
        if name in names[:i] or name == GLOBAL:
            raise ValueError(f"{words[i]!r} would be the category {name!r}, which there is already: leave it out")
    return tuple(names)


def fingerprint(words: Sequence[str], harmless: Sequence[str], instead: str = "", contrast: Sequence[str] = ()) -> str:
    """What a direction of these words is known by, whatever encoder it is fitted to."""
    parts = (str(VERSION), *words, "", instead, "", *contrast, "", *harmless)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def harmless_prompts(direction: Direction, count: int = HARMLESS) -> list[str]:
    """The first everyday anchors of a direction, in its own language."""
    rows = enumerate(zip(direction.anchor_prompts, direction.everyday.tolist(), direction.groups.tolist()))
    return [prompt for i, (prompt, everyday, original) in rows if everyday and original == i][:count]


def names_it(prompt: str, word: str) -> bool:
    """Whether a prompt has every part of a word or phrase in it, singular or plural."""
    stems = (re.escape(re.sub(r"s$", "", part)) for part in word.lower().split())
    return all(re.search(rf"(?<!\w){stem}(s|es)?(?!\w)", prompt.lower()) for stem in stems)


def _harmless(words: Sequence[str], harmless: Sequence[str]) -> list[str]:
    """The harmless prompts that name none of the words."""
    harmless = list(dict.fromkeys(harmless))
    named = {word: {prompt for prompt in harmless if names_it(prompt, word)} for word in words}
    for word, some in named.items():
        if len(some) > COMMON * len(harmless):
            raise UnclearWords(
                f"{word!r} would flag everything: {len(some)} of {len(harmless)} harmless prompts name it. "
                "Type a narrower word"
            )
    out = set().union(*named.values())
    left = [prompt for prompt in harmless if prompt not in out]
    if len(left) < FEWEST:
        raise ValueError(f"{len(left)} harmless prompts that name none of the words; at least {FEWEST} are needed")
    return left


def _by_slot(states: Any, prompts: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """States by slot and prompt, checked."""
    slots = states if isinstance(states, Mapping) else {STATES: states}
    found = {}
    for name, rows in slots.items():
        if len(rows) != len(prompts):
            raise ValueError(f"{len(rows)} states for {len(prompts)} prompts: encode gives one for each, in order")
        width = rows[0].shape[-1]
        if width > WIDEST:
            raise ValueError(f"states of {name} are {width} wide; words can be typed for up to {WIDEST}")
        for prompt, row in zip(prompts, rows):
            if row.dim() != 2 or row.shape[1] != width or not len(row) or not torch.isfinite(row.float().sum()):
                raise ValueError(
                    f"states of {prompt[:60]!r} have shape {list(row.shape)}; finite [tokens, {width}] with at least one "
                    "token was expected"
                )
        found[name] = {prompt: row.detach().float().cpu() for prompt, row in zip(prompts, rows)}
    return found


def _fitted(typed: Typed, states: Mapping[str, Tensor]) -> SlotAlignment:
    names = (GLOBAL, *typed.names)
    kept = {word: fitted_on(some) for word, some in typed.shown.items()}
    others = [one for word in filter(None, (*typed.contrast, typed.instead)) for one in kept[word]]
    plain = [states[prompt] for prompt in typed.harmless]
    benign = len(plain) + len(others)
    own = [(k, one) for k, word in enumerate(typed.words, 1) for one in kept[word]]
    labels = [_labels(one, states, k, len(names)) for k, one in own]
    # Harmless prompts score 0 throughout, so that the others' scores are in units of nothing: only their signs count.
    nothing = torch.zeros(1, len(names))
    place = {prompt: i for i, prompt in enumerate(typed.harmless)}

    def group(index: int, one: Shown) -> int:
        return index if one.host is None else place[typed.hosts[one.host]]

    anchors = Anchors(
        tokens=[*plain, *(states[one.prompt] for one in others), *(states[one.prompt] for _, one in own)],
        prompt_scores=torch.cat([nothing.expand(benign, -1), *(row.amax(0, keepdim=True) for row in labels)]),
        token_scores=[nothing] * benign + labels,
        benign=benign,
        everyday=torch.arange(benign) < len(plain),
        # A prompt is never read by what was learned of its host with a word in it.
        group=torch.tensor(
            [*range(len(plain)), *map(group, range(len(others) + len(own)), [*others, *(one for _, one in own)])]
        ),
        language=torch.zeros(benign + len(own), dtype=torch.long),
        languages=1,
        mentions=False,
    )
    reading = fit_readers(anchors)
    return assembled(
        names,
        ("en",),
        reading,
        _vectors(typed, states, kept),
        plain,
        anchors.everyday,
        {"method": "words", **({"instead": typed.instead} if typed.instead else {})},
        {
            "name": f"no {', '.join(typed.words)}",
            "source": "typed words",
            "sha256": typed.sha256,
        },
        _landing(typed, states),
    )


def _landing(typed: Typed, states: Mapping[str, Tensor]) -> Tensor | None:
    """The tokens of what is put instead, [M, W]."""
    if not typed.instead:
        return None
    some = typed.shown[typed.instead]
    return torch.cat([word_rows(one, states[one.prompt], len(states[one.form])) for one in some])


def _labels(one: Shown, states: Mapping[str, Tensor], column: int, names: int) -> Tensor:
    """1 on the word's tokens, in the columns of `global` and its own: [T, K]."""
    labels = torch.zeros(len(states[one.prompt]), names)
    word_rows(one, labels, len(states[one.form])).index_fill_(1, torch.tensor([0, column]), 1.0)
    return labels


def _vectors(typed: Typed, states: Mapping[str, Tensor], kept: Mapping[str, Sequence[Shown]]) -> Tensor:
    """What to add to take a word away, or to put `instead` in its place: [K, W], as `align` makes them of its steps."""
    dtype = precision(next(iter(states.values())).shape[1])
    pooled = torch.stack([states[prompt].mean(0) for prompt in typed.harmless]).to(dtype)
    steps = []
    for word in typed.words:
        beside = [one for one in kept[word] if one.host is not None]
        without = [
            typed.shown[typed.instead][len(ALONE) + one.host].prompt if typed.instead else typed.hosts[one.host]
            for one in beside
            if one.host is not None
        ]
        steps.append(
            torch.stack(
                [states[other].mean(0) - states[one.prompt].mean(0) for one, other in zip(beside, without)]
            ).mean(0)
        )
    each = torch.stack(steps).to(dtype)
    return separated(torch.cat([each.mean(0, keepdim=True), each]), pooled).float()


def _check_found(aligned: Alignment, typed: Typed, slots: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Refuse words of whose held-out prompts hardly any are found, and what is put instead where it is found."""

    def found(word: str, name: str) -> float:
        rows = [{slot: states[one.prompt] for slot, states in slots.items()} for one in held_out(typed.shown[word])]
        scores = [aligned.prompt_score(row if len(row) > 1 else next(iter(row.values())), name) for row in rows]
        return (torch.stack(scores) > aligned.threshold(LENIENT, name)).float().mean().item()

    for word, name in zip(typed.words, typed.names):
        share = found(word, name)
        if share < LEAST_FOUND:
            raise UnclearWords(
                f"{word!r}: this encoder doesn't tell it from anything else ({share:.0%} of the prompts with it are found "
                f"at a budget of {LENIENT:.0%}). Type another word for it"
            )
    if typed.instead and found(typed.instead, GLOBAL) > LEAST_FOUND:
        raise UnclearWords(
            f"{typed.instead!r} can't stand in its place: the encoder takes it for {', '.join(typed.words)}"
        )
