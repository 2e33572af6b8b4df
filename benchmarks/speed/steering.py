"""Steering against one CLIP-L text encode."""

from __future__ import annotations

from importlib import import_module
from statistics import median
from typing import Any, Callable, Iterator, Sequence

import torch
from torch import Tensor

from .clock import Row, in_turn, ratio
from .comfyui import clip_l, pack

SHAPES = {"SDXL 1x77x2048": (77, 2048), "FLUX 1x256x4096": (256, 4096), "video 1x512x4096": (512, 4096)}
CATEGORIES = ["disturbing", "hate", "humiliation", "illegal", "sexual", "violence"]
LANGUAGES = ("en", "de", "es", "fr", "ja", "ko", "pt", "ru", "zh")
ANCHORS = 5000
WORDS = 14  # content tokens of a prompt; the rest is padding


def made_up(width: int, seed: int = 0, tokens: int = 0, categories: Sequence[str] = CATEGORIES) -> Any:
    """An alignment of this width with all that a real one has, of random numbers."""
    library = pack().directions
    draw = torch.Generator().manual_seed(seed)
    names = ("global", *categories)
    levels = torch.linspace(-3, 3, len(library.slot.QUANTILES)).expand(len(names), -1).contiguous()
    bank = torch.randn(
        import_module(f"{library.__name__}.align").BANK_SIZE, width, generator=draw
    ).half()  # `directions.align` is the function
    unit = torch.tensor([0.0, 1.0]).expand(6, len(names), 2)
    slot = library.slot.SlotAlignment(
        names=names,
        vectors=torch.randn(len(names), width, generator=draw),
        readers=torch.randn(len(names), width, generator=draw) / width**0.5,
        prompt_readers=torch.randn(len(names), width, generator=draw) / width**0.5,
        mention_reader=torch.randn(width, generator=draw) / width**0.5,
        center=torch.zeros(width),
        token_moments=unit[0, 0],
        reading_moments=unit,
        score_moments=unit[0],
        length_model=torch.zeros(2, len(names), len(library.scores.KNOTS)),
        languages=LANGUAGES,
        language_readers=torch.randn(len(LANGUAGES), width, generator=draw) / width**0.5,
        language_bias=torch.zeros(len(LANGUAGES)),
        language_moments=unit[:1].expand(len(LANGUAGES), -1, -1, -1)[:, 0],
        anchor_scores=torch.randn(ANCHORS, len(names), generator=draw),
        anchor_everyday=torch.ones(ANCHORS),
        token_levels=levels * 20,
        bank=bank,
        bank_spacing=library.bank.spacing_of(bank),
        fit={"method": "ridge", "r2": 0.5, "top1": 0.5},
        direction={"name": "made-up", "source": "random", "sha256": "0" * 64},
        place=library.place.Place("cond", ("t",), width, width, length=tokens, before=0, after=0),
        probe=torch.ones(width),
    )
    return library.alignment.Alignment({"cond": slot})


def measure() -> Iterator[Row]:
    """Apply Safety Direction on one conditioning, every mode with six categories, to one CLIP-L encode of one prompt."""
    encoders = pack().nodes.encoders
    clip = clip_l()
    prompt = clip.tokenize("a woman with a red umbrella waits for the night bus in the rain")
    tasks: dict[str, Callable[[], Any]] = {"encode": lambda: clip.encode_from_tokens(prompt, return_dict=True)}
    for shape, (tokens, width) in SHAPES.items():
        aligned = made_up(width, tokens=tokens)
        benign = torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(1))
        slot = aligned.slots["cond"]
        unsafe = benign + 8 * (slot.readers + slot.prompt_readers).sum(0)
        mask = torch.zeros(1, tokens, dtype=torch.long)
        mask[:, :WORDS] = 1
        assert [bool(aligned.flagged({"cond": one[:, :WORDS]}, 0.01)) for one in (benign, unsafe)] == [False, True]
        tasks[f"{shape}, copy"] = benign.clone
        # The harmless prompt first in every mode: a flagged one reads the bank, and what runs next finds the caches empty.
        for kind, states in (("harmless", benign), ("flagged", unsafe)):
            for mode in pack().directions.steer.MODES:
                settings = pack().directions.SteeringSettings(mode, 5.0, tuple(CATEGORIES), 0.01)
                if settings.judges or kind == "harmless":
                    name = f"{shape}, {mode} {kind}" if settings.judges else f"{shape}, {mode}"
                    tasks[name] = _apply(encoders, states, mask, aligned, settings)
    with torch.inference_mode():
        seconds = in_turn(tasks, 15)
    for name in list(tasks)[1:]:
        detail = f"{median(seconds[name]) * 1e3:.2f} ms to {median(seconds['encode']) * 1e3:.0f} ms"
        yield Row(f"steer {name}", 100 * ratio(seconds, name, "encode"), "%", "" if "copy" in name else "<= 1", detail)
    for shape in SHAPES:
        for kind in ("harmless", "flagged"):
            graded, gate = (f"{shape}, {mode} {kind}" for mode in ("graded", "gate"))
            yield Row(f"steer {shape}, graded to gate, {kind}", ratio(seconds, graded, gate), "x", "<= 1.2")


def _apply(encoders: Any, states: Tensor, mask: Tensor, aligned: Any, settings: Any) -> Callable[[], Any]:
    return lambda: encoders.steer_conditioning([[states, {"attention_mask": mask}]], aligned, settings)
