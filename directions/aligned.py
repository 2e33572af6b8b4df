"""The aligned direction: a direction fitted to one slot of one text encoder, ready to score and steer."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

import torch
from torch import Tensor

from . import files
from .direction import GLOBAL, LONGEST, SHORTEST, is_name
from .steer import MODES

# Dense where budgets are small; 0 and 1 are the extremes that were seen.
QUANTILES = torch.cat([torch.linspace(0, 0.1, 101), torch.linspace(0.11, 0.89, 79), torch.linspace(0.9, 1, 101)])
_QUANTILES = QUANTILES.tolist()

TOP = 2
"""How many of a prompt's highest tokens count."""


def peak(scores: Tensor) -> Tensor:
    """The mean of the TOP highest token scores of a prompt: [T, K] -> [K]."""
    return scores.topk(min(TOP, len(scores)), dim=0).values.mean(0)


def combine(readings: Tensor) -> Tensor:
    """Standardised readings [..., K], `global` first, to one [...]: the global one plus the highest category's."""
    return readings[..., 0] + readings[..., 1:].amax(-1) if readings.shape[-1] > 1 else readings[..., 0]


@dataclass(frozen=True)
class AlignedDirection:
    """K directions (`global`, then the categories) in a target space of width W.

    Attributes:
        names: the K names, `global` first.
        vectors: [K, W]; adding `alpha * vector` moves a state `alpha` pooled benign spreads to the safe side.
        readers: [K, W]; (state - center) @ reader is a token's score in benign standard deviations.
        prompt_readers: [K, W]; the same for the mean of a prompt's tokens.
        center: [W], the mean benign token state.
        token_moments: [2], mean and standard deviation over benign tokens of all names' readings together.
        peak_spread: [K], benign standard deviation of the mean of a prompt's TOP highest token scores.
        prompt_moments: [K + 1, 2], mean and standard deviation over benign prompts of each name's prompt reading,
            and of all of them together.
        prompt_levels: [K, Q], benign quantiles (QUANTILES) of the prompt score, each prompt left out of its own fit.
        token_levels: [K, Q], benign quantiles of the tokens' component along each unit vector.
        bank: [M, W], benign token states to land on.
        bank_spacing: [M], how far apart they lie around each: the mean distance to its nearest others.
        fit: held-out figures: method, r2, top1, and the same for each method tried.
        direction: name, source and fingerprint of the direction that was aligned.
    """

    names: tuple[str, ...]
    vectors: Tensor
    readers: Tensor
    prompt_readers: Tensor
    center: Tensor
    token_moments: Tensor
    peak_spread: Tensor
    prompt_moments: Tensor
    prompt_levels: Tensor
    token_levels: Tensor
    bank: Tensor
    bank_spacing: Tensor
    fit: Mapping[str, Any]
    direction: Mapping[str, Any]

    @property
    def categories(self) -> tuple[str, ...]:
        """The category names, without `global`."""
        return self.names[1:]

    @property
    def width(self) -> int:
        """W, the width of the states that this fits."""
        return self.center.shape[0]

    def score(self, states: Tensor, category: str | None = None) -> Tensor:
        """Score tokens: [..., T, W] -> [..., T], in benign standard deviations; positive is unsafe.

        Without a category (or for `global`) the global reading and the highest category's are added, as for a prompt.
        """
        self._check(states)
        name = category or GLOBAL
        readers = self.readers if name == GLOBAL else self.readers[self._index(name)].unsqueeze(0)
        readings = (states.float() - self.center.to(states.device)) @ readers.to(states.device).T
        if name != GLOBAL:
            return readings[..., 0]
        mean, spread = self.token_moments.to(readings)
        return (combine(readings) - mean) / spread

    def prompt_score(self, states: Tensor, category: str | None = None, mask: Tensor | None = None) -> Tensor:
        """Score prompts: [..., T, W] -> [...], in benign standard deviations; positive is unsafe.

        A name reads the mean of the prompt's tokens, and its TOP highest tokens. Without a category (or for `global`) the
        global reading and the highest category's are added: together they find more than either.
        """
        return self._prompt_scores(states, (category or GLOBAL,), mask)[..., 0]

    def _prompt_scores(self, states: Tensor, names: Sequence[str], mask: Tensor | None) -> Tensor:
        """Prompt scores of several names at once, [..., names]: the states are read once."""
        content = self._content(states, mask)
        wanted = self.names if GLOBAL in names else tuple(names)
        index = [self._index(name) for name in wanted]
        count = content.sum(-1, keepdim=True).clamp_min(1)
        centred = states.float() - self.center.to(states.device)
        mean = (centred * content.unsqueeze(-1)).sum(-2) / count
        tokens = (centred @ self.readers[index].to(centred).T).masked_fill(~content.unsqueeze(-1), -torch.inf)
        highest = tokens.topk(min(TOP, states.shape[-2]), dim=-2).values
        highest = highest.masked_fill(highest == -torch.inf, 0).sum(-2) / count.clamp_max(TOP)
        readings = mean @ self.prompt_readers[index].to(mean).T + highest / self.peak_spread[index].to(mean)
        moments = self.prompt_moments.to(mean)
        scores = (readings - moments[index, 0]) / moments[index, 1]
        if GLOBAL in names:
            together = (combine(scores) - moments[-1, 0]) / moments[-1, 1]
            scores = torch.stack([together if name == GLOBAL else scores[..., self._index(name)] for name in names], -1)
        return torch.where(content.any(-1, keepdim=True), scores, torch.zeros_like(scores))

    def threshold(self, budget: float, category: str | None = None) -> float:
        """The prompt score that a share `budget` of benign anchors exceeds."""
        if not 0 <= budget <= 1:
            raise ValueError(f"budget {budget} is not a share between 0 and 1 (0.01 is 1% of benign prompts)")
        return _interpolate(self.prompt_levels[self._index(category or GLOBAL)], 1 - budget)

    def token_level(self, category: str, share: float) -> float:
        """The component along the unit vector, from the benign centre, that a share of benign tokens lies below."""
        return _interpolate(self.token_levels[self._index(category)], share)

    def flagged(self, states: Tensor, budget: float, categories: Sequence[str] | None = None, mask: Tensor | None = None) -> Tensor:
        """Which prompts score above the threshold of any of `categories` (default: global): [..., T, W] -> bool [...].

        Several categories share the budget evenly, so that together they stay within it.
        """
        names = self._names(categories)
        thresholds = torch.tensor([self.threshold(budget / len(names), name) for name in names])
        scores = self._prompt_scores(states, names, mask)
        return (scores > thresholds.to(scores)).any(-1)

    def steer(
        self,
        states: Tensor,
        alpha: float = 5.0,
        mode: str = "add",
        categories: Sequence[str] | None = None,
        mask: Tensor | None = None,
        budget: float = 0.01,
    ) -> Tensor:
        """Move states to the safe side; same shape, dtype and device.

        Args:
            states: [..., T, W].
            alpha: strength in pooled benign spreads; negative moves to the unsafe side ("add").
            mode: "add" (the paper), "project" (one-sided, to the benign level) or "gate" (flagged
                prompts only, landing among benign states; everything else comes out bit-identical).
            categories: which directions; None is the global one.
            mask: bool [..., T], true on the tokens that may move; None is all.
            budget: share of benign prompts that may be flagged ("gate"), or of benign tokens ("project").

        Raises:
            ValueError: a width, mask, mode, category, budget or strength that doesn't fit; it says which.
        """
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}: choose from {', '.join(MODES)}")
        if not -1000 <= alpha <= 1000:
            raise ValueError(f"strength {alpha} is not a number of benign spreads between -1000 and 1000")
        if not 0 <= budget <= 1:
            raise ValueError(f"budget {budget} is not a share between 0 and 1 (0.01 is 1% of benign prompts)")
        content = self._content(states, mask)
        names = self._names(categories)
        if alpha == 0 and mode != "project":
            return states.clone()
        moved = MODES[mode](states.float(), self, names, alpha, budget, content)
        changed = (moved != states.float()).any(-1, keepdim=True)
        limit = torch.finfo(states.dtype).max
        return torch.where(changed, moved.clamp(-limit, limit).to(states.dtype), states)

    def vector(self, names: Sequence[str]) -> Tensor:
        """The vector to add for these names, [W]: their unit sum, one mean pooled benign spread long."""
        chosen = self.vectors[[self._index(name) for name in names]]
        lengths = chosen.norm(dim=1, keepdim=True).clamp_min(1e-12)
        total = (chosen / lengths).sum(0)
        return total / total.norm().clamp_min(1e-12) * lengths.mean()

    def save(self, path: str | Path) -> Path:
        """Write the file, whole or not at all."""
        tensors, metadata = self.pack()
        return files.write(path, "aligned", tensors, metadata)

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and metadata, as the file has them."""
        tensors = {name: getattr(self, name) for name in _SHAPES}
        tensors["bank"] = self.bank.half()
        return tensors, {"names": list(self.names), "fit": dict(self.fit), "direction": dict(self.direction)}

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise ValueError(f"no category {name!r}: this direction has {', '.join(self.categories) or 'none'}")
        return self.names.index(name)

    def _names(self, categories: Sequence[str] | None) -> tuple[str, ...]:
        if isinstance(categories, str):
            raise ValueError(f"categories is a list of names, not the text {categories!r}")
        names = tuple(dict.fromkeys(categories)) if categories else (GLOBAL,)
        for name in names:
            self._index(name)
        return names

    def _check(self, states: Tensor) -> None:
        if states.dim() < 2 or states.shape[-1] != self.width:
            raise ValueError(
                f"states of shape {list(states.shape)} don't fit: this alignment is for [..., tokens, {self.width}]. "
                "Align the direction to this encoder."
            )
        if not torch.is_floating_point(states):
            raise ValueError(f"states of type {states.dtype} are not floating point")

    def _content(self, states: Tensor, mask: Tensor | None) -> Tensor:
        self._check(states)
        if mask is None:
            return torch.ones(states.shape[:-1], dtype=torch.bool, device=states.device)
        if mask.shape[-1:] != states.shape[-2:-1]:
            raise ValueError(f"a mask for {mask.shape[-1] if mask.dim() else 0} tokens on states with {states.shape[-2]} tokens")
        return mask.to(device=states.device, dtype=torch.bool).expand(states.shape[:-1])


def _interpolate(levels: Tensor, share: float) -> float:
    """Linear interpolation of a quantile table [Q] at `share`; beyond the highest seen for share 1."""
    position = min(max(bisect_left(_QUANTILES, share), 1), len(_QUANTILES) - 1)
    low, high = _QUANTILES[position - 1 : position + 1]
    below, above = levels[position - 1 : position + 1].tolist()
    return below + (above - below) * min(max((share - low) / (high - low), 0.0), 1.0)


_SHAPES = {
    "vectors": "KW",
    "readers": "KW",
    "prompt_readers": "KW",
    "center": "W",
    "token_moments": "2",
    "peak_spread": "K",
    "prompt_moments": "P2",
    "prompt_levels": "KQ",
    "token_levels": "KQ",
    "bank": "MW",
    "bank_spacing": "M",
}


def check_packed(entries: Mapping[str, tuple], metadata: Mapping[str, Any]) -> str | None:
    """What is wrong with one packed aligned direction, or None."""
    if set(entries) != set(_SHAPES):
        return f"tensors {str(sorted(set(entries) ^ set(_SHAPES))[:5])[:400]} are missing or unknown: another version may have made it, so align again"
    names = metadata.get("names")
    if not isinstance(names, list) or not names or names[0] != GLOBAL or not all(map(is_name, names)) or len(set(names)) != len(names):
        return "the metadata's names are not `global` and distinct short names"
    if not isinstance(metadata.get("fit"), dict) or not isinstance(metadata.get("direction"), dict):
        return "the metadata's fit or direction is not an object"
    sizes = {"K": len(names), "P": len(names) + 1, "2": 2, "Q": len(QUANTILES), "W": entries["center"][1][0]}
    for name, letters in _SHAPES.items():
        shape = entries[name][1]
        if len(shape) != len(letters) or any(sizes.get(letter, n) != n for letter, n in zip(letters, shape)):
            return f"{name} has shape {list(shape)}, not [{', '.join(letters)}] with {sizes}"
        if entries[name][0] != ("F16" if name == "bank" else "F32"):
            return f"{name} has dtype {entries[name][0]}"
    return None


def unpack(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], file: str) -> AlignedDirection:
    """The reverse of `AlignedDirection.pack`, after `check_packed`.

    Raises:
        DirectionFormatError: numbers in `file` that would divide by zero or overflow.
    """
    named = {name: tensors[name] for name in _SHAPES}
    if not min(named["peak_spread"].min(), named["prompt_moments"][:, 1].min(), named["token_moments"][1], named["bank_spacing"].min()) >= SHORTEST / 2:
        raise files.DirectionFormatError(f"{file}: a benign spread is not positive")
    for name, tensor in named.items():
        if not tensor.abs().max() < LONGEST:
            raise files.DirectionFormatError(f"{file}: {name} has a value of {tensor.abs().max():.3g}")
    return AlignedDirection(names=tuple(metadata["names"]), fit=metadata["fit"], direction=metadata["direction"], **named)


def load_aligned(path: str | Path) -> AlignedDirection:
    """Read and check an aligned direction.

    Raises:
        DirectionFormatError: what is wrong with the file, and where.
    """
    return unpack(*files.read(path, "aligned", check_packed), file=Path(path).name)


def load_states(path: str | Path) -> Tensor:
    """Read a target's pooled states from a safetensors file with one tensor `states` [N, W].

    Raises:
        DirectionFormatError: not a safetensors file, or no such tensor.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as stream:
            return stream.get_tensor("states")
    except SafetensorError as error:
        raise files.DirectionFormatError(f"{Path(path).name}: {error}") from None
