"""Align: fit a direction to a text encoder, from benign prompts only."""

from __future__ import annotations

import math
from typing import Callable, Mapping, NamedTuple, Sequence

import torch
from torch import Tensor

from .aligned import PEAK, QUANTILES, AlignedDirection, combine
from .direction import GLOBAL, Direction

HELD_OUT_EVERY = 10
BANK_SIZE = 2048
PENALTIES = (0.03, 0.3, 3.0)
COMPONENTS = 256
HALF = torch.finfo(torch.float16).max

Map = Callable[[Tensor], Tensor]
Fitter = Callable[[Tensor, Tensor], Map]


def _linear(matrix: Tensor) -> Map:
    return lambda states: states @ matrix


def ridge(source: Tensor, target: Tensor, penalty: float = 0.1) -> Map:
    """Ridge regression source -> target; solves in the smaller of features and prompts."""
    n, width = source.shape
    if n < width:
        gram = source @ source.T + penalty * n * torch.eye(n, dtype=source.dtype)
        return _linear(source.T @ torch.linalg.solve(gram, target))
    gram = source.T @ source + penalty * n * torch.eye(width, dtype=source.dtype)
    return _linear(torch.linalg.solve(gram, source.T @ target))


def svd(source: Tensor, target: Tensor) -> Map:
    """Orthogonal Procrustes with one scale: the paper's SVD map."""
    u, s, v = torch.linalg.svd(source.T @ target, full_matrices=False)
    return _linear(u @ v * (s.sum() / source.square().sum()))


