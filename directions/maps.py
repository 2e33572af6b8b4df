"""Maps from one model's states to another's, fitted on benign prompts. To add one: a function, and its entry in METHODS."""

from __future__ import annotations

import math
from typing import Callable, Mapping, NamedTuple

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]
"""States [n, D] of the source to states [n, W] of the target; both standardised (`Standard`)."""

Fitter = Callable[[Tensor, Tensor], Map]
"""Fits a map on the anchors' states: source [N, D], target [N, W]."""

HELD_OUT_EVERY = 10
"""One anchor in ten is kept out of the fit that is tried, and says how well it fits. (The last fit takes them all.)"""

COMPONENTS = 256
"""Whitened components of each side that `cca` matches. A round number above the 200 of the first trial; not tuned."""

SMALL = 0.05
"""Singular values below this share of the largest are looked at again (see `_polar`): squared they would drown in rounding."""

ROWS_AT_ONCE = 512
"""Of a matrix that is turned in its own place."""


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
    for rows in moved.split(ROWS_AT_ONCE):
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
"""Those that `auto` tries: the linear ones. The MLP orders as many pairs, and agrees less with the native direction
(RESULTS.md, Transfer)."""


def r2(predicted: Tensor, true: Tensor) -> float:
    """Share of the variance of `true` [n, W] that is predicted, over all dimensions."""
    return 1 - ((predicted - true).square().sum() / (true - true.mean(0)).square().sum()).item()


def top1(predicted: Tensor, true: Tensor) -> float:
    """Share of prompts whose predicted state is nearest (cosine) to their own true state."""
    similar = torch.nn.functional.normalize(predicted, dim=1) @ torch.nn.functional.normalize(true, dim=1).T
    return (similar.argmax(1) == torch.arange(len(true))).double().mean().item()


def fit_map(source: Tensor, target: Tensor, method: str) -> tuple[Map, dict]:
    """The map of that name, or with "auto" the one of AUTO that predicts held-out anchors best.

    Args:
        source, target: standardised states [N, D] and [N, W].

    Returns:
        the map, and its held-out figures: `method`, `r2`, `top1`, and under `tried` the same for each that was tried.
    """
    held = torch.arange(len(source)) % HELD_OUT_EVERY == 0
    tried: dict[str, dict[str, float]] = {}
    for name in AUTO if method == "auto" else (method,):
        predicted = METHODS[name](source[~held], target[~held])(source[held])
        tried[name] = {"r2": r2(predicted, target[held]), "top1": top1(predicted, target[held])}
    chosen = max(tried, key=lambda name: tried[name]["r2"])
    return METHODS[chosen](source, target), {"method": chosen, **tried[chosen], "tried": tried}
