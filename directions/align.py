"""Align: fit a direction to a text encoder, from benign prompts only. This orchestrates; maps.py, readers.py and
bank.py do the work."""

from __future__ import annotations

import itertools
from typing import Any, Mapping, Sequence

import torch
from torch import Tensor

from .alignment import STATES, Alignment
from .bank import spacing_of
from .direction import Direction
from .direction_format import GLOBAL
from .eight_bits import eight_bits_or_half
from .languages import names_of
from .maps import METHODS, Standard, fit_map
from .readers import Anchors, Reading, fit_readers, precision, source_scores
from .slot import QUANTILES, SlotAlignment
from .wide import WIDEST, Projection, WideStates, separate, widened

SHRINKAGE = 1.0
"""Mean variances on the diagonal of the benign covariance that directions are divided by; chosen among 1, 3 and 10 by probe-ASR
at equal drift (docs/log.md, What made writing better)."""

BANK_SIZE, BANK_VALUES = 4096, 2**27
"""Benign token states to land on; 8,192 and 16,384 were tried and not kept (docs/log.md, Pictures). And values: a bank takes no
more than 256 MiB, so that one of the widest states has 2,520."""

BANK_SHARE = 0.25
"""Share of benign tokens that a bank is drawn from. By the shipped direction every reader reads them below average;
where only the global one did, twice as many of the flagged prompts still drew the unsafe thing (docs/log.md)."""

LEVEL_TOKENS = 20_000
"""Tokens, evenly drawn, that quantiles of components are taken from: a level at 1% is then known to 0.07%."""

ROWS_AT_ONCE = 1024
"""Of token states that are read in single precision: 218 MB of the widest."""

HALF = torch.finfo(torch.float16).max


def align(
    direction: Direction,
    states: Sequence[Tensor] | Tensor | Mapping[str, Sequence[Tensor] | Tensor],
    method: str = "auto",
) -> Alignment:
    """Fit `direction` to the encoder that gave `states` for its anchor prompts.

    Mentions (hard negatives: harmless prompts that name something unsafe) teach how to read, and that alone: the map, the
    levels and the bank come from the other anchors; thresholds from those that aren't near the line either.

    Args:
        direction: what to fit.
        states: the target's states on `direction.anchor_prompts`, in order: a list of [T_i, W]
            (content tokens), or one [N, W] (pooled); or those of several slots of one encoder, by name.
        method: "svd", "ridge", "cca", "mlp", or "auto": the linear one with the best held-out benign R2.

    Raises:
        ValueError: the states don't fit the anchors, or an unknown method.
    """
    if isinstance(states, Mapping):
        if not states or not all(isinstance(name, str) and name and "." not in name for name in states):
            raise ValueError(
                f"slots are named, without full stops, and there is at least one; these are {list(states)}"
            )
        return Alignment({name: align_slot(direction, own, method) for name, own in states.items()})
    return Alignment({STATES: align_slot(direction, states, method)})


def align_slot(
    direction: Direction, states: Sequence[Tensor] | Tensor | WideStates, method: str = "auto"
) -> SlotAlignment:
    """`align` for one slot of an encoder; very wide states are fitted in their leading directions."""
    if method != "auto" and method not in METHODS:
        raise ValueError(f"unknown method {method!r}: choose from {', '.join(METHODS)} or auto")
    if not isinstance(states, WideStates):
        states = _gathered(direction, states) or states
    tokens, pooled = _check(direction, states.rows if isinstance(states, WideStates) else states)
    dtype = precision(pooled.shape[1])
    names, languages, groups = (GLOBAL, *direction.categories), names_of(direction.languages), direction.groups
    anchors, order = _ordered(direction, tokens, names, dtype)
    reading, benign = fit_readers(anchors), anchors.benign
    # The source read no translation: the map and what comes of it are of its own prompts.
    own = [i for i in order[:benign].tolist() if groups[i] == i]
    source, target = direction.anchor_states[own].to(dtype), pooled[own].to(dtype)
    source_standard, target_standard = Standard.of(source), Standard.of(target)
    s, t = source_standard(source), target_standard(target)
    to_target, fit = fit_map(s, t, method)
    steps = torch.stack(
        [
            (to_target(s + direction.vectors[name].to(dtype) / source_standard.spread) - to_target(s)).mean(0)
            for name in names
        ]
    )
    rows = order[:benign].tolist()
    if isinstance(states, WideStates):
        steps = widened(steps, target_standard(pooled[rows].to(dtype)), states.means)
        vectors = separate(steps, states.means, SHRINKAGE)
        reading, tokens = _widened(reading, states.projection), states.sample
    else:
        vectors = separated(steps * target_standard.spread, target).float()
        tokens = [tokens[i] for i in rows]
    return assembled(
        names,
        languages,
        reading,
        vectors,
        tokens,
        anchors.everyday,
        fit,
        {"name": direction.name, "source": direction.source.get("model", ""), "sha256": direction.fingerprint},
    )


def assembled(
    names: Sequence[str],
    languages: Sequence[str],
    reading: Reading,
    vectors: Tensor,
    tokens: Sequence[Tensor],
    everyday: Tensor,
    fit: Mapping[str, Any],
    direction: Mapping[str, Any],
    landing: Tensor | None = None,
) -> SlotAlignment:
    """A slot's alignment from what was fitted to it.

    Args:
        vectors: [K, W].
        tokens: harmless token states, a list of [T_i, W].
        everyday: bool [N], which of the harmless prompts a budget speaks of.
        landing: token states to land on, [M, W]; None draws them from `tokens`, see `_bank`.
    """
    found = {name: getattr(reading, name) for name in reading._fields if name != "separation"}
    states = _bank(tokens, reading.center, reading.readers) if landing is None else landing
    bank = eight_bits_or_half(states.clamp(-HALF, HALF)).unique(dim=0)
    return SlotAlignment(
        names=tuple(names),
        languages=tuple(languages),
        vectors=vectors,
        token_levels=_token_levels(tokens, vectors, reading.center),
        bank=bank,
        bank_spacing=spacing_of(bank),
        anchor_everyday=everyday.float(),
        fit={**fit, "languages": dict(zip(languages, reading.separation))},
        direction=direction,
        **found,
    )


