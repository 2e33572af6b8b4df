"""Fit a direction to a loaded text encoder, once, and know that encoder again."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any, Iterator, Mapping, Sequence

import comfy.model_management
import torch
from torch import Tensor

from ...directions.align import align_slot
from ...directions.alignment import PROBE_PROMPT, Alignment
from ...directions.direction import Direction
from ...directions.place import Place
from ...directions.slot import SlotAlignment
from ...directions.special_tokens import MAX_ROLES, SpecialTokenBank
from ...directions.wide import USUAL_TOKENS, WIDEST, WideStates
from . import unfinished
from .batching import BatchReader
from .clip import unsteered
from .entry import StaleAlignment
from .identity import identify
from .kept import enough, folder, hash_of, kept_for, kept_like, kind_of
from .layout import Layout
from .padding import with_padding
from .places import Unsteerable, encode
from .progress import ReadingProgress
from .templates import quiet

SPECIAL_PROMPTS, SPECIAL_VALUES = 1024, 2**26
"""Anchors whose special tokens are kept; about half of them score low enough to land on. And values: very wide states take no
more than 256 MiB, so that a few hundred prompts are kept."""

MEMORY = 3 * 2**30
"""Bytes of anchor states at a time."""


FEWEST = 1500
"""Anchors that are read however long it takes: with fewer a budget of 1% is read off fewer than ten prompts."""

TIMED = 64
"""Anchors, evenly drawn, that an encoder's speed is measured on."""


def align_encoder(clip: Any, direction: Direction, method: str, seconds: float | None = None) -> Alignment:
    """The alignment of `direction` to `clip`: from the cache if it was made before, else made and kept.

    Args:
        seconds: how long reading anchors may take, about: as many are read as fit into it, and FEWEST at least. None: all.

    Raises:
        Unsteerable: the CLIP gives no states that depend on its prompt.
    """
    clip = unsteered(clip)
    kind = kind_of(direction, method)
    identity = identify(clip)
    kept = kept_for(kind, identity, direction.fingerprint)
    if kept is not None and enough(kept, seconds):
        return kept
    layout = Layout.discover(clip)
    if not layout.places:
        raise Unsteerable("what this CLIP gives doesn't depend on the prompt: there is nothing to steer")
    probes = probes_of(clip, layout)
    kept = kept_like(kind, direction, layout.places, probes)
    aligned = (
        kept if kept and enough(kept, seconds) else _align(clip, direction, method, layout, probes, seconds, identity)
    )
    try:
        unfinished.forget()
        aligned.save(folder() / f"{kind}-{identity or hash_of(probes)}.safetensors")
    except OSError as error:
        logging.warning(
            "safety-directions: the alignment works but can't be kept (%s); it is made again next time", error
        )
    return aligned


def _align(
    clip: Any,
    whole: Direction,
    method: str,
    layout: Layout,
    probes: Mapping[str, Tensor],
    seconds: float | None,
    identity: str | None,
) -> Alignment:
    direction = whole if seconds is None else whole.beginning(_affordable_anchors(clip, whole, layout, seconds))
    counts = {"read": len(direction.anchor_prompts), "all": len(whole.anchor_prompts)}
    made_of = {"sha256": whole.fingerprint}
    fitted: dict[str, SlotAlignment] = {}
    benign = (~direction.mentioned).nonzero().flatten().tolist()
    for some in _affordable(layout, len(direction.anchor_prompts)):
        states, special = anchor_states(clip, direction.anchor_prompts, some, benign, identity)
        for name in list(states):
            rows = states.pop(name)
            slot = align_slot(direction, rows, method)
            facts = {"fit": {**slot.fit, "anchors": counts}, "direction": {**slot.direction, **made_of}}
            slot = attached(slot, layout.places[name], probes[name], rows, special[name])
            fitted[name] = replace(slot, **facts)
    return Alignment(with_padding(clip, direction.anchor_prompts, layout, fitted))


def attached(
    slot: SlotAlignment,
    place: Place,
    probe: Tensor,
    rows: Sequence[Tensor] | WideStates,
    special: Mapping[int, Mapping[int, Tensor]],
) -> SlotAlignment:
    """A slot with what ties it to its encoder.

    Args:
        rows, special: as `anchor_states` gives them.
    """
    bank = _special_token_bank(slot, rows, special)
    return replace(slot, place=place, probe=probe, special_tokens=bank if bank.roles else None)


def _affordable_anchors(clip: Any, direction: Direction, layout: Layout, seconds: float) -> int:
    """How many anchors the encoder reads in so many seconds, by its speed on some."""
    prompts = direction.anchor_prompts
    drawn = torch.linspace(0, len(prompts) - 1, min(TIMED, len(prompts))).long().tolist()
    tokens = [layout.tokenize(prompts[i]) for i in drawn]
    encode(clip, tokens[0])  # the first pass loads the weights
    start, read = time.monotonic(), 0
    for _ in BatchReader(clip, layout.states).read(tokens):
        read += 1
        if time.monotonic() - start > seconds / 4:
            break
    return max(FEWEST, int(seconds * read / (time.monotonic() - start)))


def _special_token_bank(
    slot: SlotAlignment, rows: Sequence[Tensor] | WideStates, special: Mapping[int, Mapping[int, Tensor]]
) -> SpecialTokenBank:
    """Of the anchors that score below average, whose own states are `rows` and whose special tokens are kept by index."""
    harmless = [index for index in sorted(special) if special[index] and slot.prompt_scores(rows[index])[0] < 0]
    means = torch.stack([rows[index].mean(0) for index in harmless]) if harmless else torch.empty(0, slot.width)
    return SpecialTokenBank.of(means, [special[index] for index in harmless])


