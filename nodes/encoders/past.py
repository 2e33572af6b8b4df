"""What carries a prompt past its states: token ids that a model embeds by itself, or what a language model made of it.

Where a model weighs what comes of each token id, those of the tokens that land become the one that ends every prompt, and
weigh nothing. Whatever else carries the prompt is left out of a flagged one.
"""

from __future__ import annotations

import unicodedata
from difflib import SequenceMatcher
from typing import Any, Callable, Mapping, Sequence

import torch
from torch import Tensor

from .templates import Template, Tokens

MARGIN, MARGIN_PER = 3, 8
"""Tokens around that count too where only their numbers are known: 3 and one in eight. Of 9,605 prompts of this project and of
900 made of several, cut by Qwen's tokenizer and by T5's, fewer than one token in a thousand lies further off."""

DOUBLED = 2.0

Carriers = tuple[tuple[str, str, str], ...]
"""Of each what it is called in the output, its tokens' weights, and the stream of tokens; "" where it has none."""


def find_carriers(
    tokens: Tokens,
    templates: Mapping[str, Template],
    output: Mapping[str, Any],
    changed: Mapping[str, str],
    encode: Callable[[Tokens], Mapping[str, Any]],
) -> Carriers:
    """The carriers in an encoder's output.

    Args:
        changed: what is no states and changes with a token of the prompt, and of which stream ("": not known).
        encode: tokens -> output.
    """
    found = []
    for name, key in changed.items():
        weights, size = "", _size(output.get(name))
        if key and templates[key].closing and [size] == [len(section) for section in tokens[key]]:
            heavy = [(token[0], DOUBLED, *token[2:]) for token in tokens[key][0]]
            other = encode({**tokens, key: [heavy]})
            weights = next((n for n, value in output.items() if _weighs(value, other.get(n), size)), "")
        found.append((name, weights, key))
    return tuple(found)


def _size(value: Any) -> int:
    """How many ids a tensor of integers holds."""
    return value.numel() if torch.is_tensor(value) and not value.is_floating_point() else 0


def _weighs(value: Any, other: Any, size: int) -> bool:
    """Whether a tensor has one weight a token: it doubles with them."""
    if not (torch.is_tensor(value) and torch.is_tensor(other) and value.is_floating_point() and value.numel() == size):
        return False
    return other.shape == value.shape and torch.equal(other, value * DOUBLED)


def hold_back(
    extras: Mapping[str, Any],
    carriers: Carriers,
    landed: Sequence[int],
    count: int,
    same: Sequence[Sequence[int]] | None,
) -> tuple[dict[str, Tensor], set[str]]:
    """What to put in the place of a flagged prompt's ids and weights, and what to leave out.

    Args:
        landed: which of its `count` own tokens land.
        same: of each own token the ids that hold the same text; None where only their numbers are known.
    """
    held: dict[str, Tensor] = {}
    out: set[str] = set()
    for name, weigher, _ in carriers:
        value, weight = extras.get(name), extras.get(weigher)
        if value is not None and not isinstance(weight, Tensor):
            out.add(name)
        elif isinstance(value, Tensor) and isinstance(weight, Tensor):
            spans = same if same is not None else beside(count, weight.numel())
            at = sorted({i for token in landed for i in spans[token] if i < weight.numel()})
            held |= {name: value.clone(), weigher: weight.clone()}
            held[name].view(-1)[at], held[weigher].view(-1)[at] = value.view(-1)[-1], 0
    return held, out


def beside(count: int, ids: int) -> list[range]:
    """Of each of `count` tokens which of as many ids may hold the same text, as both run from left to right."""
    margin = MARGIN + count // MARGIN_PER
    return [range(max(0, i * ids // count - margin), -(-(i + 1) * ids // count) + margin) for i in range(count)]


def same_text(
    own: Sequence[Any], others: Sequence[Any], decode: Callable[[list], str], decode_others: Callable[[list], str]
) -> list[list[int]]:
    """Of each token of one tokenizer those of another that hold the same text."""
    text, ends = _ends(own, decode)
    other_text, other_ends = _ends(others, decode_others)
    blocks = SequenceMatcher(None, text, other_text, autojunk=False).get_matching_blocks()
    where = [range(0)] * len(text)
    a = b = 0
    for block in blocks:
        for i in range(a, block.a):  # between what is alike, such as letters that the other doesn't have
            where[i] = range(b, block.b)
        for i in range(block.size):
            where[block.a + i] = range(block.b + i, block.b + i + 1)
        a, b = block.a + block.size, block.b + block.size
    owner = [j for j, (start, stop) in enumerate(zip([0, *other_ends], other_ends)) for _ in range(start, stop)]
    return [sorted({owner[i] for place in where[start:stop] for i in place}) for start, stop in zip([0, *ends], ends)]


def _ends(ids: Sequence[Any], decode: Callable[[list], str]) -> tuple[str, list[int]]:
    """The text of tokens without its spaces, and where each of them ends in it."""

    def text(some: Sequence[Any]) -> str:
        return "".join(unicodedata.normalize("NFKC", decode([i for i in some if isinstance(i, int)])).split())

    ends = [len(text(ids[: i + 1])) for i in range(len(ids))]
    return text(ids), [min(end, *ends[i:]) for i, end in enumerate(ends)]
