"""One slot's alignment: a direction fitted to one tensor of a text encoder's output. Its data, scores and thresholds;
no steering."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any, Mapping, Sequence

import torch
from torch import Tensor

from . import files
from .direction_format import GLOBAL, LONGEST, SHORTEST, is_language, is_name
from .eight_bits import bytes_fault, grid_of, packed, unpacked
from .languages import Languages
from .place import Place
from .scores import KNOTS, LengthModel, ReadingMoments, Readings, global_plus_highest, prompt_scores
from .special_tokens import SpecialTokenBank

QUANTILES = torch.cat([torch.linspace(0, 0.1, 101), torch.linspace(0.11, 0.89, 79), torch.linspace(0.9, 1, 101)])
"""Shares at which benign levels are kept: dense where budgets are small; 0 and 1 are the extremes that were seen."""

_QUANTILES = QUANTILES.tolist()


STEEPEST = 100.0
"""Coefficients of a length model beyond it overflow."""


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
        """The names that `categories` asks for; None or none is the global direction."""
        if isinstance(categories, str):
            raise ValueError(f"categories is a list of names, not the text {categories!r}")
        names = tuple(dict.fromkeys(categories)) if categories else (GLOBAL,)
        for name in names:
            self.index(name)
        return names

    def score(self, states: Tensor, category: str | None = None) -> Tensor:
        """Score tokens: [..., T, W] -> [..., T], in benign standard deviations; positive is unsafe.

        Without a category (or for `global`) the global reading and the highest category's are added, as for a prompt.
        """
        self.check(states)
        name = category or GLOBAL
        readers = self.readers if name == GLOBAL else self.readers[self.index(name)].unsqueeze(0)
        readings = (states.float() - self.center.to(states.device)) @ readers.to(states.device).T
        if name != GLOBAL:
            return readings[..., 0]
        mean, spread = self.token_moments.to(readings)
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
        readings, own = readings.reshape(shape.numel(), *readings.shape[-2:]), content.reshape(shape.numel(), content.shape[-1])
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
        scores = prompt_scores(Readings(token, prompt, mention[..., 0]), moments, self.score_moments.to(readings))
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


_SHAPES = {
    "vectors": "KW",
    "readers": "KW",
    "prompt_readers": "KW",
    "mention_reader": "W",
    "center": "W",
    "token_moments": "2",
    "reading_moments": "6K2",
    "score_moments": "K2",
    "length_model": "2KJ",
    "language_readers": "LW",
    "language_bias": "L",
    "language_moments": "LK2",
    "anchor_scores": "NK",
    "anchor_everyday": "N",
    "token_levels": "KQ",
    "bank": "MW",
    "bank_spacing": "M",
}
"""The tensors of a file; K names, J knots, Q quantiles, N anchors, L languages, M states of the bank."""


def pack(slot: SlotAlignment) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a slot, as a file has them; without what ties it to an encoder."""
    tensors = {name: getattr(slot, name) for name in _SHAPES if name != "bank"} | packed("bank", slot.bank)
    lists = {"names": list(slot.names), "languages": list(slot.languages)}
    return tensors, {**lists, "fit": dict(slot.fit), "direction": dict(slot.direction)}


def packed_fault(entries: Mapping[str, tuple], metadata: Mapping[str, Any]) -> str | None:
    """What is wrong with one packed slot, or None."""
    if set(entries) - {grid_of("bank")} != set(_SHAPES):
        odd = str(sorted(set(entries) ^ set(_SHAPES))[:5])[:400]
        return f"tensors {odd} are missing or unknown: another version may have made it, so align again"
    names = metadata.get("names")
    if (
        not isinstance(names, list)
        or not names
        or names[0] != GLOBAL
        or not all(map(is_name, names))
        or len(set(names)) != len(names)
    ):
        return "the metadata's names are not `global` and distinct short names"
    languages = metadata.get("languages")
    if not isinstance(languages, list) or not languages or not all(map(is_language, languages)):
        return "the metadata's languages are not codes such as en"
    if not isinstance(metadata.get("fit"), dict) or not isinstance(metadata.get("direction"), dict):
        return "the metadata's fit or direction is not an object"
    sizes = {"K": len(names), "J": len(KNOTS), "2": 2, "6": 6, "Q": len(QUANTILES), "L": len(languages)}
    sizes |= {"W": entries["center"][1][0], "N": entries["anchor_everyday"][1][0], "M": entries["bank_spacing"][1][0]}
    for name, letters in _SHAPES.items():
        shape = entries[name][1]
        if len(shape) != len(letters) or any(sizes.get(letter, n) != n for letter, n in zip(letters, shape)):
            return f"{name} has shape {list(shape)}, not [{', '.join(letters)}] with {sizes}"
        if name != "bank" and entries[name][0] != "F32":
            return f"{name} has dtype {entries[name][0]}"
    return bytes_fault(entries, "bank")


def unpack(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], file: str) -> SlotAlignment:
    """The reverse of `pack`, after `packed_fault`.

    Raises:
        DirectionFormatError: numbers in `file` that would divide by zero or overflow.
    """
    named: dict[str, Any] = {name: tensors[name] for name in _SHAPES} | {"bank": unpacked(tensors, "bank", file)}
    spreads = (
        named["reading_moments"][..., 1],
        named["score_moments"][:, 1],
        named["token_moments"][1],
        named["language_moments"][..., 1],
        named["bank_spacing"],
    )
    if not min(spread.min() for spread in spreads) >= SHORTEST / 2:
        raise files.DirectionFormatError(f"{file}: a benign spread is not positive")
    if not (named["length_model"].abs().max() < STEEPEST and named["anchor_everyday"].sum() >= 2):
        raise files.DirectionFormatError(f"{file}: scores that no harmless prompts have")
    for name, tensor in named.items():
        if not tensor.abs().max() < LONGEST:
            raise files.DirectionFormatError(f"{file}: {name} has a value of {tensor.abs().max():.3g}")
    named |= {name: tuple(metadata[name]) for name in ("names", "languages")}
    return SlotAlignment(fit=metadata["fit"], direction=metadata["direction"], **named)
