"""One slot's alignment: a direction fitted to one tensor of a text encoder's output. Its data, scores and thresholds;
no steering."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any, Mapping, NamedTuple, Sequence

import torch
from torch import Tensor

from .direction_format import GLOBAL
from .languages import Languages
from .place import Place
from .scores import LengthModel, ReadingMoments, Readings, global_plus_highest, prompt_scores
from .special_tokens import SpecialTokenBank

QUANTILES = torch.cat([torch.linspace(0, 0.1, 101), torch.linspace(0.11, 0.89, 79), torch.linspace(0.9, 1, 101)])
"""Shares at which benign levels are kept: dense where budgets are small; 0 and 1 are the extremes that were seen."""

_QUANTILES = QUANTILES.tolist()


class Added(NamedTuple):
    """A direction that was joined to another.

    Attributes:
        start: its first column, which is to it what `global` is to the first.
        mean, spread: moments of its tokens' readings; `SlotAlignment.token_moments` of the first.
    """

    start: int
    mean: float
    spread: float


@dataclass(frozen=True)
class SlotAlignment:
    """K directions (`global`, then the categories) in the space of one slot, of width W.

    A reader is a linear probe: (state - center) @ reader is greater for unsafe states.

    Attributes:
        names: the K names, `global` first.
        vectors: [K, W]; adding `alpha * vector` moves a state `alpha` pooled benign spreads to the safe side.
        readers: [K, W]; what they read of a token is in benign standard deviations.
        prompt_readers: [K, W]; the same for the mean of a prompt's tokens.
        mention_reader: [W]; greater for the mean of the tokens of a mention; zeros where none were told of.
        center: [W], the mean benign token state.
        token_moments: [2], mean and standard deviation over benign tokens of all names' readings together.
        reading_moments: [6, K, 2], mean and standard deviation of each of `scores.ReadingMoments` over everyday prompts.
        score_moments: [K, 2], the same of each name's score.
        length_model: [2, K, J], how these depend on a prompt's length; `scores.LengthModel`.
        languages: the L languages that anchors were in.
        language_readers, language_bias, language_moments: [L, W], [L] and [L, K, 2]; `languages.Languages`.
        anchor_scores: [N, K], the scores of the benign anchors that aren't mentions, each left out of its own fit.
        anchor_everyday: [N], 1 for those that a budget speaks of, 0 for those near the line.
        token_levels: [K, Q], benign quantiles of the tokens' component along each unit vector.
        bank: [M, W], benign token states to land on.
        bank_spacing: [M], how far apart they lie around each: the mean distance to its nearest others.
        fit: held-out figures: method, r2, top1, and the same for each method tried.
        direction: name, source and fingerprint of the direction that was aligned.
        place: where the slot lies in the encoder's output; None for states that came without an encoder.
        probe: [W], the encoder's mean state on PROBE_PROMPT, by which it is known again.
        padding: [W + 1], a linear reader that is positive on content, where `place` is unmasked.
        special_tokens: states of benign prompts' special tokens, where these depend on the prompt.
        added: directions whose columns stand behind those of the first; see `joining`.
    """

    names: tuple[str, ...]
    vectors: Tensor
    readers: Tensor
    prompt_readers: Tensor
    mention_reader: Tensor
    center: Tensor
    token_moments: Tensor
    reading_moments: Tensor
    score_moments: Tensor
    length_model: Tensor
    language_readers: Tensor
    language_bias: Tensor
    language_moments: Tensor
    languages: tuple[str, ...]
    anchor_scores: Tensor
    anchor_everyday: Tensor
    token_levels: Tensor
    bank: Tensor
    bank_spacing: Tensor
    fit: Mapping[str, Any]
    direction: Mapping[str, Any]
    place: Place | None = None
    probe: Tensor | None = None
    padding: Tensor | None = None
    special_tokens: SpecialTokenBank | None = None
    added: tuple[Added, ...] = ()

    @property
    def heads(self) -> dict[str, tuple[int, Tensor]]:
        """What each direction's own `global` is called, its column, and the moments of its tokens' readings, [2]."""
        own = {self.names[one.start]: (one.start, torch.tensor([one.mean, one.spread])) for one in self.added}
        return {GLOBAL: (0, self.token_moments), **own}

    @property
    def width(self) -> int:
        """W, the width of the states that this fits."""
        return self.center.shape[0]

    def index(self, name: str) -> int:
        """The column of a name.

        Raises:
            ValueError: there is no such category; lists those there are.
        """
        if name not in self.names:
            raise ValueError(f"no category {name!r}: this direction has {', '.join(self.names[1:]) or 'none'}")
        return self.names.index(name)

    def chosen(self, categories: Sequence[str] | None) -> tuple[str, ...]:
        """The names that `categories` asks for; None or none is the global direction, and every one that was joined to it."""
        if isinstance(categories, str):
            raise ValueError(f"categories is a list of names, not the text {categories!r}")
        names = tuple(dict.fromkeys(categories)) if categories else tuple(self.heads)
        for name in names:
            self.index(name)
        return names

    def score(self, states: Tensor, category: str | None = None) -> Tensor:
        """Score tokens: [..., T, W] -> [..., T], in benign standard deviations; positive is unsafe.

        Without a category (or for `global`) the global reading and the highest category's are added, as for a prompt.
        """
        self.check(states)
        name, heads = category or GLOBAL, self.heads
        start = self.index(name)
        stop = (
            next((other for other, _ in heads.values() if other > start), len(self.names))
            if name in heads
            else start + 1
        )
        readings = (states.float() - self.center.to(states.device)) @ self.readers[start:stop].to(states.device).T
        if name not in heads:
            return readings[..., 0]
        mean, spread = heads[name][1].to(readings)
        return (global_plus_highest(readings) - mean) / spread

    def prompt_scores(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """Score prompts by every name: [..., T, W] -> [..., K], in benign standard deviations; positive is unsafe.

        `global` is the global reading plus the highest category's. See `scores` for what a score is.

        Args:
            mask: bool [..., T], the prompt's own tokens; None is all. A prompt without any scores 0.
        """
        content = self.content(states, mask)
        readers = (self.readers, self.prompt_readers, self.mention_reader.unsqueeze(0), self.language_readers)
        readings = (states.float() - self.center.to(states.device)) @ torch.cat(readers).to(states.device).T
        shape = content.shape[:-1]
        readings, own = (
            readings.reshape(shape.numel(), *readings.shape[-2:]),
            content.reshape(shape.numel(), content.shape[-1]),
        )
        counts = own.sum(-1)
        scores = readings.new_zeros(len(own), len(self.names))
        for n in counts.unique().tolist():
            rows = (counts == n).nonzero().flatten()
            if n:
                scores[rows] = self._prompt_scores(readings[rows][own[rows]].reshape(len(rows), n, -1))
        return scores.reshape(*shape, len(self.names))

    def _prompt_scores(self, readings: Tensor) -> Tensor:
        """Of prompts of one length, [m, n, K + K + 1 + L] -> [m, K]."""
        token, prompt, mention, of_language = readings.split([*[len(self.names)] * 2, 1, len(self.languages)], -1)
        moments = ReadingMoments(*self.reading_moments.to(readings))
        heads = (0, *(one.start for one in self.added))
        scores = prompt_scores(
            Readings(token, prompt, mention[..., 0]), moments, self.score_moments.to(readings), heads
        )
        count = torch.full((len(scores),), readings.shape[1], device=scores.device)
        scores = LengthModel(*self.length_model.to(scores))(scores, count)
        return Languages(self.language_readers, self.language_bias, self.language_moments)(scores, of_language.mean(1))

    def token_level(self, category: str, share: float) -> float:
        """The component along the unit vector, from the benign centre, that a share of benign tokens lies below."""
        return interpolated(self.token_levels[self.index(category)], share)

    def vector(self, names: Sequence[str]) -> Tensor:
        """The vector to add for these names, [W]: their unit sum, one mean pooled benign spread long."""
        chosen = self.vectors[[self.index(name) for name in names]]
        lengths = chosen.norm(dim=1, keepdim=True).clamp_min(1e-12)
        total = (chosen / lengths).sum(0)
        return total / total.norm().clamp_min(1e-12) * lengths.mean()

    def check(self, states: Tensor) -> None:
        """Raise ValueError when states don't fit this slot."""
        if states.dim() < 2 or states.shape[-1] != self.width:
            raise ValueError(
                f"states of shape {list(states.shape)} don't fit: this alignment is for [..., tokens, {self.width}]. "
                "Align the direction to this encoder."
            )
        if not torch.is_floating_point(states):
            raise ValueError(f"states of type {states.dtype} are not floating point")

    def content(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """A mask as bool [..., T] on the states' device; None is all true."""
        self.check(states)
        if mask is None:
            return torch.ones(states.shape[:-1], dtype=torch.bool, device=states.device)
        if mask.shape[-1:] != states.shape[-2:-1]:
            own = mask.shape[-1] if mask.dim() else 0
            raise ValueError(f"a mask for {own} tokens on states with {states.shape[-2]} tokens")
        return mask.to(device=states.device, dtype=torch.bool).expand(states.shape[:-1])


def check_budget(budget: float) -> None:
    """Raise ValueError where a budget is no share."""
    if not 0 <= budget <= 1:
        raise ValueError(f"budget {budget} is not a share between 0 and 1 (0.01 is 1% of benign prompts)")


def interpolated(levels: Tensor, share: float) -> float:
    """Linear interpolation of a quantile table [Q] at `share`; beyond the highest seen for share 1."""
    position = min(max(bisect_left(_QUANTILES, share), 1), len(_QUANTILES) - 1)
    low, high = _QUANTILES[position - 1 : position + 1]
    below, above = levels[position - 1 : position + 1].tolist()
    return below + (above - below) * min(max((share - low) / (high - low), 0.0), 1.0)