def cca(source: Tensor, target: Tensor) -> Map:
    """Canonical correlation between the leading whitened components of both sides."""

    def whiten(states: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(states.T @ states / len(states))
        keep = min(COMPONENTS, len(states) // 4, len(values))
        values, vectors = values[-keep:].clamp_min(1e-8), vectors[:, -keep:]
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
    source = direction.anchor_states.to(dtype)
    source_standard, target_standard = Standard.of(source), Standard.of(pooled.to(dtype))
    s, t = source_standard(source), target_standard(pooled.to(dtype))

    fit: dict[str, dict[str, float]] = {}
    held = torch.arange(len(s)) % HELD_OUT_EVERY == 0
    for name in AUTO if method == "auto" else (method,):
        predicted = METHODS[name](s[~held], t[~held])(s[held])
        fit[name] = {"r2": r2(predicted, t[held]), "top1": top1(predicted, t[held])}
    chosen = max(fit, key=lambda name: fit[name]["r2"])
    to_target = METHODS[chosen](s, t)

    names = (GLOBAL, *direction.categories)
    vectors = []
    for name in names:
        step = direction.vectors[name].to(dtype) / source_standard.spread
        moved = (to_target(s + step) - to_target(s)).mean(0) * target_standard.spread
        unit = moved / moved.norm().clamp_min(1e-12)
        vectors.append(unit * (pooled.to(dtype) @ unit).std())
    scores = torch.stack([_source_scores(direction, name, source) for name in names], 1)
    functional, errors, leverage = _read(t, scores)
    readers_raw = functional / target_standard.spread.unsqueeze(1)
    level = _Levels(tokens, pooled.to(dtype), target_standard, readers_raw, errors, leverage)
    return AlignedDirection(
        names=names,
        vectors=torch.stack(vectors).float(),
        readers=(readers_raw / level.token_spread).T.float().contiguous(),
        center=level.center.float(),
        pooled_spread=(level.pooled_spread / level.token_spread).float(),
        prompt_moments=level.prompt_moments.float(),
        prompt_levels=level.prompt_levels.float(),
        token_levels=level.token_levels(torch.stack(vectors).float()),
        bank=_bank(tokens, level.center.float(), (readers_raw[:, 0] / level.token_spread[0]).float()).clamp(-HALF, HALF).half(),
        fit={"method": chosen, **fit[chosen], "tried": fit},
        direction={"name": direction.name, "source": direction.source.get("model", ""), "sha256": direction.fingerprint},
    )


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


def _source_scores(direction: Direction, name: str, source: Tensor) -> Tensor:
    """How unsafe the source model finds each benign anchor [N]; whitens the direction if the file has no reader."""
    if name in direction.readers:
        return source @ direction.readers[name].to(source.dtype)
    centred = source - source.mean(0)
    spread = centred.std(0).clamp_min(1e-6)
    white = centred / spread
    gram = white.T @ white / len(white) + 0.1 * torch.eye(white.shape[1], dtype=white.dtype)
    return white @ torch.linalg.solve(gram, -direction.vectors[name].to(white.dtype) / spread)


def _read(target: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Regress the source's scores on the target's states.

    For a linear reader this is the pull-back map (ridge, target -> source) followed by the reader.

    Returns:
        functional [W, K], leave-one-out errors [N, K] and, per prompt, the inverse-covariance image
        of its state [N, W], from which the functional without that prompt follows in closed form.
    """
    n, width = target.shape
    scores = (scores - scores.mean(0)) / scores.std(0).clamp_min(1e-12)
    gram = target.T @ target
    best = None
    for penalty in PENALTIES:
        factor = torch.linalg.cholesky(gram + penalty * n * torch.eye(width, dtype=target.dtype))
        image = torch.cholesky_solve(target.T, factor).T
        functional = image.T @ scores
        error = (scores - target @ functional) / (1 - (image * target).sum(1, keepdim=True)).clamp_min(1e-3)
        loss = error.square().mean()
        if best is None or loss < best[0]:
            best = (loss, functional, error, image)
    assert best is not None
    return best[1], best[2], best[3]


class _Levels:
    """Benign levels of the scores, each prompt scored by the functional that never saw it (leave one out)."""

    def __init__(self, tokens: list[Tensor], pooled: Tensor, standard: Standard, readers: Tensor, errors: Tensor, image: Tensor):
        self.tokens = tokens
        self.center = standard.mean
        rows, owner = torch.cat(tokens), torch.repeat_interleave(torch.arange(len(tokens)), torch.tensor([len(t) for t in tokens]))
        scores = torch.empty(len(rows), readers.shape[1], dtype=pooled.dtype)
        for part in torch.arange(len(rows)).split(8192):
            centred = rows[part].to(pooled.dtype) - standard.mean
            pull = (centred / standard.spread * image[owner[part]]).sum(1, keepdim=True)
            scores[part] = centred @ readers - pull * errors[owner[part]]
        self.token_spread = scores.std(0).clamp_min(1e-12)
        scores = scores / self.token_spread
        counts = torch.bincount(owner, minlength=len(tokens)).to(scores.dtype).unsqueeze(1)
        mean = torch.zeros(len(tokens), scores.shape[1], dtype=scores.dtype).index_add_(0, owner, scores) / counts
        highest = torch.stack([part.amax(0) for part in scores.split([len(t) for t in tokens])])
        self.pooled_spread = mean.std(0).clamp_min(1e-12) * self.token_spread
        prompt = mean / mean.std(0).clamp_min(1e-12) + PEAK * highest
        each = torch.stack([prompt.mean(0), prompt.std(0).clamp_min(1e-12)], 1)
        prompt = (prompt - each[:, 0]) / each[:, 1]
        together = combine(prompt)
        total = torch.stack([together.mean(), together.std().clamp_min(1e-12)])
        self.prompt_moments = torch.cat([each, total.unsqueeze(0)])
        prompt[:, 0] = (together - total[0]) / total[1]
        self.prompt_levels = torch.quantile(prompt, QUANTILES.to(prompt.dtype), dim=0).T.contiguous()

    def token_levels(self, vectors: Tensor) -> Tensor:
        """Quantiles of benign tokens' components along the unit vectors, centred [K, Q]."""
        rows = torch.cat(self.tokens)
        rows = rows[torch.linspace(0, len(rows) - 1, min(len(rows), 20000)).long()] - self.center.float()
        component = rows @ torch.nn.functional.normalize(vectors, dim=1).T
        return torch.quantile(component, QUANTILES, dim=0).T.contiguous()


def _bank(tokens: list[Tensor], center: Tensor, reader: Tensor) -> Tensor:
    """A compact set of benign token states to land on: evenly drawn from those that score below average."""
    rows = torch.cat(tokens)
    rows = rows[(rows - center) @ reader < 0]
    return rows[torch.linspace(0, len(rows) - 1, min(len(rows), BANK_SIZE)).round().long()]
