"""Estimate: learn a direction once, in a language model, from paired safe and unsafe prompts."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from datetime import datetime, timezone
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Sequence

import torch
from torch import Tensor

from .direction import Direction
from .direction_format import GLOBAL
from .eight_bits import eight_bits
from .prompts import Pair, Translation, pairs_hash
from .scores import roc_area
from .selection import chosen, translated
from .sources import Progress, pooled_states, quiet, token_ids, token_states

TOOL_VERSION = "0.1.0"
READER_PENALTY = 0.01
"""Weight of a reader's squared norm, per sample, in standardised features. Not tuned."""

BENIGN_TOKENS = 30_000
"""Of the anchors', evenly drawn: what unsafe tokens are told from. Not tuned."""

POOLING = {"pooling": "mean over prompt tokens", "template": "{prompt}"}

READING_DEPTHS = (0.27, 0.53, 0.8)
"""How deep the layers lie, as shares of the model's depth, that prompts are read from together. One layer takes mentions for
unsafe twice as often; five find fewer unsafe prompts (docs/log.md, The source)."""


def estimate(
    model,
    tokenizer,
    pairs: Sequence[Pair],
    anchors: Sequence[str],
    layer: int | Sequence[int] | str = "auto",
    *,
    mentions: Sequence[str] = (),
    near: Sequence[str] = (),
    translations: Sequence[Translation] = (),
    most: int | None = None,
    source: Mapping[str, Any] | None = None,
    licence: str = "",
    progress: Progress = quiet,
    keep: Path | None = None,
) -> Direction:
    """Learn `global` and one direction per category, with a reader for each, and score the anchors and their tokens.

    A direction is the mean over pairs of pooled(safe) - pooled(unsafe): arXiv 2606.05290, step 1.
    A reader is a logistic regression of unsafe halves against safe halves, anchors and mentions, on the same
    states: the direction is what to add, the reader is how to tell (docs/method.md). The anchors are scored by
    readers on several layers. Tokens are scored by a regression of the tokens that make the difference in a pair against
    anchors' tokens: a word that is only mentioned scores like the word, its prompt does not.

    Args:
        model, tokenizer: a transformers causal language model and its tokenizer.
        pairs: minimal pairs; each has its category.
        anchors: benign prompts; their states go into the file, so that aligning needs no model.
        layer: hidden-state index, several (their features are concatenated), or "auto": the layer
            whose reader separates unseen themes best.
        mentions: harmless prompts that name what is unsafe; what the model says of them goes into the file beside the anchors.
        near: those of the anchors that come near the line.
        translations: of anchors and mentions; the file carries the prompts alone.
        most: anchors and mentions that the file is to carry; those near the line that say least are left out.
        source: facts about the model for the file: at least `model`, its name.
        keep: a folder for the model's states as they are read, of one model, so that a killed run goes on where it was.

    Raises:
        ValueError: too few pairs or anchors, or a layer that the model does not have.
    """
    pairs, anchors = list(pairs), list(dict.fromkeys(anchors))
    known = set(anchors)
    mentions = [prompt for prompt in dict.fromkeys(mentions) if prompt not in known]
    if len(pairs) < 8 or len(anchors) < 16:
        raise ValueError(f"{len(pairs)} pairs and {len(anchors)} anchors are too few: at least 8 and 16 are needed")
    learned = _learn(_Model(model, tokenizer, progress, keep), pairs, anchors, mentions, layer)
    whole = replace(
        learned,
        mentions=tuple(mentions),
        near=tuple(prompt for prompt in near if prompt in known),
        source={"model": "unnamed", **(source or {}), **learned.source},
        licence=licence,
    )
    kept = chosen(whole, most, {one.english for one in translations})
    return translated(replace(kept, anchor_states=eight_bits(kept.anchor_states)), translations)


