"""Readers: fit the linear probes that tell unsafe states in a target, and calibrate their scores, from benign anchors alone."""

from __future__ import annotations

from typing import NamedTuple, Sequence

import torch
from torch import Tensor

from .direction import Direction
from .languages import FEWEST, Languages, moments_by_language, separation
from .maps import Standard
from .scores import (
    TOP,
    LengthModel,
    Parts,
    ReadingMoments,
    Readings,
    global_plus_highest,
    local_means,
    moments_of,
    parts,
    prompt_scores,
    standardised,
    summed,
)

TOKEN_PENALTY, PROMPT_PENALTY = 0.1, 0.1
"""Ridge penalties per anchor, in standardised features; they fit held-out benign anchors best, or as well as the best, on both
trained encoders (docs/log.md, What made reading better)."""

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


class Anchors(NamedTuple):
    """What there is to fit on; the harmless anchors that aren't mentions come first.

    Attributes:
        tokens: the target's states [T_i, W] of each of N anchors.
        prompt_scores: [N, K], how unsafe the source finds each.
        token_scores: [S_i, K] of each anchor, along the source's own tokens; S_i is 0 where its words are another language's.
        benign: how many anchors aren't mentions (hard negatives).
        everyday: bool [benign], those that aren't near the line: a budget speaks of these.
        group: [N], the same number for a prompt and its translations, so that none scores with what was learned of another.
        language: [N], which of `languages`.
        mentions: whether the anchors after the harmless ones are mentions; else they are of what is to be found.
    """

    tokens: Sequence[Tensor]
    prompt_scores: Tensor
    token_scores: Sequence[Tensor]
    benign: int
    everyday: Tensor
    group: Tensor
    language: Tensor
    languages: int
    mentions: bool = True


class Reading(NamedTuple):
    """How to tell unsafe states in a target; fields as in SlotAlignment."""

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
    anchor_scores: Tensor
    separation: list[float | None]


def precision(width: int) -> torch.dtype:
    """What states of this width are fitted in."""
    return torch.float64 if width <= WIDE else torch.float32


