"""Readers: fit the linear probes that tell unsafe states in a target, and calibrate their scores, from benign anchors alone."""

from __future__ import annotations

from typing import NamedTuple, Sequence

import torch
from torch import Tensor

from .direction import Direction
from .maps import Standard
from .scores import global_plus_highest, mean_of_top_k, standardised
from .slot import QUANTILES

TOKEN_PENALTY, PROMPT_PENALTY = 0.1, 0.1
"""Ridge penalties per anchor, in standardised features; they fit held-out benign anchors best, or as well as the best, on both
trained encoders (RESULTS.md, What made reading better)."""

TILT_RANGE = 4.0
"""Log odds beyond which a token's weight grows no further, so that no token outweighs a thousand. Not tuned."""

FOLDS = 4
"""Benign levels come from readers that never saw a prompt's quarter of the anchors."""

WIDE = 1024
"""Widths up to it are summed in float64, which is quick there; beyond it would take twice as long."""

ROWS_AT_ONCE = 8192
"""Of token states while their covariance is summed: 8192 x 4096 in float32 are 128 MB."""

WHITENING_PENALTY = 0.1
"""Share of the mean variance on the diagonal, for files that carry no readers. Not tuned."""

TINY = 1e-12


class Reading(NamedTuple):
    """How to tell unsafe states in a target; fields as in SlotAlignment."""

    readers: Tensor
    prompt_readers: Tensor
    center: Tensor
    token_moments: Tensor
    peak_spread: Tensor
    prompt_moments: Tensor
    prompt_levels: Tensor


def precision(width: int) -> torch.dtype:
    """What states of this width are fitted in."""
    return torch.float64 if width <= WIDE else torch.float32


