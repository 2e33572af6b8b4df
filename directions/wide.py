"""Very wide states, such as many layers of a language model side by side: fitted in their leading directions.

A fit takes several matrices of W x W: 63 GiB for the 53,248 columns of a stack of thirteen layers. In the leading directions it
takes less than 4 GiB, states included, and what comes of it is as wide as they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, Sequence

import torch
from torch import Tensor

from .maps import Standard, _leading

WIDEST = 8192
"""Widths up to it are fitted as they are: a matrix of W x W takes 268 MB, the states of 5,000 prompts 2 GB."""

DIRECTIONS = 2048
"""Leading directions that wider states are fitted in. On stacks of Gemma-3-270M's and MiniLM's layers as many unsafe prompts
are found at 1% false positives as in a fit in full, to 0.02; with 1,024 to 0.07."""

FIRST, USUAL_TOKENS = 4096, 12
"""Token states that the leading directions are found from; tokens of an anchor."""

SAMPLE, SAMPLE_AT_ONCE = 2**28, 256
"""Values of harmless token states that are kept as they are, in half precision: two for each that a bank takes. And states of
them that are read together."""

COLUMNS_AT_ONCE = 4096
"""Of the mean states, that are widened to single precision together: 80 MB for 5,000 prompts."""

BACK_PENALTY = 0.1
"""Ridge penalty per anchor of the way back from the leading directions; the one of `maps.ridge`. Vectors found this way agree
with native ones as well as those of a fit in full."""

TINY = 1e-6


@dataclass(frozen=True)
class Projection:
    """Standardised states in their leading directions, turned so that each column holds about as much as any other: a fit
    standardises its columns, and would take the last direction for as large as the first.

    Attributes:
        standard: mean and spread, [W] each.
        matrix: [W, P], orthonormal.
    """

    standard: Standard
    matrix: Tensor

    def __call__(self, states: Tensor) -> Tensor:
        """States [n, W] as [n, P]."""
        return self.standard(states.float()) @ self.matrix

    def back(self, rows: Tensor) -> Tensor:
        """What rows [n, P] hold of the states [n, W]."""
        return rows @ self.matrix.T * self.standard.spread + self.standard.mean

    def readers(self, readers: Tensor) -> Tensor:
        """Readers [K, P] as readers of states [K, W]; they read the same."""
        return readers @ self.matrix.T / self.standard.spread


def leading(states: Tensor) -> tuple[Projection, Tensor]:
    """The projection onto the leading directions of states [n, W], and these in it [n, P]; `states` is overwritten."""
    standard = Standard.of(states)
    rows = states.sub_(standard.mean).div_(standard.spread)
    values, vectors = _leading(rows @ rows.T, min(DIRECTIONS, len(rows)))
    kept = values > TINY * values.max()
    vectors = vectors[:, kept] / values[kept].sqrt()
    generator = torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(vectors.shape[1], vectors.shape[1], generator=generator))
    projection = Projection(standard, rows.T @ (vectors @ turn))
    return projection, rows @ projection.matrix


class WideStates:
    """The states of all anchors as a fit needs them, taken one anchor after the other.

    As a sequence it gives each anchor's states [T, W] as far as the leading directions hold them: readers read these the same.

    Args:
        benign: which of the anchors are no mentions.
        width: W.

    Attributes:
        means: the benign anchors' mean states in full, in order, [n, W] in half precision.
    """

    def __init__(self, benign: Sequence[bool], width: int) -> None:
        self.benign = list(benign)
        self._rows: list[Tensor] = [torch.empty(0)] * len(self.benign)
        self.means = torch.empty(sum(self.benign), width, dtype=torch.float16)
        # Large pieces, and few: with thousands of small ones the heap takes twice as much as is in it.
        self._sample = torch.empty(SAMPLE // width, width, dtype=torch.float16)
        self._first = torch.empty(FIRST, width)
        self._owners: list[tuple[int, int]] = []  # anchor and number of states, of those in `_first`
        self._drawn, self._stride, self._seen = 0, 1, 0
        self._place = torch.tensor(self.benign).cumsum(0) - 1
        self._projection: Projection | None = None

    def __len__(self) -> int:
        return len(self.benign)

    def __getitem__(self, index: int) -> Tensor:
        return self.projection.back(self.rows[index])

    def order(self) -> tuple[list[int], list[int]]:
        """The anchors to add first, evenly drawn and enough to find the leading directions from, and the others."""
        benign = torch.tensor(self.benign).nonzero().flatten()
        first = benign[:: max(1, len(benign) * USUAL_TOKENS // FIRST)].tolist()
        return first, sorted(set(range(len(self))) - set(first))

    @property
    def rows(self) -> list[Tensor]:
        """Each anchor's states in the leading directions, [T, P]."""
        if self._projection is None:
            self._find()
        return self._rows

    @property
    def sample(self) -> list[Tensor]:
        """Benign token states in full, evenly drawn, parts [n, W] in half precision."""
        return list(self._sample[: self._drawn].split(SAMPLE_AT_ONCE))

    @property
    def projection(self) -> Projection:
        """Found when there are states enough, or when it is asked for."""
        if self._projection is None:
            self._find()
        assert self._projection is not None
        return self._projection

    def add(self, index: int, states: Tensor) -> None:
        """Take the states [T, W] of one anchor.

        Raises:
            ValueError: one of them is not finite.
        """
        if not torch.isfinite(states.float().sum()):
            raise ValueError(f"states of anchor {index} have NaN or infinite values")
        if self.benign[index]:
            self.means[self._place[index]] = _half(states.float().mean(0))
            self._draw(states)
        held = sum(count for _, count in self._owners)
        if self._projection is None and (held + len(states) <= FIRST or not held):
            states = states[:FIRST]
            self._first[held : held + len(states)] = states
            self._owners.append((index, len(states)))
        else:
            self._rows[index] = self.projection(states)

    def _draw(self, states: Tensor) -> None:
        """Keep one token in so many, and one in twice as many where there is no more room."""
        own = states[-self._seen % self._stride :: self._stride]
        self._seen += len(states)
        for state in own:
            if self._drawn == len(self._sample):
                kept = self._sample[::2].clone()
                self._sample[: len(kept)], self._drawn, self._stride = kept, len(kept), self._stride * 2
            self._sample[self._drawn] = _half(state)
            self._drawn += 1

    def _find(self) -> None:
        held = sum(count for _, count in self._owners)
        self._projection, rows = leading(self._first[:held])
        self._first = torch.empty(0)
        for (index, _), own in zip(self._owners, rows.split([count for _, count in self._owners])):
            self._rows[index] = own.clone()