def source_scores(direction: Direction, names: Sequence[str], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """How unsafe the source model finds each benign anchor [N, K], and each of its tokens [S_i, K].

    Where the file has no prompt scores, its readers are asked; without readers, its whitened direction. One without token
    scores says of a token what it says of its prompt.
    """
    prompts = direction.prompt_scores.to(dtype) if len(direction.prompt_scores) else _read(direction, names, dtype)
    if len(direction.token_scores):
        return prompts, list(direction.token_scores.to(dtype).split(direction.token_counts.tolist()))
    own = direction.groups == torch.arange(len(prompts))
    return prompts, [row.unsqueeze(0) if mine else row.new_zeros(0, len(names)) for row, mine in zip(prompts, own)]


def _read(direction: Direction, names: Sequence[str], dtype: torch.dtype) -> Tensor:
    source = direction.anchor_states.to(dtype)
    centred = source - source.mean(0)
    spread = centred.std(0).clamp_min(1e-6)
    white = centred / spread
    gram = white.T @ white / len(white) + WHITENING_PENALTY * torch.eye(white.shape[1], dtype=white.dtype)

    def scores(name: str) -> Tensor:
        if name in direction.readers:
            return centred @ direction.readers[name].to(source.dtype)
        return white @ torch.linalg.solve(gram, -direction.vectors[name].to(white.dtype) / spread)

    return torch.stack([scores(name) for name in names], 1)


def fit_readers(anchors: Anchors) -> Reading:
    """Regress the source's scores of the anchors on the target's states, and calibrate what comes of it on harmless ones.

    For a linear reader this is the pull-back map (ridge, target -> source) followed by the reader. Tokens weigh the more
    the more unsafe the source finds them: with the source's log odds in the exponent, benign tokens stand in for the
    unsafe ones that the target never sees, and the fit is best where it will be asked.
    Benign levels come from readers that never saw the prompt that they score (FOLDS of the prompts, left out in turn).
    """
    pooled = torch.stack([rows.mean(0) for rows in anchors.tokens])
    dtype, benign = precision(pooled.shape[1]), anchors.benign
    fold = anchors.group % FOLDS
    token = _fit_token_readers(anchors, fold, dtype)
    wanted = standardised(anchors.prompt_scores.to(dtype), moments_of(anchors.prompt_scores[:benign].to(dtype)))
    prompt = _regress(pooled, wanted, torch.ones(len(pooled), dtype=dtype), fold, PROMPT_PENALTY, dtype, benign)

    mention = _fit_mention_reader(anchors, pooled, fold, dtype)

    center = token.standard.mean
    crossed = [
        Readings(
            *(
                (rows.to(dtype) - center) @ reader
                for reader in (token.by_fold[k], prompt.by_fold[k], mention.by_fold[k])
            )
        )
        for rows, k in zip(anchors.tokens[:benign], fold.tolist())
    ]
    token_spread = torch.cat([one.token for one in crossed]).std(0).clamp_min(TINY)
    prompt_spread = torch.stack([one.prompt.mean(0) for one in crossed]).std(0).clamp_min(TINY)
    crossed = [Readings(one.token / token_spread, one.prompt / prompt_spread, one.mention[:, 0]) for one in crossed]
    moments, scale, model, scores = calibrate(crossed, anchors.everyday)
    languages = _fit_languages(anchors, pooled, center, scores, dtype)
    of_tokens = global_plus_highest(torch.cat([one.token for one in crossed]))
    return Reading(
        readers=(token.readers / token_spread).T.float().contiguous(),
        prompt_readers=(prompt.readers / prompt_spread).T.float().contiguous(),
        mention_reader=mention.readers[:, 0].float().contiguous(),
        center=center.float(),
        token_moments=torch.stack([of_tokens.mean(), of_tokens.std().clamp_min(TINY)]).float(),
        reading_moments=torch.stack(list(moments)).float(),
        score_moments=scale.float(),
        length_model=torch.stack(list(model)).float(),
        language_readers=languages.readers.float(),
        language_bias=languages.bias.float(),
        language_moments=languages.moments.float(),
        anchor_scores=languages(scores, (pooled[:benign].to(dtype) - center) @ languages.readers.T).float(),
        separation=_separation(anchors, token, fold, dtype),
    )


def _fit_mention_reader(anchors: Anchors, pooled: Tensor, fold: Tensor, dtype: torch.dtype) -> "_Fitted":
    """Mentions against the other anchors, each half of the weight; reads nothing where there are too few."""
    count, benign = len(pooled), anchors.benign
    is_mention = (torch.arange(count) >= benign).to(dtype)
    weights = torch.where(is_mention > 0, count / max(count - benign, 1), count / benign).to(dtype) / 2
    fitted = _regress(pooled, is_mention.unsqueeze(1), weights, fold, PROMPT_PENALTY, dtype, benign)
    if anchors.mentions and count - benign >= FEWEST:
        return fitted
    return fitted._replace(readers=0 * fitted.readers, by_fold=0 * fitted.by_fold)


def _fit_languages(anchors: Anchors, pooled: Tensor, center: Tensor, scores: Tensor, dtype: torch.dtype) -> Languages:
    """Which language a mean state is in, by least squares on all anchors, and how each one's harmless prompts score."""
    is_in = torch.nn.functional.one_hot(anchors.language, anchors.languages).to(dtype)
    every = torch.zeros(len(is_in), dtype=torch.long)
    fitted = _regress(pooled, is_in, torch.ones(len(is_in), dtype=dtype), every, PROMPT_PENALTY, dtype, len(is_in))
    bias = is_in.mean(0) - (pooled.to(dtype).mean(0) - center) @ fitted.readers
    own = anchors.language[: anchors.benign]
    moments = moments_by_language(scores, own, anchors.everyday, anchors.languages)
    return Languages(fitted.readers.T.contiguous(), bias, moments)


def _separation(anchors: Anchors, token: "_Fitted", fold: Tensor, dtype: torch.dtype) -> list[float | None]:
    """Of each language; see `languages.separation`. Each anchor is read by what was learned without it."""
    highest = torch.stack(
        [
            ((rows.to(dtype) - token.standard.mean) @ token.by_fold[k][:, 0]).topk(min(TOP, len(rows))).values.mean()
            for rows, k in zip(anchors.tokens, fold.tolist())
        ]
    )
    mentioned = torch.arange(len(highest)) >= anchors.benign
    everyday = torch.nn.functional.pad(anchors.everyday, (0, len(highest) - anchors.benign))
    return separation(highest, anchors.language, everyday, mentioned, anchors.languages)


def calibrate(readings: Sequence[Readings], everyday: Tensor) -> tuple[ReadingMoments, Tensor, LengthModel, Tensor]:
    """What everyday harmless prompts read, step by step, and every harmless prompt's score.

    Args:
        readings: of each prompt's T_i tokens, by readers that never saw it.
        everyday: bool [N].

    Returns:
        moments of the readings, moments of the scores [K, 2], the length model, and all prompts' scores [N, K].
    """
    count = torch.tensor([len(one.token) for one in readings])
    usual = everyday.nonzero().flatten().tolist()
    token = moments_of(torch.cat([readings[i].token for i in usual]))
    local = moments_of(torch.cat([local_means(readings[i].prompt) for i in usual]))
    moments = ReadingMoments(token, local, *[torch.zeros_like(local)] * 4)
    by_length = [(count == n).nonzero().flatten() for n in count.unique()]

    def stacked(pick: Tensor) -> Readings:
        return Readings(*(torch.stack(list(some)) for some in zip(*(readings[i] for i in pick.tolist()))))

    of_whole = [torch.zeros(len(readings), width, dtype=local.dtype) for width in (*[len(local)] * 3, 1)]
    for pick in by_length:
        for found, one in zip(of_whole, parts(stacked(pick), moments)):
            found[pick] = one[:, 0]
    whole = Parts(*of_whole)
    moments = ReadingMoments(token, local, *(moments_of(part[everyday]).expand(len(local), 2) for part in whole))
    scale = moments_of(summed(whole, moments)[everyday])
    scores = torch.zeros_like(whole.words)
    for pick in by_length:
        scores[pick] = prompt_scores(stacked(pick), moments, scale)
    model = LengthModel.fit(scores[everyday], count[everyday])
    return moments, scale, model, model(scores, count)


def _fit_token_readers(anchors: Anchors, fold: Tensor, dtype: torch.dtype) -> "_Fitted":
    scored = [i for i, scores in enumerate(anchors.token_scores) if len(scores)]
    tokens = [anchors.tokens[i] for i in scored]
    counts = torch.tensor([len(rows) for rows in tokens])
    own = int(counts[: sum(i < anchors.benign for i in scored)].sum())
    # The two tokenizers cut a prompt differently, but both from left to right.
    wanted = torch.cat([_stretch(anchors.token_scores[i], len(rows)) for i, rows in zip(scored, tokens)]).to(dtype)
    wanted = standardised(wanted, moments_of(wanted[:own]))
    weights = torch.exp(wanted[:, 0].clamp(-TILT_RANGE, TILT_RANGE))
    owner = fold[scored].repeat_interleave(counts)
    return _regress(torch.cat(tokens), wanted, weights, owner, TOKEN_PENALTY, dtype, own)


def _stretch(scores: Tensor, length: int) -> Tensor:
    """Scores [S, K] read off at `length` evenly spaced places: [length, K]."""
    if len(scores) == length:
        return scores
    return torch.nn.functional.interpolate(scores.T.unsqueeze(0), size=length, mode="linear", align_corners=False)[0].T


class _Fitted(NamedTuple):
    """Readers [W, K] on rows from `standard.mean`, and those that were fitted without each fold, [FOLDS, W, K]."""

    standard: Standard
    readers: Tensor
    by_fold: Tensor


def _regress(
    rows: Tensor, wanted: Tensor, weights: Tensor, fold: Tensor, penalty: float, dtype: torch.dtype, count: int
) -> _Fitted:
    """Weighted ridge regression of `wanted` [n, K] on `rows` [n, W], standardised by the first `count` rows."""
    standard = Standard.of(rows[:count].to(dtype))

    def sums(pick: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        width, columns = rows.shape[1], wanted.shape[1]
        gram, cross = torch.zeros(width, width, dtype=dtype), torch.zeros(width, columns, dtype=dtype)
        total, mean, aim = (torch.zeros(size, dtype=dtype) for size in ((), (width,), (columns,)))
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

    folds = [sums((fold == index).nonzero().flatten()) for index in range(FOLDS)]
    whole = [torch.stack(list(one)).sum(0) for one in zip(*folds)]
    by_fold = [solve(*(all_of - own for all_of, own in zip(whole, part))) for part in folds]
    return _Fitted(standard, solve(*whole), torch.stack(by_fold))
