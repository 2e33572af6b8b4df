"""What fewer anchors cost and save: the least that Align Safety Direction reads, against all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch

from directions import Alignment
from directions.direction_format import GLOBAL

from ..reading import alignment, groups, prompt_scores
from .clock import Row
from .comfyui import clip_l, minilm, pack

SOURCE = "smollm2-135m-instruct"
TRAINED = {"MiniLM": "minilm", "Gemma-3-270M": "gemma-3-270m"}
BUDGET = 0.01


class Reading(NamedTuple):
    """What an alignment reads of held-out prompts.

    Attributes:
        found: the share of unsafe prompts above what 1% of everyday ones exceed, on average over the kinds.
        flagged: the share of everyday prompts that is flagged at a budget of 1%.
    """

    found: float
    flagged: float


def measure() -> Iterator[Row]:
    """Seconds of CPU until there is an alignment, and what it loses by the fewer anchors."""
    yield from _times()
    for name, target in TRAINED.items():
        few, whole = (alignment(SOURCE, target, count) for count in (_fewest(), None))
        a, b = _read(few, target), _read(whole, target)
        cosine = torch.nn.functional.cosine_similarity(
            few.slot.vector([GLOBAL]), whole.slot.vector([GLOBAL]), dim=0
        ).item()
        yield Row(
            f"{name}: lost of what is found at a real 1%",
            b.found - a.found,
            "",
            "<= 0.01",
            f"{a.found:.3f} of {b.found:.3f}",
        )
        detail = f"{a.flagged:.2%} of everyday prompts, and {b.flagged:.2%} with all"
        yield Row(f"{name}: beyond a budget of 1%", a.flagged - BUDGET, "", "<= 0.01", detail)
        yield Row(f"{name}: 1 - cosine of the direction", 1 - cosine, "", "<= 0.01")


def _fewest() -> int:
    return pack().nodes.encoders.alignment.FEWEST


def _times() -> Iterator[Row]:
    """MiniLM's alignments are made; CLIP-L's time, at its real size, is that of reading some, times how many there are."""
    nodes, whole = pack().nodes.encoders.alignment, pack().directions.load(SOURCE)
    few = whole.beginning(_fewest())
    counts = [len(some.anchor_prompts) for some in (few, whole)]
    with torch.inference_mode():
        clip = minilm()
        layout = nodes.Layout.discover(clip)
        probes = nodes.probes_of(clip, layout)
        seconds = []
        for some in (few, whole):
            start = time.process_time()
            nodes._align(clip, some, "auto", layout, probes, None, None)
            seconds.append(time.process_time() - start)
        yield _time("MiniLM", counts, seconds)
        clip = clip_l()
        layout = nodes.Layout.discover(clip)
        prompts = whole.anchor_prompts[:: len(whole.anchor_prompts) // nodes.TIMED]
        start = time.process_time()
        nodes.anchor_states(clip, prompts, layout, range(len(prompts)))
        each = (time.process_time() - start) / len(prompts)
        yield _time("CLIP-L, reading, by its speed", counts, [each * count for count in counts])


def _time(name: str, counts: list[int], seconds: list[float]) -> Row:
    few, whole = seconds
    detail = f"{counts[0]} anchors in {few:.0f} s of CPU, {counts[1]} in {whole:.0f} s"
    return Row(f"{name}: time with the fewest to all", few / whole, "x", "<= 0.25", detail)


def _read(aligned: Alignment, target: str) -> Reading:
    everyday, *rest = groups()
    scores = prompt_scores(aligned, target, everyday.prompts)
    limit, flagged = scores.quantile(1 - BUDGET), (scores > aligned.threshold(BUDGET)).float().mean().item()
    unsafe = [prompt_scores(aligned, target, group.prompts) > limit for group in rest if group.unsafe]
    return Reading(sum(one.float().mean().item() for one in unsafe) / len(unsafe), flagged)
