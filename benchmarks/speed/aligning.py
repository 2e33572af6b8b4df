"""Aligning against the encoder's own passes, and a second time against 100 ms."""

from __future__ import annotations

import shutil
from statistics import median
from typing import Any, Iterator, Sequence

import torch

from .clock import Row, in_turn, ratio
from .comfyui import clip_l, minilm, pack

ANCHORS = {"MiniLM": (49, 5431), "CLIP-L": (49, 200)}  # few, where the questions to the encoder show, and many
METHOD = "ridge"
BATCH = 512  # tokens


def measure() -> Iterator[Row]:
    """Reading the anchors: one by one, in the best batches that the bare encoder takes, and as Align Safety Direction does."""
    nodes, library = pack().nodes.encoders, pack().directions
    prompts = library.load("smollm2-135m-instruct").anchor_prompts
    for name, clip, model in (("MiniLM", minilm(), "minilm"), ("CLIP-L", clip_l(), "clip_l")):
        layout = nodes.layout.Layout.discover(clip)
        for count in ANCHORS[name]:
            some = [prompts[i * len(prompts) // count] for i in range(count)]
            tokens = [clip.tokenize(prompt) for prompt in some]
            tasks = {
                "one by one": lambda: [clip.encode_from_tokens(entry, return_dict=True) for entry in tokens],
                "floor": lambda: _best_batches(
                    getattr(clip.cond_stage_model, model),
                    [part for entry in tokens for part in next(iter(entry.values()))],
                ),
                "ours": lambda: nodes.alignment.anchor_states(clip, some, layout, range(len(some))),
            }
            with torch.inference_mode():
                seconds = in_turn(tasks, 3 if count < 100 else 1)
                alone = [
                    layout.states(entry, clip.encode_from_tokens(entry, return_dict=True))["cond"] for entry in tokens
                ]
                ours = nodes.alignment.anchor_states(clip, some, layout, range(len(some)))[0]["cond"]
            error = max(((a - b).norm(dim=-1).max() / a.norm(dim=-1).mean()).item() for a, b in zip(alone, ours))
            each = {task: f"{median(values) / count * 1e3:.1f} ms" for task, values in seconds.items()}
            yield Row(
                f"{name}, {count} anchors: ours to floor",
                ratio(seconds, "ours", "floor"),
                "x",
                "<= 1.1",
                f"{each['ours']} to {each['floor']} a prompt",
            )
            yield Row(
                f"{name}, {count}: one by one to ours",
                ratio(seconds, "one by one", "ours"),
                "x",
                ">= 1.5",
                f"{each['one by one']} to {each['ours']} a prompt",
            )
            yield Row(f"{name}, {count}: largest difference from one by one", error, "", "<= 0.0001")


def _best_batches(model: Any, sections: Sequence[Sequence[tuple]]) -> None:
    """The encoder alone: sorted by length, padded within a batch."""
    rows = sorted(([token[0] for token in section] for section in sections), key=len)
    pad = model.special_tokens["pad"]
    batch: list[list[int]] = []
    for row in rows:
        if batch and (len(batch) + 1) * len(row) > BATCH:
            model.encode([[*one, *[pad] * (len(batch[-1]) - len(one))] for one in batch])
            batch = []
        batch.append(row)
    model.encode([[*one, *[pad] * (len(batch[-1]) - len(one))] for one in batch])


def again() -> Iterator[Row]:
    """A second alignment with nothing in memory: the direction is read anew, and the encoder is known by its weights."""
    nodes, library = pack().nodes.encoders, pack().directions
    clip = minilm()
    whole = library.load("smollm2-135m-instruct")
    passes: list[int] = []
    with torch.inference_mode():
        nodes.align_encoder(clip, whole, METHOD)
        inner = clip.cond_stage_model.minilm.encode
        clip.cond_stage_model.minilm.encode = lambda sections: passes.append(1) or inner(sections)
        seconds = in_turn(
            {
                "again": lambda: nodes.align_encoder(clip, library.load("smollm2-135m-instruct"), METHOD),
                "direction": lambda: library.load("smollm2-135m-instruct"),
            },
            5,
        )
    clip.cond_stage_model.minilm.encode = inner
    shutil.rmtree(nodes.kept.folder(), ignore_errors=True)
    spent = [a - b for a, b in zip(seconds["again"], seconds["direction"])]
    yield Row(
        "MiniLM, second alignment",
        median(spent) * 1e3,
        "ms",
        "<= 100",
        f"and {median(seconds['direction']) * 1e3:.0f} ms to load the direction",
    )
    yield Row("MiniLM, forward passes of the second", len(passes), "", "<= 0")
