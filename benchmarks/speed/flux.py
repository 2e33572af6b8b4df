"""FLUX's text encoders. On a graphics card, at their real size with random weights: the time to align, and what steering costs.
Without one: how many passes and tokens the language models read, counted on small ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

from .clock import Row
from .comfyui import pack

SOURCE, SECONDS = "smollm2-135m-instruct", 60.0
SMALL = {
    "clip_l_model_config": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
    },
    "t5xxl_model_config": {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_heads": 4, "num_layers": 1},
}
MODELS = ("clip_l", "t5xxl")
TOKENS, WIDTH, WORDS, ROUNDS = 512, 4096, 14, 20


def measure() -> Iterator[Row]:
    """Run this section by itself where there is a card: the others keep ComfyUI on the CPU."""
    nodes, library = pack(card=True).nodes.encoders, pack(card=True).directions
    import comfy.model_management

    whole = library.load(SOURCE)
    with torch.inference_mode():
        if comfy.model_management.get_torch_device().type == "cpu":
            few = whole.beginning(nodes.alignment.FEWEST)
            yield from _counts(nodes, few.anchor_prompts, len(whole.anchor_prompts))
            why = "there is no graphics card that ComfyUI uses"
            yield Row.not_measured("FLUX at its real size: aligning", why, "s", f"<= {SECONDS:.0f}")
            return
        clip = _flux(torch.bfloat16, {})
        start = time.monotonic()
        aligned = nodes.align_encoder(clip, whole, "auto", SECONDS)
        read = aligned.slots["cond"].fit["anchors"]
        detail = f"{read['read']} of {read['all']} anchors"
        yield Row("FLUX at its real size: aligning", time.monotonic() - start, "s", f"<= {SECONDS:.0f}", detail)
        yield from _steering(nodes, clip)


def _flux(dtype: torch.dtype, sizes: dict[str, Any]) -> Any:
    """FLUX's pair of text encoders, ComfyUI's classes, with random weights."""
    import comfy.sd
    import comfy.text_encoders.flux

    class Target:
        params: dict[str, Any] = {}
        clip = comfy.text_encoders.flux.flux_clip(dtype_t5=dtype)
        tokenizer = comfy.text_encoders.flux.FluxTokenizer

    clip = comfy.sd.CLIP(Target, model_options={"dtype": dtype, **sizes})
    torch.manual_seed(1)
    for weights in clip.cond_stage_model.parameters():
        weights.data.normal_(std=0.02)
    return clip


def _counts(nodes: Any, prompts: tuple[str, ...], every: int) -> Iterator[Row]:
    """Of each language model, in batches as on a card, to all anchors one by one."""
    clip = _flux(torch.float32, SMALL)
    layout = nodes.layout.Layout.discover(clip)
    alone = {name: 0 for name in MODELS}
    for prompt in prompts:
        tokens = clip.tokenize(prompt)
        alone = {name: alone[name] + sum(map(len, tokens[key])) for name, key in zip(MODELS, ("l", "t5xxl"))}
    passes: dict[str, list[tuple[int, int]]] = {name: [] for name in MODELS}
    for name in MODELS:
        model = getattr(clip.cond_stage_model, name)
        model.forward = _counting(passes[name], model.forward)
    with patch.object(nodes.batching, "TOKENS", {}):
        nodes.alignment.anchor_states(clip, prompts, layout, range(len(prompts)))
    for name, rows in passes.items():
        read = sum(count * length for count, length in rows)
        detail = f"{len(rows)} passes to {every}; {read / 1e3:.0f} thousand tokens to {alone[name] * every / len(prompts) / 1e3:.0f}"
        what = f"FLUX, {name}: tokens of {len(prompts)} anchors to all {every}"
        yield Row(what, read / (alone[name] * every / len(prompts)), "x", "<= 0.25", detail)


def _counting(passes: list[tuple[int, int]], forward: Callable) -> Callable:
    def counted(rows: list) -> Any:
        passes.append((len(rows), max(map(len, rows))))
        return forward(rows)

    return counted


def _steering(nodes: Any, clip: Any) -> Iterator[Row]:
    """Apply Safety Direction on one conditioning on the card, to the encode that made it."""
    from .steering import CATEGORIES, made_up

    aligned = made_up(WIDTH, tokens=TOKENS)
    device = clip.patcher.load_device
    harmless = torch.randn(1, TOKENS, WIDTH, device=device)
    slot = aligned.slots["cond"]
    flagged = harmless + 8 * (slot.readers + slot.prompt_readers).sum(0).to(device)
    mask = torch.zeros(1, TOKENS, dtype=torch.long, device=device)
    mask[:, :WORDS] = 1
    prompt = clip.tokenize("a woman with a red umbrella waits for the night bus in the rain")
    encode = _seconds(lambda: clip.encode_from_tokens(prompt, return_dict=True))
    for kind, states in (("harmless", harmless), ("flagged", flagged)):
        for mode in ("gate", "graded", "add"):
            settings = pack(card=True).directions.SteeringSettings(mode, 5.0, tuple(CATEGORIES), 0.01)
            spent = _seconds(lambda: nodes.steer_conditioning([[states, {"attention_mask": mask}]], aligned, settings))
            what = f"steering 1x{TOKENS}x{WIDTH} on the card, {mode}, {kind}"
            yield Row(what, 100 * spent / encode, "%", "", f"{spent * 1e3:.1f} ms to {encode * 1e3:.0f} ms")


def _seconds(task: Callable[[], Any]) -> float:
    """The median of several runs, each waited for."""
    found = []
    for _ in range(ROUNDS + 1):
        torch.cuda.synchronize()
        start = time.monotonic()
        task()
        torch.cuda.synchronize()
        found.append(time.monotonic() - start)
    return median(found[1:])