def probe_states(clip: Any, aligned: Alignment) -> dict[str, Tensor]:
    """A CLIP's mean states on the probe prompt, where `aligned` has its slots; see `Alignment.fits`."""
    clip = unsteered(clip)
    return probes_of(clip, Layout.known(clip, aligned.places))


def probes_of(clip: Any, layout: Layout) -> dict[str, Tensor]:
    """An encoder's mean state on the probe prompt by slot, [W]."""
    tokens = quiet(clip.tokenize(PROBE_PROMPT))
    return {name: rows.mean(0) for name, rows in layout.states(tokens, encode(clip, tokens)).items()}


def check_encoder(clip: Any, aligned: Alignment) -> None:
    """Raise StaleAlignment when `aligned` was made for another encoder, or for this one before a LoRA or another
    layer changed it."""
    probes = probe_states(clip, aligned)
    if not aligned.fits(probes):
        expected, found = ({name: len(probe) for name, probe in some.items()} for some in (aligned.probes, probes))
        other = "other weights: another encoder, a LoRA, or another layer"
        what = f"slots {expected}, this one has {found}" if expected != found else other
        raise StaleAlignment(
            f"this alignment was made for an encoder with {what}. Connect Align Safety Direction to the CLIP that comes in here"
        )


def _affordable(layout: Layout, prompts: int) -> Iterator[Layout]:
    """The slots in groups whose states fit into memory together; a stack of 32 layers would want 25 GB at once."""
    group: dict[str, Place] = {}
    for name, place in layout.places.items():
        group[name] = place
        if sum(min(p.width, WIDEST) for p in group.values()) * prompts * USUAL_TOKENS * 4 > MEMORY:
            yield layout.only(group)
            group = {}
    if group:
        yield layout.only(group)


def anchor_states(
    clip: Any, prompts: Sequence[str], layout: Layout, benign: Sequence[int], identity: str | None = None
) -> tuple[dict[str, list[Tensor] | WideStates], dict[str, dict[int, dict[int, Tensor]]]]:
    """Each prompt's content states by slot, in order; and by slot and index the special tokens' of some, evenly drawn
    from `benign`. What a cancelled reading of the encoder of this identity had read isn't read again."""
    tokens = [layout.tokenize(prompt) for prompt in prompts]
    states = {name: _room(place, len(prompts), benign) for name, place in layout.places.items()}
    special: dict[str, dict[int, dict[int, Tensor]]] = {name: {} for name in layout.places}
    drawn = {id(tokens[i]): i for i in benign[:: -(-len(benign) // _special_prompts(layout))]}

    def read(entry: Any, output: Mapping[str, Any], index: int | None = None) -> dict[str, Tensor]:
        index = drawn.get(id(entry)) if index is None else index
        if index is not None:
            for name, own in layout.special_states(entry, output).items():
                special[name].setdefault(index, own)
        return layout.states(entry, output)

    wide = next((rows for rows in states.values() if isinstance(rows, WideStates)), None)
    resumable = identity if wide is None else None  # of very wide states only sums are held
    finished = _resumed(resumable, prompts, states, special, set(drawn.values()))
    parts = [
        part for part in (wide.order() if wide else ([i for i in range(len(prompts)) if i not in finished],)) if part
    ]
    progress = ReadingProgress(len(prompts), len(finished), bool(resumable))
    try:
        for part in parts:
            for at, rows in BatchReader(clip, read).read([tokens[i] for i in part]):
                index = part[at]
                if len(rows) < len(layout.places):
                    # Some encoders fill a slot only from text in quotation marks.
                    quoted = layout.tokenize(f'a sign that says "{prompts[index]}"')
                    rows = read(quoted, encode(clip, quoted), drawn.get(id(tokens[index]))) | rows
                for name, own in rows.items():
                    _keep(states[name], index, own)
                finished.add(index)
                progress.update(len(finished))
    except comfy.model_management.InterruptProcessingException:
        if resumable:
            wanted = set(drawn.values())
            unfinished.keep(
                resumable,
                list(states),
                {
                    prompts[i]: unfinished.Read(
                        {name: own[i] for name, own in states.items()},
                        {name: own.get(i, {}) for name, own in special.items()} if i in wanted else None,
                    )
                    for i in sorted(finished)
                },
            )
        raise
    return states, special


def _resumed(
    identity: str | None,
    prompts: Sequence[str],
    states: Mapping[str, Any],
    special: Mapping[str, dict[int, dict[int, Tensor]]],
    drawn: set[int],
) -> set[int]:
    """Fill in what a cancelled reading left; returns the prompts that needn't be read, by index."""
    earlier = unfinished.kept(identity, list(states)) if identity else {}
    finished = set()
    for index, prompt in enumerate(prompts if earlier else ()):
        one = earlier.get(prompt)
        if one is None or (index in drawn and one.special is None):
            continue
        finished.add(index)
        for name, rows in one.states.items():
            states[name][index] = rows
            if index in drawn and one.special and name in one.special:
                special[name][index] = one.special[name]
    return finished


def _room(place: Place, prompts: int, benign: Sequence[int]) -> list[Tensor] | WideStates:
    """For the states of all prompts in a slot."""
    if place.width <= WIDEST:
        return [torch.empty(0)] * prompts
    own = set(benign)
    return WideStates([i in own for i in range(prompts)], place.width)


def _keep(states: list[Tensor] | WideStates, index: int, rows: Tensor) -> None:
    if isinstance(states, WideStates):
        states.add(index, rows)
    else:
        states[index] = rows


def _special_prompts(layout: Layout) -> int:
    """How many prompts' special tokens are kept."""
    values = max(place.width * (1 + min(place.before + place.after, 2 * MAX_ROLES)) for place in layout.places.values())
    return max(1, min(SPECIAL_PROMPTS, SPECIAL_VALUES // values))
