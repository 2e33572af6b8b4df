"""Align: fit a direction to a text encoder, from benign prompts only."""

from __future__ import annotations

import math
from typing import Callable, Mapping, NamedTuple, Sequence

import torch
from torch import Tensor

from .aligned import QUANTILES, AlignedDirection, combine, peak
from .direction import GLOBAL, Direction
from .steer import spacing

HELD_OUT_EVERY = 10
BANK_SIZE = 4096
COMPONENTS = 256
SMALL = 0.05  # of the largest singular value
HALF = torch.finfo(torch.float16).max
SHRINKAGE = 1.0
TOKEN_PENALTY, PROMPT_PENALTY = 0.1, 0.1
TILT_RANGE = 4.0
FOLDS = 4
CHUNK = 8192

Map = Callable[[Tensor], Tensor]
Fitter = Callable[[Tensor, Tensor], Map]


def _linear(matrix: Tensor) -> Map:
    return lambda states: states @ matrix


def ridge(source: Tensor, target: Tensor, penalty: float = 0.1) -> Map:
    """Ridge regression source -> target; solves in the smaller of features and prompts."""
    n, width = source.shape
    if n < width:
        return _linear(source.T @ _solve(source @ source.T, penalty * n, target.clone()))
    return _linear(_solve(source.T @ source, penalty * n, (target.T @ source).T))


def _solve(gram: Tensor, penalty: float, right: Tensor) -> Tensor:
    """(gram + penalty I)^-1 right, in the place of both."""
    gram.diagonal().add_(penalty)
    # LAPACK reads by columns: the transpose of what is symmetric needs no copy.
    lower = torch.linalg.cholesky(gram.mT, out=gram.mT)
    right = torch.linalg.solve_triangular(lower, right, upper=False, out=right)
    return torch.linalg.solve_triangular(lower.mT, right, upper=True, out=right)


def svd(source: Tensor, target: Tensor) -> Map:
    """Orthogonal Procrustes with one scale: the paper's SVD map; solves in the smallest of prompts and features."""
    if len(source) < min(source.shape[1], target.shape[1]):
        (into, s), (onto, t) = torch.linalg.qr(source.T), torch.linalg.qr(target.T)
        turn, size = _polar(s.T, t.T)
        turn = into @ turn @ onto.T
    elif source.shape[1] < target.shape[1]:
        turn, size = _polar(target, source)
        turn = turn.T
    else:
        turn, size = _polar(source, target)
    return _linear(turn.mul_(size / source.square().sum()))