def _learn(
    read: "_Model", pairs: list[Pair], anchors: list[str], mentions: list[str], layer: int | Sequence[int] | str
) -> Direction:
    """Directions, readers, and what the model says of the anchors, mentions behind them; arguments as in `estimate`."""
    depth = read.model.config.get_text_config().num_hidden_layers
    prompts = [*anchors, *mentions]
    reading = sorted({round(depth * share) for share in READING_DEPTHS})
    layers = _layers(layer, depth)
    columns = list(dict.fromkeys([*layers, *reading]))
    states = read.pooled([*prompts, *(p.safe for p in pairs), *(p.unsafe for p in pairs)], columns)
    if layer == "auto":
        candidates = torch.cat([states[: len(anchors), : len(layers)], states[len(prompts) :, : len(layers)]])
        layers = [layers[choose_layer(candidates, pairs, len(anchors), read.progress)]]
    groups = {GLOBAL: torch.ones(len(pairs), dtype=torch.bool)}
    groups |= {c: torch.tensor([p.category == c for p in pairs]) for c in sorted({p.category for p in pairs})}
    at = [columns.index(one) for one in layers]
    own, safe, unsafe = states[:, at].flatten(1).split([len(prompts), len(pairs), len(pairs)])
    several = states[:, [columns.index(one) for one in reading]].flatten(1)
    of_prompts = _readings(read.progress, several, len(prompts), len(pairs), groups)
    readers = _readers(read.progress, own, safe, unsafe, groups)
    counts, of_tokens = _token_scores(read, pairs, prompts, len(anchors), layers, groups)
    return Direction(
        vectors={name: (safe[rows] - unsafe[rows]).double().mean(0).float() for name, rows in groups.items()},
        readers=dict(zip(groups, readers.T.contiguous())),
        anchor_states=own.half(),
        anchor_prompts=tuple(prompts),
        token_scores=of_tokens.half(),
        token_counts=counts,
        prompt_scores=of_prompts.half(),
        source={"layers": layers, "reading_layers": reading, **POOLING},
        pairs={"counts": dict(sorted(Counter(p.category for p in pairs).items())), "sha256": pairs_hash(pairs)},
        created=_now(),
        tool_version=TOOL_VERSION,
    )