def _half(states: Tensor) -> Tensor:
    limit = torch.finfo(torch.float16).max
    return states.clamp(-limit, limit).half()


def _parts(means: Tensor) -> Iterator[Tensor]:
    return (columns.float() for columns in means.split(COLUMNS_AT_ONCE, dim=1))


def widened(steps: Tensor, rows: Tensor, means: Tensor) -> Tensor:
    """Steps [K, P] in standardised leading directions as steps of the states [K, W]: by ridge regression of the anchors' mean
    states [n, W] on the same in those directions [n, P]."""
    gram = rows.T @ rows
    gram.diagonal().add_(BACK_PENALTY * len(rows))
    weights = (rows @ torch.linalg.solve(gram, steps.T)).T.float()  # a step is a sum of mean states
    standards = ((Standard.of(part), part) for part in _parts(means))
    return torch.cat([weights @ standard(part) * standard.spread for standard, part in standards], 1)


def separate(steps: Tensor, means: Tensor, shrinkage: float) -> Tensor:
    """The same as `align.separated`, solved among the prompts (Woodbury), which are fewer than the columns.

    Args:
        steps: [K, W]; means: [n, W], mean states of benign prompts.
        shrinkage: mean variances on the diagonal of their covariance.
    """
    centre = [part.mean(0) for part in _parts(means)]
    centred = lambda: (part - own for part, own in zip(_parts(means), centre))
    columns = steps.split(COLUMNS_AT_ONCE, dim=1)
    gram, across = means.new_zeros(len(means), len(means), dtype=torch.float32), 0
    for part, own in zip(centred(), columns):
        gram.addmm_(part, part.T)
        across = across + part @ own.T
    gram.diagonal().add_(shrinkage * gram.diagonal().sum() / means.shape[1])
    weights = torch.linalg.solve(gram, across).T
    vectors = torch.cat([own - weights @ part for part, own in zip(centred(), columns)], 1)
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    components = sum(part @ own.T for part, own in zip(centred(), vectors.split(COLUMNS_AT_ONCE, dim=1)))
    return vectors * components.std(0).unsqueeze(1)