def _polar(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """u @ v and the sum of s, for left.T @ right = u s v and `right` no wider than `left`.

    v are the eigenvectors of the square: half of an SVD's memory and time. They are inexact where s is small, so what is
    small is freed of u's large part and looked at again by itself, as often as need be.
    """
    cross = left.T @ right
    square = cross.T @ cross
    del cross  # made again below: finding the eigenvectors takes the place of three
    v = _leading(square)[1]
    moved = left.T @ right @ v
    total, rest, none = moved.new_zeros(()), moved.shape[1], 0.0
    while rest:
        sizes = moved[:, :rest].norm(dim=0)
        none = none or torch.finfo(sizes.dtype).eps * float(sizes.max())
        if sizes.max() <= none:
            moved[:, :rest] = 0
            break
        small = int((sizes < SMALL * sizes.max()).sum())  # the first ones: they ascend
        done, part = moved[:, small:rest].div_(sizes[small:]), moved[:, :small]
        total, rest = total + sizes[small:].sum(), small
        if rest:
            part -= done @ (done.T @ part)
            again = _leading(part.T @ part)[1]
            moved[:, :rest], v[:, :rest] = part @ again, v[:, :rest] @ again
    for rows in moved.split(CHUNK // 16):
        rows.copy_(rows @ v.T)
    return moved, total


def _leading(gram: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
    """The `count` (default: all) largest eigenvalues of a symmetric matrix, ascending, and their eigenvectors, in its place."""
    from scipy.linalg import eigh

    which = {"driver": "evd"} if count is None else {"subset_by_index": (len(gram) - count, len(gram) - 1)}
    values, vectors = eigh(gram.numpy().T, overwrite_a=True, **which)
    return torch.from_numpy(values), torch.from_numpy(vectors)


def cca(source: Tensor, target: Tensor) -> Map:
    """Canonical correlation between the leading whitened components of both sides."""

    def whiten(states: Tensor) -> tuple[Tensor, Tensor]:
        n, width = states.shape
        dual = n < width
        keep = min(COMPONENTS, max(1, n // 4), width)
        values, vectors = _leading((states @ states.T if dual else states.T @ states).div_(n), keep)
        values = values.clamp_min(1e-8)
        if dual:
            vectors = states.T @ (vectors / (n * values).sqrt())
        return vectors / values.sqrt(), vectors * values.sqrt()

    into, _ = whiten(source)
    onto, back = whiten(target)
    u, s, v = torch.linalg.svd((source @ into).T @ (target @ onto) / len(source), full_matrices=False)
    return _linear(into @ (u * s) @ v @ back.T)


def mlp(source: Tensor, target: Tensor, hidden: int = 512, steps: int = 400) -> Map:
    """One hidden layer on top of the ridge map, trained on the anchors with early weight decay."""
    base = ridge(source, target)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad():
        inputs, residual = source.float().clone(), (target - base(source)).float().clone()
        first = torch.randn(source.shape[1], hidden, generator=generator) / math.sqrt(source.shape[1])
        second = torch.zeros(hidden, target.shape[1])
        weights = [first.requires_grad_(), second.requires_grad_()]
        optimiser = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.1)
        for _ in range(steps):
            rows = torch.randint(len(inputs), (256,), generator=generator)
            optimiser.zero_grad()
            loss = (torch.nn.functional.gelu(inputs[rows] @ first) @ second - residual[rows]).square().mean()
            loss.backward()
            optimiser.step()
    into, out = first.detach(), second.detach()
    return lambda states: base(states) + (torch.nn.functional.gelu(states.float() @ into) @ out).to(states.dtype)


METHODS: Mapping[str, Fitter] = {"svd": svd, "ridge": ridge, "cca": cca, "mlp": mlp}
AUTO = ("svd", "ridge", "cca")


class Standard(NamedTuple):
    """Per-dimension mean and spread: without it a few massive-activation dimensions drown the rest."""

    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, states: Tensor) -> "Standard":
        spread = states.std(0)
        return cls(states.mean(0), spread.clamp_min(1e-4 * spread.max().clamp_min(1e-12)))

    def __call__(self, states: Tensor) -> Tensor:
        return (states - self.mean) / self.spread


def align(direction: Direction, states: Sequence[Tensor] | Tensor, method: str = "auto") -> AlignedDirection:
    """Fit `direction` to the encoder that gave `states` for its anchor prompts.

    Mentions teach how to read, and that alone: the map, the levels and the bank come from the other anchors.

    Args:
        direction: what to fit.
        states: the target's states on `direction.anchor_prompts`, in order: a list of [T_i, W]
            (content tokens), or one [N, W] (pooled).
        method: "svd", "ridge", "cca", "mlp", or "auto": the linear one with the best held-out benign R2.

    Raises:
        ValueError: the states don't fit the anchors, or an unknown method.
    """
    if method != "auto" and method not in METHODS:
        raise ValueError(f"unknown method {method!r}: choose from {', '.join(METHODS)} or auto")
    tokens, pooled = _check(direction, states)
    dtype = torch.float64 if pooled.shape[1] <= 1024 else torch.float32
    names = (GLOBAL, *direction.categories)
    prompt_scores, token_scores = _source_scores(direction, names, dtype)
    mentioned = direction.mentioned
    order = torch.argsort(mentioned.int(), stable=True)
    tokens, token_scores = ([rows[i] for i in order.tolist()] for rows in (tokens, token_scores))
    pooled, prompt_scores = pooled[order], prompt_scores[order]
    plain = int((~mentioned).sum())
    reading = read(tokens, pooled, prompt_scores, token_scores, plain)

    tokens, pooled = tokens[:plain], pooled[:plain]
    source, target = direction.anchor_states[order[:plain]].to(dtype), pooled.to(dtype)
    source_standard, target_standard = Standard.of(source), Standard.of(target)
    s, t = source_standard(source), target_standard(target)

    fit: dict[str, dict[str, float]] = {}
    held = torch.arange(len(s)) % HELD_OUT_EVERY == 0
    for name in AUTO if method == "auto" else (method,):
        predicted = METHODS[name](s[~held], t[~held])(s[held])
        fit[name] = {"r2": r2(predicted, t[held]), "top1": top1(predicted, t[held])}
    chosen = max(fit, key=lambda name: fit[name]["r2"])
    to_target = METHODS[chosen](s, t)

    steps = [(to_target(s + direction.vectors[name].to(dtype) / source_standard.spread) - to_target(s)).mean(0) for name in names]
    vectors = _separate(torch.stack(steps) * target_standard.spread, target).float()
    bank = _bank(tokens, reading.center, reading.readers[0]).clamp(-HALF, HALF).half().unique(dim=0)
    return AlignedDirection(
        names=names,
        vectors=vectors,
        token_levels=_token_levels(tokens, vectors, reading.center),
        bank=bank,
        bank_spacing=spacing(bank),
        fit={"method": chosen, **fit[chosen], "tried": fit},
        direction={"name": direction.name, "source": direction.source.get("model", ""), "sha256": direction.fingerprint},
        **reading._asdict(),
    )


def _separate(steps: Tensor, pooled: Tensor) -> Tensor:
    """Directions [K, W] that part safe from unsafe with less benign drift: shrunken inverse covariance times the step.

    The transferred step also holds what safe and unsafe prompts differ in by chance, mostly along the directions in
    which all prompts differ; SHRINKAGE mean variances on the diagonal damp those and leave the rest.

    Args:
        steps: [K, W], the transferred differences; pooled: [N, W], benign states.

    Returns:
        [K, W], each one benign standard deviation of its own component long.
    """
    centred = pooled - pooled.mean(0)
    cover = centred.T @ centred / len(centred)
    cover.diagonal().add_(SHRINKAGE * cover.diagonal().mean())
    vectors = torch.nn.functional.normalize(torch.linalg.solve(cover, steps.T).T, dim=1)
    return vectors * (centred @ vectors.T).std(0).unsqueeze(1)


def _check(direction: Direction, states: Sequence[Tensor] | Tensor) -> tuple[list[Tensor], Tensor]:
    expected = len(direction.anchor_prompts)
    if len(states) != expected:
        raise ValueError(f"{len(states)} states for {expected} anchor prompts: give one for each of direction.anchor_prompts, in order")
    tokens = [row.unsqueeze(0) if row.dim() == 1 else row for row in states]
    width = tokens[0].shape[-1]
    for index, rows in enumerate(tokens):
        if rows.dim() != 2 or rows.shape[-1] != width or len(rows) == 0:
            raise ValueError(f"states of anchor {index} have shape {list(rows.shape)}; [tokens, {width}] with at least one token was expected")
    tokens = [rows.detach().float().cpu() for rows in tokens]
    pooled = torch.stack([rows.mean(0) for rows in tokens])
    bad = (~torch.isfinite(pooled).all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"states of anchor {bad[0]} ({direction.anchor_prompts[bad[0]][:60]!r}) have NaN or infinite values; {len(bad)} such")
    if not pooled.std(0).any():
        raise ValueError("the states are the same for every anchor prompt: the encoder ignores its prompt")
    return tokens, pooled


def r2(predicted: Tensor, true: Tensor) -> float:
    """Share of the variance of `true` [n, W] that is predicted, over all dimensions."""
    return 1 - ((predicted - true).square().sum() / (true - true.mean(0)).square().sum()).item()


def top1(predicted: Tensor, true: Tensor) -> float:
    """Share of prompts whose predicted state is nearest (cosine) to their own true state."""
    similar = torch.nn.functional.normalize(predicted, dim=1) @ torch.nn.functional.normalize(true, dim=1).T
    return (similar.argmax(1) == torch.arange(len(true))).double().mean().item()


def _source_scores(direction: Direction, names: Sequence[str], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """How unsafe the source model finds each benign anchor [N, K], and each of its tokens [S_i, K].

    A file without readers is read through its whitened direction; one without token scores says of a token what it says
    of its prompt.
    """
    source = direction.anchor_states.to(dtype)
    centred = source - source.mean(0)
    spread = centred.std(0).clamp_min(1e-6)
    white = centred / spread
    gram = white.T @ white / len(white) + 0.1 * torch.eye(white.shape[1], dtype=white.dtype)

    def scores(name: str) -> Tensor:
        if name in direction.readers:
            return centred @ direction.readers[name].to(source.dtype)
        return white @ torch.linalg.solve(gram, -direction.vectors[name].to(white.dtype) / spread)

    prompts = torch.stack([scores(name) for name in names], 1)
    if len(direction.token_scores):
        return prompts, list(direction.token_scores.to(source.dtype).split(direction.token_counts.tolist()))
    return prompts, list(prompts.unsqueeze(1))


class Reading(NamedTuple):
    """How to tell unsafe states in a target; fields as in AlignedDirection."""

    readers: Tensor
    prompt_readers: Tensor
    center: Tensor
    token_moments: Tensor
    peak_spread: Tensor
    prompt_moments: Tensor
    prompt_levels: Tensor


def read(tokens: Sequence[Tensor], pooled: Tensor, prompt_scores: Tensor, token_scores: Sequence[Tensor], plain: int) -> Reading:
    """Regress the source's scores of the benign anchors on the target's states.

    For a linear reader this is the pull-back map (ridge, target -> source) followed by the reader. Tokens weigh the more
    the more unsafe the source finds them: with the source's log odds in the exponent, benign tokens stand in for the
    unsafe ones that the target never sees, and the fit is best where it will be asked.
    Benign levels come from readers that never saw the prompt that they score (FOLDS of the prompts, left out in turn).

    Args:
        tokens: the target's states [T_i, W] of each anchor; pooled: their means [N, W].
        prompt_scores: [N, K]; token_scores: [S_i, K] of each anchor, along the source's own tokens.
        plain: how many anchors, the first ones, aren't mentions: these alone say what is benign.
    """
    dtype = torch.float64 if pooled.shape[1] <= 1024 else torch.float32
    counts = torch.tensor([len(rows) for rows in tokens])
    fold = torch.arange(len(tokens)) % FOLDS
    own = int(counts[:plain].sum())
    # The two tokenizers cut a prompt differently, but both from left to right.
    wanted = torch.cat([_stretch(scores, len(rows)) for scores, rows in zip(token_scores, tokens)]).to(dtype)
    wanted = _standardised(wanted, own)
    weights = torch.exp(wanted[:, 0].clamp(-TILT_RANGE, TILT_RANGE))
    standard, readers, crossed = _regress(torch.cat(list(tokens)), wanted, weights, fold.repeat_interleave(counts), TOKEN_PENALTY, dtype, own)
    spread = crossed.std(0).clamp_min(1e-12)
    marks = combine(crossed / spread)
    peaks = torch.stack([peak(scores) for scores in (crossed / spread).split(counts[:plain].tolist())])

    wanted, weights = _standardised(prompt_scores.to(dtype), plain), torch.ones(len(pooled), dtype=dtype)
    _, prompt_readers, crossed = _regress(pooled, wanted, weights, fold, PROMPT_PENALTY, dtype, plain)
    pooled_spread, peak_spread = crossed.std(0).clamp_min(1e-12), peaks.std(0).clamp_min(1e-12)

    # Prompts are read from the tokens' centre, which is not quite that of their means.
    offset = (pooled[:plain].to(dtype).mean(0) - standard.mean) @ prompt_readers
    prompts = (crossed + offset) / pooled_spread + peaks / peak_spread
    moments = torch.stack([prompts.mean(0), prompts.std(0).clamp_min(1e-12)], 1)
    prompts = (prompts - moments[:, 0]) / moments[:, 1]
    together = combine(prompts)
    total = torch.stack([together.mean(), together.std().clamp_min(1e-12)])
    prompts[:, 0] = (together - total[0]) / total[1]
    return Reading(
        readers=(readers / spread).T.float().contiguous(),
        prompt_readers=(prompt_readers / pooled_spread).T.float().contiguous(),
        center=standard.mean.float(),
        token_moments=torch.stack([marks.mean(), marks.std().clamp_min(1e-12)]).float(),
        peak_spread=peak_spread.float(),
        prompt_moments=torch.cat([moments, total.unsqueeze(0)]).float(),
        prompt_levels=torch.quantile(prompts, QUANTILES.to(dtype), dim=0).T.float().contiguous(),
    )


def _standardised(scores: Tensor, count: int) -> Tensor:
    """Scores [n, K] in the standard deviations of the first `count`."""
    return (scores - scores[:count].mean(0)) / scores[:count].std(0).clamp_min(1e-12)


def _stretch(scores: Tensor, length: int) -> Tensor:
    """Scores [S, K] read off at `length` evenly spaced places: [length, K]."""
    if len(scores) == length:
        return scores
    return torch.nn.functional.interpolate(scores.T.unsqueeze(0), size=length, mode="linear", align_corners=False)[0].T


def _regress(rows: Tensor, wanted: Tensor, weights: Tensor, fold: Tensor, penalty: float, dtype: torch.dtype, count: int) -> tuple[Standard, Tensor, Tensor]:
    """Weighted ridge regression of `wanted` [n, K] on `rows` [n, W].

    Returns:
        of the first `count` rows their means and spreads, readers [W, K] on rows from that mean, and each one's values
        [count, K] by readers fitted without its fold.
    """
    standard = Standard.of(rows[:count].to(dtype))

    def sums(pick: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        width = rows.shape[1]
        gram, cross = torch.zeros(width, width, dtype=dtype), torch.zeros(width, wanted.shape[1], dtype=dtype)
        total, mean, aim = torch.zeros((), dtype=dtype), torch.zeros(width, dtype=dtype), torch.zeros(wanted.shape[1], dtype=dtype)
        for part in pick.split(CHUNK):
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
        for some in pick[pick < count].split(CHUNK):
            crossed[some] = (rows[some].to(dtype) - standard.mean) @ readers
    return standard, solve(*whole), crossed


def _token_levels(tokens: Sequence[Tensor], vectors: Tensor, center: Tensor) -> Tensor:
    """Quantiles of benign tokens' components along the unit vectors, from the centre [K, Q]."""
    rows = _rows(tokens, _evenly(torch.arange(sum(map(len, tokens))), 20000)) - center
    return torch.quantile(rows @ torch.nn.functional.normalize(vectors, dim=1).T, QUANTILES, dim=0).T.contiguous()


def _bank(tokens: Sequence[Tensor], center: Tensor, reader: Tensor) -> Tensor:
    """A compact set of benign token states to land on: evenly drawn from those that score below average."""
    low = torch.cat([(rows - center) @ reader < 0 for rows in tokens])
    return _rows(tokens, _evenly(low.nonzero().flatten(), BANK_SIZE))


def _evenly(index: Tensor, count: int) -> Tensor:
    return index[torch.linspace(0, len(index) - 1, min(len(index), count)).round().long()]


def _rows(tokens: Sequence[Tensor], index: Tensor) -> Tensor:
    """Rows of all tokens together, which are never held together: they are most of the memory that aligning takes."""
    stops = torch.tensor([len(rows) for rows in tokens]).cumsum(0)
    owners = torch.searchsorted(stops, index, right=True)
    if not len(index):
        return tokens[0][:0]
    return torch.stack([tokens[owner][at] for owner, at in zip(owners.tolist(), (index - stops[owners]).tolist())])