def source_scores(direction: Direction, names: Sequence[str], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """How unsafe the source model finds each benign anchor [N, K], and each of its tokens [S_i, K].

    A file without readers is read through its whitened direction; one without token scores says of a token what it says
    of its prompt.
    """
    source = direction.anchor_states.to(dtype)
    centred = source - source.mean(0)
    spread = centred.std(0).clamp_min(1e-6)
    white = centred / spread
    gram = white.T @ white / len(white) + WHITENING_PENALTY * torch.eye(white.shape[1], dtype=white.dtype)

    def scores(name: str) -> Tensor:
        if name in direction.readers:
            return centred @ direction.readers[name].to(source.dtype)
        return white @ torch.linalg.solve(gram, -direction.vectors[name].to(white.dtype) / spread)

    prompts = torch.stack([scores(name) for name in names], 1)
    if len(direction.token_scores):
        return prompts, list(direction.token_scores.to(source.dtype).split(direction.token_counts.tolist()))
    return prompts, list(prompts.unsqueeze(1))


def fit_readers(
    tokens: Sequence[Tensor], pooled: Tensor, prompt_scores: Tensor, token_scores: Sequence[Tensor], benign: int
) -> Reading:
    """Regress the source's scores of the benign anchors on the target's states.

    For a linear reader this is the pull-back map (ridge, target -> source) followed by the reader. Tokens weigh the more
    the more unsafe the source finds them: with the source's log odds in the exponent, benign tokens stand in for the
    unsafe ones that the target never sees, and the fit is best where it will be asked.
    Benign levels come from readers that never saw the prompt that they score (FOLDS of the prompts, left out in turn).

    Args:
        tokens: the target's states [T_i, W] of each anchor; pooled: their means [N, W].
        prompt_scores: [N, K]; token_scores: [S_i, K] of each anchor, along the source's own tokens.
        benign: how many anchors, the first ones, aren't mentions (hard negatives): these alone say what is benign.
    """
    dtype = precision(pooled.shape[1])
    counts = torch.tensor([len(rows) for rows in tokens])
    fold = torch.arange(len(tokens)) % FOLDS
    own = int(counts[:benign].sum())
    # The two tokenizers cut a prompt differently, but both from left to right.
    wanted = torch.cat([_stretch(scores, len(rows)) for scores, rows in zip(token_scores, tokens)]).to(dtype)
    wanted = standardised(wanted, _moments(wanted[:own]))
    weights = torch.exp(wanted[:, 0].clamp(-TILT_RANGE, TILT_RANGE))
    owner = fold.repeat_interleave(counts)
    standard, readers, crossed = _regress(torch.cat(list(tokens)), wanted, weights, owner, TOKEN_PENALTY, dtype, own)
    spread = crossed.std(0).clamp_min(TINY)
    crossed = crossed / spread
    together = global_plus_highest(crossed)
    highest = mean_of_top_k(*_padded(crossed, counts[:benign]))

    wanted = standardised(prompt_scores.to(dtype), _moments(prompt_scores[:benign].to(dtype)))
    weights = torch.ones(len(pooled), dtype=dtype)
    _, prompt_readers, of_means = _regress(pooled, wanted, weights, fold, PROMPT_PENALTY, dtype, benign)
    pooled_spread, peak_spread = of_means.std(0).clamp_min(TINY), highest.std(0).clamp_min(TINY)

    # Prompts are read from the tokens' centre, which is not quite that of their means.
    offset = (pooled[:benign].to(dtype).mean(0) - standard.mean) @ prompt_readers
    prompts = (of_means + offset) / pooled_spread + highest / peak_spread
    moments = _moments(prompts)
    prompts = standardised(prompts, moments)
    added = global_plus_highest(prompts)
    total = _moments(added.unsqueeze(1))
    prompts[:, 0] = standardised(added.unsqueeze(1), total)[:, 0]
    return Reading(
        readers=(readers / spread).T.float().contiguous(),
        prompt_readers=(prompt_readers / pooled_spread).T.float().contiguous(),
        center=standard.mean.float(),
        token_moments=torch.stack([together.mean(), together.std().clamp_min(TINY)]).float(),
        peak_spread=peak_spread.float(),
        prompt_moments=torch.cat([moments, total]).float(),
        prompt_levels=torch.quantile(prompts, QUANTILES.to(dtype), dim=0).T.float().contiguous(),
    )


def _moments(scores: Tensor) -> Tensor:
    """Mean and standard deviation of each column [n, K], as [K, 2]."""
    return torch.stack([scores.mean(0), scores.std(0).clamp_min(TINY)], 1)


def _padded(rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [sum of counts, K] by prompt, [N, longest, K], and which of them are there, bool [N, longest]."""
    padded = torch.nn.utils.rnn.pad_sequence(rows.split(counts.tolist()), batch_first=True)
    return padded, torch.arange(padded.shape[1]) < counts.unsqueeze(1)


def _stretch(scores: Tensor, length: int) -> Tensor:
    """Scores [S, K] read off at `length` evenly spaced places: [length, K]."""
    if len(scores) == length:
        return scores
    return torch.nn.functional.interpolate(scores.T.unsqueeze(0), size=length, mode="linear", align_corners=False)[0].T


def _regress(
    rows: Tensor, wanted: Tensor, weights: Tensor, fold: Tensor, penalty: float, dtype: torch.dtype, count: int
) -> tuple[Standard, Tensor, Tensor]:
    """Weighted ridge regression of `wanted` [n, K] on `rows` [n, W].

    Returns:
        of the first `count` rows their means and spreads, readers [W, K] on rows from that mean, and each one's values
        [count, K] by readers fitted without its fold.
    """
    standard = Standard.of(rows[:count].to(dtype))

    def sums(pick: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        width, columns = rows.shape[1], wanted.shape[1]
        gram, cross = torch.zeros(width, width, dtype=dtype), torch.zeros(width, columns, dtype=dtype)
        total, mean, aim = (
            torch.zeros((), dtype=dtype),
            torch.zeros(width, dtype=dtype),
            torch.zeros(columns, dtype=dtype),
        )
        for part in pick.split(ROWS_AT_ONCE):
            x, w = standard(rows[part].to(dtype)), weights[part]
            weighted = x * w.unsqueeze(1)
            gram, cross = gram + weighted.T @ x, cross + weighted.T @ wanted[part]
            total, mean, aim = total + w.sum(), mean + weighted.sum(0), aim + w @ wanted[part]
        return gram, cross, total, torch.cat([mean, aim])

    def solve(gram: Tensor, cross: Tensor, total: Tensor, means: Tensor) -> Tensor:
        mean, aim = means[: len(gram)] / total, means[len(gram) :] / total
        gram = gram - total * mean.outer(mean)
        gram.diagonal().add_(penalty * total)
        return torch.linalg.solve(gram, cross - total * mean.outer(aim)) / standard.spread.unsqueeze(1)

    folds = [(fold == index).nonzero().flatten() for index in range(FOLDS)]
    parts = [sums(pick) for pick in folds]
    whole = [torch.stack(list(one)).sum(0) for one in zip(*parts)]
    crossed = torch.empty(count, wanted.shape[1], dtype=dtype)
    for pick, part in zip(folds, parts):
        readers = solve(*(all_of - own for all_of, own in zip(whole, part)))
        for some in pick[pick < count].split(ROWS_AT_ONCE):
            crossed[some] = (rows[some].to(dtype) - standard.mean) @ readers
    return standard, solve(*whole), crossed