def _token_scores(
    read: "_Model",
    pairs: list[Pair],
    prompts: list[str],
    anchors: int,
    layers: Sequence[int],
    groups: Mapping[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """How many tokens each prompt has [N], and all their scores [S, K]; `anchors` come before the mentions."""
    tokens, unsafe_tokens = read.tokens(prompts, [p.unsafe for p in pairs], layers)
    changed = [
        changed_tokens(token_ids(read.tokenizer, p.safe)[1:], token_ids(read.tokenizer, p.unsafe)[1:]) for p in pairs
    ]
    differing = [rows[mask] for rows, mask in zip(unsafe_tokens, changed)]
    scores = score_tokens(tokens[:anchors], differing, groups, read.progress, tokens[anchors:])
    return torch.tensor([len(rows) for rows in tokens]), scores


def _readers(progress: Progress, benign: Tensor, safe: Tensor, unsafe: Tensor, groups: Mapping[str, Tensor]) -> Tensor:
    """A reader for each name, [D, K]."""
    against = torch.cat([benign, safe])
    picks = progress(list(groups.values()), len(groups), "fitting readers")
    return torch.stack([fit_reader(against, unsafe[rows]) for rows in picks], 1)


def _readings(progress: Progress, states: Tensor, prompts: int, pairs: int, groups: Mapping[str, Tensor]) -> Tensor:
    """How unsafe each benign prompt reads, [N, K], in the standard deviations of all."""
    benign, safe, unsafe = states.split([prompts, pairs, pairs])
    scores = benign @ _readers(progress, benign, safe, unsafe, groups)
    return (scores - scores.mean(0)) / scores.std(0).clamp_min(1e-12)


class _Model(NamedTuple):
    """The source model, and where its states are kept."""

    model: Any
    tokenizer: Any
    progress: Progress
    keep: Path | None

    def pooled(self, prompts: Sequence[str], layers: Sequence[int]) -> Tensor:
        states = pooled_states(self.model, self.tokenizer, prompts, layers, progress=self.progress, keep=self.keep)
        if not torch.isfinite(states).all():
            raise ValueError("the source model gave NaN or infinite states: load it in float32 or bfloat16")
        return states

    def tokens(
        self, some: Sequence[str], more: Sequence[str], layers: Sequence[int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        rows = token_states(self.model, self.tokenizer, [*some, *more], layers, progress=self.progress, keep=self.keep)
        return rows[: len(some)], rows[len(some) :]


def changed_tokens(safe: Sequence[int], unsafe: Sequence[int]) -> Tensor:
    """Which of the unsafe half's tokens its safe half doesn't have, bool [T]."""
    mask = torch.zeros(len(unsafe), dtype=torch.bool)
    for kind, _, _, start, stop in SequenceMatcher(None, safe, unsafe, autojunk=False).get_opcodes():
        mask[start:stop] |= kind in ("replace", "insert")
    return mask


def score_tokens(
    benign: Sequence[Tensor],
    unsafe: Sequence[Tensor],
    groups: Mapping[str, Tensor],
    progress: Progress,
    mentions: Sequence[Tensor] = (),
) -> Tensor:
    """Scores of the benign prompts' tokens in their own standard deviations, then of the mentions' tokens in the same, [S, K].

    Args:
        benign: states [T_i, D] of each anchor; unsafe: those of each pair that make the difference, [U_i, D].
        groups: which pairs belong to each name, in the order of the K columns.
        mentions: states [T_i, D] of each mention; their words are the unsafe ones, so no reader is told that they are benign.
    """
    rows, count = torch.cat([*benign, *mentions]), sum(map(len, benign))
    few = rows[torch.linspace(0, count - 1, min(count, BENIGN_TOKENS)).long()].float()
    columns = []
    for picked in progress(list(groups.values()), len(groups), "scoring tokens"):
        own = torch.cat([states for states, pick in zip(unsafe, picked) if pick]).float()
        reader = fit_reader(few, own) if len(own) else few.new_zeros(few.shape[1])
        score = torch.cat([part.float() @ reader for part in rows.split(8192)])
        columns.append((score - score[:count].mean()) / score[:count].std().clamp_min(1e-12))
    return torch.stack(columns, 1)


def _now() -> str:
    """Now, or SOURCE_DATE_EPOCH for builds that must come out byte for byte the same."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.fromtimestamp(int(epoch), timezone.utc) if epoch else datetime.now(timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _layers(layer: int | Sequence[int] | str, depth: int) -> list[int]:
    if layer == "auto":
        return list(range(depth // 4, depth + 1, 2))
    layers = [layer] if isinstance(layer, int) else [index for index in layer if isinstance(index, int)]
    wrong = [index for index in layers if not 0 <= index <= depth]
    if wrong or not layers:
        raise ValueError(f'layer {wrong or layer!r}: this model has layers 0 (embedding) to {depth}, or use "auto"')
    return layers


def choose_layer(states: Tensor, pairs: Sequence[Pair], anchors: int, progress: Progress = quiet) -> int:
    """The column of `states` [prompts, layers, width] whose reader tells unseen themes apart best.

    Every fourth theme of a category is held out; the measure is the area under the ROC curve of
    unseen unsafe halves against unseen safe halves and unseen anchors.
    """
    themes = {theme: index for index, theme in enumerate(dict.fromkeys((p.category, p.theme) for p in pairs))}
    seen = torch.tensor([themes[p.category, p.theme] % 4 != 3 for p in pairs])
    if seen.all() or not seen.any():
        seen = torch.arange(len(pairs)) % 4 != 3
    seen_anchor = torch.arange(anchors) % 4 != 3
    areas = []
    for column in progress(range(states.shape[1]), states.shape[1], "choosing the layer"):
        benign, safe, unsafe = states[:, column].split([anchors, len(pairs), len(pairs)])
        reader = fit_reader(torch.cat([benign[seen_anchor], safe[seen]]), unsafe[seen])
        areas.append(roc_area(torch.cat([benign[~seen_anchor], safe[~seen]]) @ reader, unsafe[~seen] @ reader))
    return max(range(len(areas)), key=areas.__getitem__)


def fit_reader(benign: Tensor, unsafe: Tensor, penalty: float = READER_PENALTY) -> Tensor:
    """Logistic regression in standardised features, as one functional on raw states.

    Args:
        benign, unsafe: float [n, D].
        penalty: weight of the squared norm, per sample, in standardised features.

    Returns:
        float32 [D]; greater means more unsafe. It has no offset: aligning sets the scale.
    """
    states = torch.cat([benign, unsafe]).double()
    mean, spread = states.mean(0), states.std(0).clamp_min(1e-6)
    features = (states - mean) / spread
    labels = torch.cat([torch.zeros(len(benign)), torch.ones(len(unsafe))]).double()
    weights = torch.zeros(states.shape[1] + 1, dtype=torch.double, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=100, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits = features @ weights[:-1] + weights[-1]
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
        value = value + penalty * weights[:-1].square().sum()
        value.backward()
        return value

    with torch.inference_mode(False), torch.enable_grad():
        optimiser.step(loss)  # type: ignore[arg-type]
    return (weights.detach()[:-1] / spread).float()