def _ordered(
    direction: Direction, tokens: Sequence[Tensor], names: Sequence[str], dtype: torch.dtype
) -> tuple[Anchors, Tensor]:
    """What readers are fitted on, mentions last, and which anchor of the direction each is."""
    mentioned = direction.mentioned
    order = torch.argsort(mentioned.int(), stable=True)
    benign = int((~mentioned).sum())
    place, languages = torch.argsort(order), names_of(direction.languages)
    prompt_scores, token_scores = source_scores(direction, names, dtype)
    spoken = [languages.index(one) for one in direction.languages] or [0] * len(order)
    anchors = Anchors(
        tokens=[tokens[i] for i in order.tolist()],
        prompt_scores=prompt_scores[order],
        token_scores=[token_scores[i] for i in order.tolist()],
        benign=benign,
        everyday=direction.everyday[order[:benign]],
        group=place[direction.groups[order]],
        language=torch.tensor(spoken)[order],
        languages=len(languages),
    )
    return anchors, order


def _gathered(direction: Direction, states: Sequence[Tensor] | Tensor) -> WideStates | None:
    """The states as a fit of very wide ones needs them; None for others, and for what `_check` will refuse."""
    if len(states) != len(direction.anchor_prompts) or states[0].shape[-1] <= WIDEST:
        return None
    gathered = WideStates((~direction.mentioned).tolist(), states[0].shape[-1])
    for index in itertools.chain(*gathered.order()):
        rows = states[index]
        gathered.add(index, (rows.unsqueeze(0) if rows.dim() == 1 else rows).detach().cpu())
    return gathered


def _widened(reading: Reading, projection: Projection) -> Reading:
    """What was read in a projection, for states as wide as they are."""
    return reading._replace(
        readers=projection.readers(reading.readers),
        prompt_readers=projection.readers(reading.prompt_readers),
        mention_reader=projection.readers(reading.mention_reader.unsqueeze(0))[0],
        language_readers=projection.readers(reading.language_readers),
        center=projection.back(reading.center.unsqueeze(0))[0],
    )


def _check(direction: Direction, states: Sequence[Tensor] | Tensor) -> tuple[list[Tensor], Tensor]:
    expected = len(direction.anchor_prompts)
    if len(states) != expected:
        raise ValueError(
            f"{len(states)} states for {expected} anchor prompts: give one for each of direction.anchor_prompts, in order"
        )
    tokens = [row.unsqueeze(0) if row.dim() == 1 else row for row in states]
    width = tokens[0].shape[-1]
    for index, rows in enumerate(tokens):
        if rows.dim() != 2 or rows.shape[-1] != width or len(rows) == 0:
            raise ValueError(
                f"states of anchor {index} have shape {list(rows.shape)}; [tokens, {width}] with at least one token was expected"
            )
    tokens = [rows.detach().float().cpu() for rows in tokens]
    pooled = torch.stack([rows.mean(0) for rows in tokens])
    bad = (~torch.isfinite(pooled).all(1)).nonzero().flatten().tolist()
    if bad:
        prompt = direction.anchor_prompts[bad[0]][:60]
        raise ValueError(f"states of anchor {bad[0]} ({prompt!r}) have NaN or infinite values; {len(bad)} such")
    if not pooled.std(0).any():
        raise ValueError("the states are the same for every anchor prompt: the encoder ignores its prompt")
    return tokens, pooled


def separated(steps: Tensor, pooled: Tensor) -> Tensor:
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


def _token_levels(tokens: Sequence[Tensor], vectors: Tensor, center: Tensor) -> Tensor:
    """Quantiles of benign tokens' components along the unit vectors, from the centre [K, Q]."""
    units = torch.nn.functional.normalize(vectors, dim=1).T
    drawn = _evenly(torch.arange(sum(map(len, tokens))), LEVEL_TOKENS).split(ROWS_AT_ONCE)
    components = torch.cat([(_rows(tokens, part).float() - center) @ units for part in drawn])
    return torch.quantile(components, QUANTILES, dim=0).T.contiguous()


def _bank(tokens: Sequence[Tensor], center: Tensor, readers: Tensor) -> Tensor:
    """A compact set of benign token states to land on: evenly drawn from the share BANK_SHARE whose highest reading by any of the
    readers [K, W] is lowest."""
    highest = torch.cat([((rows - center) @ readers.T).amax(1) for rows in tokens])
    bar = highest.kthvalue(max(1, round(BANK_SHARE * len(highest)))).values
    low = (highest <= bar).nonzero().flatten()
    return _rows(tokens, _evenly(low, min(BANK_SIZE, BANK_VALUES // len(center))))


def _evenly(index: Tensor, count: int) -> Tensor:
    return index[torch.linspace(0, len(index) - 1, min(len(index), count)).round().long()]


def _rows(tokens: Sequence[Tensor], index: Tensor) -> Tensor:
    """Rows of all tokens together, which are never held together: they are most of the memory that aligning takes."""
    stops = torch.tensor([len(rows) for rows in tokens]).cumsum(0)
    owners = torch.searchsorted(stops, index, right=True)
    if not len(index):
        return tokens[0][:0]
    return torch.stack([tokens[owner][at] for owner, at in zip(owners.tolist(), (index - stops[owners]).tolist())])
